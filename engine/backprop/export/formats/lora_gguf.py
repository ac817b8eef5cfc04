"""The adapter alone as GGUF, for llama.cpp and Ollama beside a GGUF of its base."""

from __future__ import annotations

from pathlib import Path

from backprop.core.jobs import Check
from backprop.export.formats.lora import require_adapter
from backprop.export.gguf.lora import is_written, write_lora_gguf
from backprop.export.merge import ADAPTER_WEIGHTS
from backprop.export.sharded import Progress
from backprop.export.source import Source

FOLDER = False
_HEADER = 2**20


def file_name(source: Source, precision: str) -> str:
    return f"{source.name}-lora-{precision}.gguf"


def predicted_bytes(source: Source, precision: str) -> int:
    stored = (require_adapter(source).folder / ADAPTER_WEIGHTS).stat().st_size
    return 2 * stored + _HEADER  # f32 of an adapter that was trained in 16 bits


def write(source: Source, target: Path, precision: str, progress: Progress) -> list[str]:
    write_lora_gguf(
        require_adapter(source), source.base, target, precision, provenance=source.provenance, progress=progress
    )
    return []


def check(source: Source, target: Path, precision: str, answers: bool, progress: Progress) -> Check:
    adapter = require_adapter(source)
    same = is_written(adapter, source.base, target, precision)
    detail = f"{2 * len(adapter.parts)} matrices, " + ("those that were trained" if same else "not those trained")
    why = "answers are not compared: the adapter is nothing without a GGUF of its base model"
    return Check(skipped=why).add("tensors", same, detail)
