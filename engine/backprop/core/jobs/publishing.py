"""What is handed on: to an Ollama server, to the Hugging Face Hub."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct


class OllamaRequest(Struct, kw_only=True):
    """Do something with the models of an Ollama server, that of ``OLLAMA_HOST``."""

    action: Literal["register", "list", "remove"] = "register"
    name: str = ""
    """The model's name there, with or without ``:tag``."""
    path: str = ""
    """The GGUF file to register."""
    run: str = ""
    """Directory of the run that the file is from: its system turn, length and answers; found where the file lies in
    the run's ``exports``."""
    step: int | None = None
    """The run's checkpoint that it is from; open: the one that its name has (``-step-N``), else the result."""
    replace: bool = False
    """Whether a model of that name may be replaced."""
    prompt: str = ""
    """Asked of the registered model; open: the run's first sample prompt."""
    expected: str = ""
    """The trained model's greedy answer to ``prompt``."""


class OllamaModel(Struct, frozen=True):
    """A model that an Ollama server has."""

    name: str
    bytes: int
    modified: str
    """When, as Ollama writes it (ISO 8601)."""


class OllamaModels(Struct, kw_only=True, tag_field="type", tag="ollama_models"):
    """What an Ollama server has, or what is gone from it."""

    url: str
    models: list[OllamaModel]


class Registered(Struct, kw_only=True, tag_field="type", tag="registered"):
    """An Ollama server has the model, and shows what it was sent."""

    name: str
    url: str
    version: str
    """Ollama's."""
    digest: str
    """SHA-256 of the file."""
    parameters: dict[str, Any]
    system: str
    prompt: str = ""
    answer: str = ""
    """What it said to ``prompt``, greedily."""
    expected: str = ""
    same: bool | None = None
    """Whether that is the trained model's answer, as far as both go; ``None`` where that is not known."""
    notes: list[str] = []


class PushRequest(Struct, kw_only=True):
    """Upload a trained model to the Hugging Face Hub."""

    path: str
    """A run's directory, a folder with an adapter or a model, or a GGUF file."""
    repo: str
    """``owner/name``."""
    public: bool = False


class Pushed(Struct, kw_only=True, tag_field="type", tag="pushed"):
    """The hub has it."""

    url: str
    commit: str
    files: list[str]
    bytes: int
    private: bool
    existed: bool
    """Whether the repository was there before."""
    card: str
    notes: list[str] = []


PublishingMessage: TypeAlias = OllamaModels | Registered | Pushed
