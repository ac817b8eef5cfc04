"""Base and adapter, or a model that was trained whole, as transformers reads it."""

from __future__ import annotations

from pathlib import Path

from backprop.core.jobs import Check
from backprop.core.models import weight_files
from backprop.export import sharded
from backprop.export.compare_models import compare_models
from backprop.export.sharded import Progress
from backprop.export.source import Source, write_model_files
from backprop.export.weights import StoredWeights

FOLDER = True


def file_name(source: Source, precision: str) -> str:
    return f"merged-{precision}"


def predicted_bytes(source: Source, precision: str) -> int:
    beside = sum(path.stat().st_size for path in source.base.iterdir() if path.suffix != ".safetensors")
    return sharded.total_bytes(source.weights, precision) + beside


def write(source: Source, target: Path, precision: str, progress: Progress) -> list[str]:
    write_model_files(source, target, precision)
    sharded.write_shards(source.weights, target, precision, progress)
    stored = source.dtype
    if sharded.WIDTHS[precision] < sharded.WIDTHS[stored] or {stored, precision} == {"f16", "bf16"}:
        if source.adapter is None:
            return [f"the model is stored in {stored}: its weights were rounded to {precision}"]
        return [f"the base model is stored in {stored}: its weights were rounded to {precision} with the adapter's"]
    return []


def check(source: Source, target: Path, precision: str, answers: bool, progress: Progress) -> Check:
    written = StoredWeights(weight_files(target))
    worst, where = sharded.largest_deviation(written, source.weights, precision, progress)
    found = Check(skipped="" if answers else "answers are not compared: not asked for").add(
        "tensors",
        worst <= 1.0,
        f"{len(written.names())} tensors opened again; the largest deviation from what was trained is "
        f"{worst:.2f} of what rounding to {precision} may do" + (f" ({where})" if worst else ""),
    )
    return compare_models(source, target, found, progress) if answers and found.passed else found
