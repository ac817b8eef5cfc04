"""Named choices of models, of adapter sizes, and of how to train (SPEC section 4)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec import Struct

from backprop.core.errors import InvalidSettingError

EMBEDDED_MODEL = "smollm2-135m"
DEFAULT_MODEL = "Qwen/Qwen2.5-7B-Instruct"
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVERY_LAYER = "all-linear"
"""Stands for the names of all linear layers below the head, as in PEFT."""


class LoRAPreset(Struct, frozen=True):
    """Rank, alpha and layers. Biderman 2024 (arXiv:2405.09673): all linear layers; the MLP matters most."""

    r: int
    alpha: float
    target_modules: tuple[str, ...]


LORA_PRESETS = {
    "quality": LoRAPreset(256, 512, ALL_LINEAR),
    "balanced": LoRAPreset(64, 128, ALL_LINEAR),
    "fast": LoRAPreset(16, 32, ("q_proj", "v_proj")),
}


class ModelPreset(Struct, frozen=True):
    """A model that can be named in short.

    Args:
        repo: where the weights come from: a Hugging Face name, or empty for the embedded model.
        vram: what QLoRA takes of a card, as known for it.
        terms: what a person must know of the licence before training; empty where nothing is.
    """

    repo: str
    vram: str
    licence: str
    remark: str
    terms: str = ""


MODEL_PRESETS = {
    "qwen-3.5-4b": ModelPreset("Qwen/Qwen3.5-4B", "~8 GB", "Apache-2.0", "recommended below 5B"),
    "phi-4-mini-3.8b": ModelPreset("microsoft/Phi-4-mini-instruct", "~8 GB", "MIT", "reasoning, maths, code"),
    "smollm3-3b": ModelPreset("HuggingFaceTB/SmolLM3-3B", "~6 GB", "Apache-2.0", "open recipe, 64K context"),
    "qwen2.5-7b": ModelPreset(
        "Qwen/Qwen2.5-7B-Instruct", "~12 GB", "Apache-2.0", "default; best of the older 7B ones; medium, best"
    ),
    "qwen2.5-3b": ModelPreset(
        "Qwen/Qwen2.5-3B-Instruct",
        "~8 GB",
        "Qwen-Research",
        "fast, good; a research licence",
        terms="a research licence: no commercial use without reading it",
    ),
    "llama-3.2-3b": ModelPreset("meta-llama/Llama-3.2-3B-Instruct", "~8 GB", "Llama Community", "fast, good"),
    "llama-3.2-1b": ModelPreset(
        "meta-llama/Llama-3.2-1B-Instruct", "~6 GB", "Llama Community", "small cards, quick tries; fastest, basic"
    ),
    "mistral-7b": ModelPreset(
        "mistralai/Mistral-7B-Instruct-v0.3", "~12 GB", "Apache-2.0", "another chat template; medium, good"
    ),
    EMBEDDED_MODEL: ModelPreset("", "CPU", "Apache-2.0", "the embedded small model"),
}


class TrainingPreset(Struct, frozen=True):
    """Rank, rows per optimizer step, learning rate, and runs of a multi-run (SPEC section 4)."""

    lora_r: int
    effective_batch: int
    learning_rate: float
    runs: int
    remark: str

    def settings(self) -> dict[str, Any]:
        """The same as settings of a run, and of a session of several; alpha is twice the rank."""
        return {
            "lora_r": self.lora_r,
            "lora_alpha": 2.0 * self.lora_r,
            "batch_size": 2,
            "gradient_accumulation": self.effective_batch // 2,
            "learning_rate": self.learning_rate,
            "runs": self.runs,
        }


TRAINING_PRESETS = {
    "fast-3b": TrainingPreset(8, 8, 5e-4, 3, "quick iterations on 3B models"),
    "fast": TrainingPreset(8, 8, 5e-4, 3, "quick tests on 7B"),
    "balanced": TrainingPreset(16, 16, 2e-4, 5, "recommended"),
    "quality": TrainingPreset(32, 32, 1e-4, 10, "most effect"),
}


def get_preset(name: str) -> TrainingPreset | ModelPreset:
    """The training preset called ``name``, or the model preset.

    Raises:
        InvalidSettingError: no preset has this name.
    """
    known: dict[str, TrainingPreset | ModelPreset] = {**MODEL_PRESETS, **TRAINING_PRESETS}
    return _named(name, known, "preset")


def training_preset(name: Any, label: str = "preset") -> TrainingPreset:
    """The training preset called ``name``; ``label`` is what a message calls the place where it was named.

    Raises:
        InvalidSettingError: no training preset has this name.
    """
    return _named(name, TRAINING_PRESETS, label)


_T = TypeVar("_T")


def _named(name: Any, among: Mapping[str, _T], label: str) -> _T:
    if not isinstance(name, str) or name not in among:
        near = difflib.get_close_matches(str(name)[:80], among, n=1)
        known = "the presets are " + ", ".join(among)
        raise InvalidSettingError(
            f"{label}: no preset is called {str(name)[:80]!r}",
            hint=f"did you mean {near[0]}? {known}" if near else known,
            details={"field": "preset"},
        )
    return among[name]


def default_model(backend: str, gpu: bool) -> tuple[str, str]:
    """The model to take when none was named, and why.

    Args:
        gpu: whether a GPU can be used on this machine.
    """
    if gpu and backend != "cpu":
        return DEFAULT_MODEL, "the default on a GPU"
    return EMBEDDED_MODEL, "no GPU can be used here" if backend != "cpu" else "the CPU was asked for"


def licence_of(model: str) -> str:
    """The licence of a model that is a preset, or a preset's repository; empty for any other."""
    return _known(model).licence


def _known(model: str) -> ModelPreset:
    nothing = ModelPreset("", "", "", "")
    return next((each for name, each in MODEL_PRESETS.items() if model and model in (name, each.repo)), nothing)


def terms_of(model: str) -> str:
    """What a person must know of the licence of such a model before training; empty where nothing is."""
    terms = _known(model).terms
    return f"{model}: {terms}" if terms else ""
