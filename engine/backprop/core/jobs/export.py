"""A trained model in another format, and the proof of it."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct


class ExportRequest(Struct, kw_only=True):
    """Write a trained model in another format."""

    source: str
    """A run's directory, or a folder with a model or an adapter."""
    step: int | None = None
    """The run's checkpoint to export; the result where none is named."""
    model: str | None = None
    """Where the base model is now, if it is no longer where the adapter names it."""
    format: str
    """A word of ``core.exports.FORMATS``."""
    precision: str = ""
    """A word of ``core.exports.PRECISIONS``; the format's own choice where it is empty."""
    output: str = ""
    """The file or folder to write; inside the run's directory, or beside the folder, where it is empty."""
    answers: bool = True
    """Whether the result's answers are compared too, where llama.cpp is installed."""


class Comparison(Struct, kw_only=True):
    """One thing that was compared between the trained model and what was written."""

    name: str
    passed: bool
    detail: str
    """What was compared and what came of it, in words with their numbers."""


class Check(Struct, kw_only=True):
    """The proof of an export. Numbers are ``None`` where they could not be measured; ``skipped`` says why."""

    passed: bool = True
    compared: list[Comparison] = []
    kl: float | None = None
    """Mean Kullback-Leibler divergence of the next token's distribution from the trained model's, in nats."""
    top1: float | None = None
    """Share of positions whose most likely token is the trained model's."""
    tuning_kept: float | None = None
    """Of the prompts that tuned and base model answer differently, the share still answered as tuned, not as base."""
    skipped: str = ""

    def add(self, name: str, passed: bool, detail: str) -> Check:
        """The same with one comparison more; one that failed fails the whole."""
        self.compared.append(Comparison(name=name, passed=passed, detail=detail))
        self.passed = self.passed and passed
        return self


class Exported(Struct, kw_only=True, tag_field="type", tag="exported"):
    """What was written, opened again and compared."""

    path: str
    format: str
    quantization: str
    """The precision of what was written (``core.exports.PRECISIONS``)."""
    bytes: int
    check: Check
    notes: list[str] = []
    """What has to be said: tensors kept in a wider type, a template that was set apart, an adapter that changed."""


class SizesRequest(Struct, kw_only=True):
    """Say how large the GGUF files of a model would be."""

    model: str
    """The base model's name or folder."""


class Sizes(Struct, kw_only=True, tag_field="type", tag="sizes"):
    """The answer."""

    gguf: dict[str, int]
    """Bytes by precision, but for a few hundred that say where the file comes from."""


ExportMessage: TypeAlias = Exported | Sizes
