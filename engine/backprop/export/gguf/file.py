"""Writes a whole model as one GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

A few pieces are in memory at a time; of a tensor whose rows get another order, the whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, size_label
from numpy.typing import NDArray

from backprop.core.errors import GGUFError
from backprop.core.models import settings_of
from backprop.export.gguf.families import EMBEDDING, HEAD, Model, plain_name, read_model, write_numbers
from backprop.export.gguf.positions import position_tensors
from backprop.export.gguf.quantize import fallback_notes, predicted_bytes, quantize, tensor_type
from backprop.export.gguf.tensors import Tensor, plan_tensors
from backprop.export.gguf.vocab import Vocabulary, read_vocabulary
from backprop.export.gguf.writing import FILE_TYPES, Progress, add_tensor_infos, begin_file, packed_head, write_tensors
from backprop.export.weights import Weights, row_pieces, side_by_side, taken

_PHI, _PHI_TOKENS = re.compile("phi-?3", re.IGNORECASE), {"<unk>", "<s>", "</s>", "<|endoftext|>"}
_SAMPLING = {
    "top_k": "add_sampling_top_k",
    "top_p": "add_sampling_top_p",
    "min_p": "add_sampling_min_p",
    "temperature": "add_sampling_temp",
}
_COMMENT = (
    "{# The template that this model was trained with. These words keep programs that compare templates with a list"
    " of their own from taking another one for it. #}\n"
)
"""Ollama replaces a template that is fewer than 100 edits away from one of its own. Jinja drops the comment and, as
every program that renders chat templates sets it, the line's end behind it."""


def write_gguf(
    folder: Path,
    weights: Weights,
    target: Path,
    precision: str,
    *,
    template: str,
    provenance: Mapping[str, str],
    progress: Progress = lambda name, done, total: None,
) -> list[str]:
    """Write a model to ``target``.

    Args:
        folder: the model's, with its settings and tokenizer.
        weights: its tensors.
        target: a file that the caller made, aside from where it is to be in the end; it is overwritten.
        precision: a word of ``core.exports.PRECISIONS``.
        template: the chat template that it was trained with; empty where there is none.
        provenance: ``general.`` values by name: ``name``, ``license``, ``base_model``, ``run_id``, ``data_hash``.
        progress: told of every tensor; may raise to stop.

    Returns:
        What a person has to know of the file.

    Raises:
        GGUFError: llama.cpp cannot compute this model, or tokenise as it does; nothing was written then.
        ModelLoadError: a file of the model cannot be read.
        OSError: ``target`` cannot be written.
    """
    plan = _plan(folder, weights, template, provenance)
    model, shapes = plan.model, plan.shapes
    types = {name: tensor_type(name, shape, precision, model.numbers) for name, shape in shapes.items()}
    plan.writer.add_file_type(FILE_TYPES[precision])
    total = add_tensor_infos(plan.writer, shapes, types)

    def quantized(name: str, read: Callable[[], NDArray[Any]]) -> tuple[str, NDArray[Any]]:
        return name, quantize(read(), types[name], name)

    def pieces() -> Iterator[Callable[[], tuple[str, NDArray[Any]]]]:
        for name, array in plan.extra.items():
            yield partial(quantized, name, partial(np.asarray, array))
        for tensor in plan.tensors:
            for read in _changed(weights, tensor, types[tensor.name].name):
                yield partial(quantized, tensor.name, read)

    write_tensors(plan.writer, target, side_by_side(pieces()), total=total, progress=progress)
    notes = plan.notes + fallback_notes(shapes, precision, model.numbers)
    if not template:
        notes.append("the model has no chat template: programs that serve the file guess how turns are written")
    return notes + _remarks(model, plan.vocabulary)


def file_bytes(folder: Path, weights: Weights, template: str) -> dict[str, int]:
    """Bytes of the file in each precision; what it says of its origin is not counted.

    Args:
        folder, weights, template: as of ``write_gguf``.

    Raises:
        GGUFError, ModelLoadError: as ``write_gguf``.
    """
    plan = _plan(folder, weights, template, {})
    plan.writer.add_file_type(FILE_TYPES["f32"])
    add_tensor_infos(plan.writer, plan.shapes, dict.fromkeys(plan.shapes, GGMLQuantizationType.F32))
    head = len(packed_head(plan.writer))
    head += -head % plan.writer.data_alignment
    return {name: head + predicted_bytes(plan.shapes, name, plan.model.numbers) for name in FILE_TYPES}


class _Plan(NamedTuple):
    """A file before its precision is chosen: all that it says, and which tensors it has."""

    model: Model
    vocabulary: Vocabulary
    tensors: list[Tensor]
    extra: dict[str, NDArray[np.float32]]
    """Tensors that are made from the settings; they come first."""
    shapes: dict[str, tuple[int, ...]]
    writer: GGUFWriter
    notes: list[str]


def _plan(folder: Path, weights: Weights, template: str, provenance: Mapping[str, str]) -> _Plan:
    model = read_model(folder, weights.names())
    vocabulary = read_vocabulary(folder, model.numbers.vocabulary, with_template=bool(template))
    tensors, notes = plan_tensors(model, {name: weights.shape(name) for name in weights.names()})
    _require_one_head(model, weights)
    extra = position_tensors(model.positions)
    shapes = {name: array.shape for name, array in extra.items()} | {tensor.name: tensor.shape for tensor in tensors}
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    name = _known_as(provenance.get("name") or folder.name, vocabulary)
    writer = begin_file(model.family.arch, GGUFType.MODEL, {**provenance, "name": name})
    writer.add_size_label(size_label(count, count, 0, 0))
    _write_sampling(writer, folder)
    write_numbers(writer, model)
    vocabulary.write(writer)
    if template:
        writer.add_chat_template(guarded_template(template))
    return _Plan(model, vocabulary, tensors, extra, shapes, writer, notes)


def guarded_template(template: str) -> str:
    """The template as the file holds it: it renders the same, and no program takes it for another one."""
    return _COMMENT + template if template else ""


def _changed(weights: Weights, tensor: Tensor, dtype: str) -> Iterator[Callable[[], NDArray[Any]]]:
    """Calls that give a piece of whole rows each: as ``dtype`` if stored so and its values are kept, else float32."""
    change = tensor.change
    read = partial(taken, weights, tensor.source, dtype if change.keeps_values else "")
    whole = None if change.rows is None else read()

    def piece(rows: slice) -> NDArray[Any]:
        array = read(rows) if whole is None or change.rows is None else whole[change.rows[rows]]
        return change.apply(array.reshape(-1, *tensor.shape[1:]))

    return (partial(piece, rows) for rows in row_pieces(tensor.shape))


def _known_as(name: str, vocabulary: Vocabulary) -> str:
    """The model's name as it does no harm.

    llama.cpp looks for ``phi-3`` in it to know that control tokens swallow the whitespace behind them, and does not
    load a file of that name without Phi-3's tokens.
    """
    is_phi = bool(vocabulary.strips) and set(vocabulary.tokens) >= _PHI_TOKENS
    if is_phi and not _PHI.search(name):
        return f"{name} (phi-3)"
    return name if is_phi else _PHI.sub("phi 3", name)


def _write_sampling(writer: GGUFWriter, folder: Path) -> None:
    """How the model's makers want it to be sampled, which llama.cpp takes as its defaults."""
    if (folder / "generation_config.json").is_file():
        wishes = settings_of(folder, "generation_config.json")
        for key, method in _SAMPLING.items():
            if isinstance(wishes.get(key), int | float):
                getattr(writer, method)(wishes[key])


def _require_one_head(model: Model, weights: Weights) -> None:
    """A model whose head llama.cpp takes from the embedding must not have been trained to another one."""
    names = {plain_name(name): name for name in weights.names()}
    if not model.family.tied_head or HEAD not in names:
        return
    head, embedding = names[HEAD], names[EMBEDDING]
    pieces = row_pieces(weights.shape(head))
    if not all(np.array_equal(weights.read(head, rows), weights.read(embedding, rows)) for rows in pieces):
        raise GGUFError(
            f"{names[HEAD]} is another matrix than the embedding, which llama.cpp uses for both",
            hint="export it with --format merged",
        )


def _remarks(model: Model, vocabulary: Vocabulary) -> list[str]:
    notes = []
    window, context = model.text.get("sliding_window"), int(model.text["max_position_embeddings"])
    used = model.text.get("use_sliding_window", True) and model.family.window == 0
    if used and isinstance(window, int) and window < context:
        notes.append(f"llama.cpp ignores the model's sliding window: beyond {window} tokens answers may differ")
    if vocabulary.strips and not set(vocabulary.tokens) >= _PHI_TOKENS:
        notes.append(f"llama.cpp keeps whitespace behind {vocabulary.strips[0]}, which training swallowed")
    if vocabulary.left_out:
        notes.append(f"left out, for the model has no row for it: {', '.join(vocabulary.left_out)}")
    return notes
