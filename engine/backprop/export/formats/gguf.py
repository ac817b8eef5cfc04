"""One file for llama.cpp, Ollama and LM Studio."""

from __future__ import annotations

from pathlib import Path

from backprop.core.jobs import Check
from backprop.export.gguf import quantize
from backprop.export.gguf.families import read_model
from backprop.export.gguf.file import write_gguf
from backprop.export.gguf.positions import position_tensors
from backprop.export.gguf.tensors import plan_tensors
from backprop.export.sharded import Progress
from backprop.export.source import Source
from backprop.export.verify import verify

FOLDER = False
_HEADER, _VOCABULARY = 2**20, 1.0
"""Bytes beside the tensors: settings and their table, and the vocabulary as a share of ``tokenizer.json``."""


def file_name(source: Source, precision: str) -> str:
    return f"{source.name}-{precision}.gguf"


def predicted_bytes(source: Source, precision: str) -> int:
    weights, folder = source.weights, source.model_folder
    model = read_model(folder, weights.names())
    tensors, _ = plan_tensors(model, {name: weights.shape(name) for name in weights.names()})
    shapes = {name: array.shape for name, array in position_tensors(model.positions).items()}
    shapes |= {tensor.name: tensor.shape for tensor in tensors}
    beside = _HEADER + _VOCABULARY * (folder / "tokenizer.json").stat().st_size
    return quantize.predicted_bytes(shapes, precision, model.numbers) + int(beside)


def write(source: Source, target: Path, precision: str, progress: Progress) -> list[str]:
    return write_gguf(
        source.model_folder,
        source.weights,
        target,
        precision,
        template=source.template,
        provenance=source.provenance,
        progress=progress,
    )


def check(source: Source, target: Path, precision: str, answers: bool, progress: Progress) -> Check:
    progress("comparing with the trained model", 0, 0)
    prompts = [] if source.on_texts else source.prompts
    return verify(target, source.model_folder, source.weights, source.template, prompts)
