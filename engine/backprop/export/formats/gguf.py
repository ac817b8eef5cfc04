"""One file for llama.cpp, Ollama and LM Studio."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec

from backprop.core.jobs import Check
from backprop.export import llama
from backprop.export.answers import compare_answers, held_out_prompts
from backprop.export.compare_models import load_trained, rendered_prompts
from backprop.export.gguf import quantize
from backprop.export.gguf.families import read_model
from backprop.export.gguf.file import write_gguf
from backprop.export.gguf.positions import position_tensors
from backprop.export.gguf.tensors import plan_tensors
from backprop.export.sharded import Progress
from backprop.export.source import Source
from backprop.export.verify import verify
from backprop.runs.directory import RunDirectory

FOLDER = False
_HEADER = 2**20
"""Bytes for settings and the table of tensors; the vocabulary takes no more than ``tokenizer.json``."""


def file_name(source: Source, precision: str) -> str:
    return f"{source.name}-{precision}.gguf"


def predicted_bytes(source: Source, precision: str) -> int:
    weights, folder = source.weights, source.model_folder
    model = read_model(folder, weights.names())
    tensors, _ = plan_tensors(model, {name: weights.shape(name) for name in weights.names()})
    shapes = {name: array.shape for name, array in position_tensors(model.positions).items()}
    shapes |= {tensor.name: tensor.shape for tensor in tensors}
    beside = _HEADER + (folder / "tokenizer.json").stat().st_size
    return quantize.predicted_bytes(shapes, precision, model.numbers) + beside


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
    found = verify(target, source.model_folder, source.weights, source.template, prompts)
    if not found.passed or not answers:
        return found if answers else msgspec.structs.replace(found, skipped="answers are not compared: not asked for")
    asked = rendered_prompts(source)
    if source.state is not None and llama.is_installed():
        asked = held_out_prompts(RunDirectory(Path(source.state.path)), source.base) + asked
    return compare_answers(
        found,
        target,
        precision,
        load=partial(load_trained, source),
        chat=source.chat,
        prompts=asked,
        progress=progress,
    )
