"""A model's tensors as ``.safetensors`` files of bounded size, written one tensor at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backprop.core.models import INDEX, SINGLE
from backprop.export.weights import StoredWeights, Weights, as_stored, row_pieces, side_by_side, taken

Progress = Callable[[str, int, int], None]
"""Called with what is written, the bytes that are done, and all of them. What it raises ends the work."""
WIDTHS = {"f32": 4, "f16": 2, "bf16": 2}
SHARD_BYTES = 5 * 10**9
"""As ``save_pretrained`` divides models."""


def tensor_bytes(weights: Weights, name: str, precision: str) -> int:
    """How much a tensor takes in the file."""
    return math.prod(weights.shape(name)) * WIDTHS[precision]


def total_bytes(weights: Weights, precision: str) -> int:
    """What all tensors take together, the headers beside them."""
    return sum(tensor_bytes(weights, name, precision) + 256 for name in weights.names())


def write_shards(
    weights: Weights, folder: Path, precision: str, progress: Progress, *, most: int = SHARD_BYTES
) -> None:
    """Write all tensors into ``folder`` in ``precision`` (f32, f16 or bf16), with an index if they are several.

    Raises:
        ExportError: a value is not finite or too large for the precision; its tensor is named.
        OSError: the disk is full, or the folder cannot be written.
    """
    shards = _divided(weights, precision, most)
    total = sum(tensor_bytes(weights, name, precision) for shard in shards for name in shard)
    done, places, kind = 0, {}, precision.upper()
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / file).open("wb") as out:
            out.write(_header(weights, shard, precision))
            for name in shard:
                progress(f"writing {name}", done, total)
                pieces = row_pieces(weights.shape(name))
                for piece in side_by_side(partial(_converted, weights, name, kind, rows) for rows in pieces):
                    out.write(piece.data)
                done += tensor_bytes(weights, name, precision)
                places[name] = file
    progress("written", done, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _converted(weights: Weights, name: str, kind: str, rows: slice) -> NDArray[Any]:
    return as_stored(name, taken(weights, name, kind, rows), kind)


def _divided(weights: Weights, precision: str, most: int) -> list[list[str]]:
    """The names of each file, in the model's order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in weights.names():
        size = tensor_bytes(weights, name, precision)
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _header(weights: Weights, names: list[str], precision: str) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in names:
        end = begin + tensor_bytes(weights, name, precision)
        shape = list(weights.shape(name))
        entries[name] = {"dtype": precision.upper(), "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def largest_deviation(
    written: StoredWeights, weights: Weights, precision: str, progress: Progress
) -> tuple[float, str]:
    """How far the written tensors are from the weights: the largest deviation, in units of what rounding to the
    precision may do, and the tensor that has it. Infinite where names or shapes are not the same.
    """
    if set(written.names()) != set(weights.names()):
        return math.inf, "names"
    names, worst = weights.names(), (0.0, "")
    for number, name in enumerate(names):
        progress(f"comparing {name}", number, len(names))
        if weights.shape(name) != written.shape(name):
            return math.inf, name
        for rows in row_pieces(weights.shape(name)):
            kind = written.dtype(name)
            copied, stored = taken(weights, name, kind, rows), written.stored(name, rows)
            if copied.dtype == stored.dtype and np.array_equal(copied, stored):
                continue
            expected, found = weights.read(name, rows), written.read(name, rows)
            allowed = np.abs(expected) * _HALF_STEP[precision][0]
            np.maximum(allowed, _HALF_STEP[precision][1], out=allowed)
            off = np.abs(expected - found)
            worst = max(worst, (float(np.max(off / allowed, initial=0.0)), name))
    return worst


_HALF_STEP = {"f32": (2.0**-24, 2.0**-149), "f16": (2.0**-11, 2.0**-25), "bf16": (2.0**-8, 2.0**-134)}
"""Half the distance of two neighbours: relative, and near zero. bf16 has eight significant bits, f16 eleven."""
