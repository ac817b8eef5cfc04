"""Named choices of models and of adapter sizes (SPEC section 4)."""

from __future__ import annotations

from msgspec import Struct

from backprop.core.errors import InvalidSettingError

EMBEDDED_MODEL = "smollm2-135m"
DEFAULT_MODEL = "Qwen/Qwen2.5-7B-Instruct"
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
    """``repo`` is where the weights come from: a Hugging Face name, or empty for the embedded model."""

    repo: str
    vram: str
    licence: str
    remark: str


MODEL_PRESETS = {
    "qwen-3.5-4b": ModelPreset("Qwen/Qwen3.5-4B", "~8 GB", "Apache-2.0", "recommended below 5B"),
    "phi-4-mini-3.8b": ModelPreset("microsoft/Phi-4-mini-instruct", "~8 GB", "MIT", "reasoning, maths, code"),
    "smollm3-3b": ModelPreset("HuggingFaceTB/SmolLM3-3B", "~6 GB", "Apache-2.0", "open recipe, 64K context"),
    "qwen2.5-7b": ModelPreset("Qwen/Qwen2.5-7B-Instruct", "~12 GB", "Apache-2.0", "default; best of the older 7B ones"),
    "qwen2.5-3b": ModelPreset(
        "Qwen/Qwen2.5-3B-Instruct", "~8 GB", "Qwen-Research", "research licence: no commercial use without reading it"
    ),
    "llama-3.2-3b": ModelPreset("meta-llama/Llama-3.2-3B-Instruct", "~8 GB", "Llama Community", "fast, good"),
    "llama-3.2-1b": ModelPreset(
        "meta-llama/Llama-3.2-1B-Instruct", "~6 GB", "Llama Community", "small cards, quick tries"
    ),
    "mistral-7b": ModelPreset("mistralai/Mistral-7B-Instruct-v0.3", "~12 GB", "Apache-2.0", "another chat template"),
    EMBEDDED_MODEL: ModelPreset("", "CPU", "Apache-2.0", "the embedded small model"),
}


def get_preset(name: str) -> LoRAPreset | ModelPreset:
    """The preset called ``name``, of either kind.

    Raises:
        InvalidSettingError: no preset has this name.
    """
    preset = LORA_PRESETS.get(name) or MODEL_PRESETS.get(name)
    if preset is None:
        raise InvalidSettingError(
            f"no preset is called {name!r}", hint="known presets: " + ", ".join([*LORA_PRESETS, *MODEL_PRESETS])
        )
    return preset


def default_model(backend: str, gpu: bool) -> tuple[str, str]:
    """The model to take when none was named, and why.

    Args:
        gpu: whether a GPU can be used on this machine.
    """
    if gpu and backend != "cpu":
        return DEFAULT_MODEL, "the default on a GPU"
    return EMBEDDED_MODEL, "no GPU can be used here" if backend != "cpu" else "the CPU was asked for"
