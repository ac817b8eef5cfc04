"""One file for llama.cpp, Ollama and LM Studio."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec

from backprop.core.jobs import Check
from backprop.export import llama
from backprop.export.answers import compare_answers, held_out_prompts
from backprop.export.compare_models import load_trained, rendered_prompts
from backprop.export.gguf.file import file_bytes, write_gguf
from backprop.export.sharded import Progress
from backprop.export.source import Source
from backprop.export.verify import verify
from backprop.runs.directory import RunDirectory

FOLDER = False
_ORIGIN = 2**16
"""Bytes for what a file says of where it comes from: more than any has."""


def file_name(source: Source, precision: str) -> str:
    return f"{source.name}-{precision}.gguf"


def predicted_bytes(source: Source, precision: str) -> int:
    return file_bytes(source.model_folder, source.weights, source.template)[precision] + _ORIGIN


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
        found, target, precision, load=partial(load_trained, source), chat=source.chat, prompts=asked, progress=progress
    )
