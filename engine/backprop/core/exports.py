"""What a trained model can be written as. A format is one word here and one module of ``backprop.export.formats``."""

from __future__ import annotations

from msgspec import Struct


class Precision(Struct, frozen=True):
    """How weights are stored."""

    bits: float
    """Bits per weight of a large model, scales included."""
    remark: str


class Format(Struct, frozen=True):
    """One format, with the words that choose a precision for it; the first is taken where none is named."""

    meaning: str
    precisions: tuple[str, ...]


PRECISIONS: dict[str, Precision] = {
    "f32": Precision(32, "exact; for comparing"),
    "f16": Precision(16, "practically the trained model"),
    "bf16": Precision(16, "practically the trained model, as most models are published"),
    "q8_0": Precision(8.5, "hardly to be told from 16 bits"),
    "q6_k": Precision(6.56, "very close"),
    "q5_k_m": Precision(5.7, "close"),
    "q5_k_s": Precision(5.5, "close, a little smaller"),
    "q4_k_m": Precision(4.9, "the usual choice: small, still good"),
    "q4_k_s": Precision(4.6, "smaller, a little worse"),
    "q4_0": Precision(4.5, "fast on some processors, worse than q4_k_s"),
    "q3_k_m": Precision(3.9, "for lack of room: noticeably worse"),
    "q2_k": Precision(3.0, "for lack of room: a light fine-tune may be lost"),
}

_WIDE = ("f16", "f32")

FORMATS: dict[str, Format] = {
    "lora": Format("the adapter alone, as PEFT reads it", ("f32",)),
    "merged": Format("base and adapter as one model, as transformers reads it", ("bf16", "f16", "f32")),
    "gguf": Format(
        "one file for Ollama, llama.cpp and LM Studio", ("q4_k_m", *(n for n in PRECISIONS if n != "q4_k_m"))
    ),
    "lora-gguf": Format("the adapter alone, for llama.cpp and Ollama beside a GGUF of its base", _WIDE),
}

TUNING_KEPT_LEAST = 0.5
"""Share of the answers changed by training that an export must still give: below it the fine-tune is lost."""
