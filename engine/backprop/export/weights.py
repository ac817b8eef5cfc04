"""Weights of a model on disk, read in pieces: what is in memory is never more than the largest tensor."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from backprop.core.errors import ExportError, ModelLoadError
from backprop.core.files import open_regular

_WIDTHS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_INFINITE = {"F32": (0x7FFFFFFF, 0x7F800000), "F16": (0x7FFF, 0x7C00), "BF16": (0x7FFF, 0x7F80)}
"""All bits but the sign, and the least of their values that is no finite number."""
_PIECE = 1 << 19
"""Weights of a piece: it stays in the processor's cache, and its memory serves the next one without being asked for."""
ALL = slice(None)
_T = TypeVar("_T")


def row_pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of a tensor (elements of a vector) in pieces of bounded size."""
    step = max(_PIECE // max(math.prod(shape[1:]), 1), 1)
    yield from (slice(start, start + step) for start in range(0, shape[0] if shape else 1, step))


def side_by_side(tasks: Iterable[Callable[[], _T]]) -> Iterator[_T]:
    """What the tasks return, in their order. A few of them work at once: what converts pieces leaves Python's lock."""
    threads = min(os.cpu_count() or 1, 4)
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[_T]] = deque()
        try:
            for task in tasks:
                begun.append(pool.submit(task))
                if len(begun) > threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


class Weights(Protocol):
    """A model's tensors by name: those of a file, or a base model's with an adapter added on the way."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> str:
        """How the base model stores it: ``F32``, ``F16`` or ``BF16``."""
        ...

    def read(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        """Rows of the tensor in float32, which holds every value of the narrower types exactly."""
        ...

    def stored(self, name: str, rows: slice = ALL) -> NDArray[Any] | None:
        """The same rows as the base model's file holds them, BF16 as integers; None where they are changed."""
        ...


class StoredWeights:
    """The ``.safetensors`` files of a folder (https://github.com/huggingface/safetensors#format).

    Raises:
        ModelLoadError: a file cannot be read, or holds a type that is no float.
    """

    def __init__(self, files: list[Path]) -> None:
        self._at: dict[str, tuple[Path, int, int, str, tuple[int, ...]]] = {}
        for path in files:
            try:
                os.close(open_regular(path))
                with safe_open(path, "np"), path.open("rb") as file:  # which checks every size and place
                    length = int.from_bytes(file.read(8), "little")
                    header = json.loads(file.read(length))
                for name, entry in header.items():
                    if name != "__metadata__":
                        begin, end = entry["data_offsets"]
                        place = (path, 8 + length + begin, end - begin, entry["dtype"], tuple(entry["shape"]))
                        self._at[name] = place
            except (OSError, ValueError, SafetensorError) as error:
                raise ModelLoadError(f"{path} cannot be read: {error}", hint="fetch or copy it again") from error

    def names(self) -> list[str]:
        return list(self._at)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._at[name][4]

    def dtype(self, name: str) -> str:
        return self._at[name][3]

    def stored(self, name: str, rows: slice = ALL) -> NDArray[Any]:
        path, begin, _, dtype, shape = self._at[name]
        if dtype not in _WIDTHS:
            raise ModelLoadError(f"{path}: {name} is stored as {dtype}, not as F32, F16 or BF16")
        kind, row = np.dtype(_WIDTHS[dtype]), math.prod(shape[1:])
        start, stop, _ = rows.indices(shape[0] if shape else 1)
        found = np.fromfile(path, kind, (stop - start) * row, offset=begin + start * row * kind.itemsize)
        if found.size != (stop - start) * row:  # cut since it was opened
            raise ModelLoadError(f"{path} ends within {name}", hint="fetch or copy it again")
        return found.reshape(stop - start, *shape[1:]) if shape else found.reshape(())

    def read(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        return widened(self.stored(name, rows))


def widened(stored: NDArray[Any]) -> NDArray[np.float32]:
    """What a file holds, in float32."""
    if stored.dtype == _WIDTHS["BF16"]:
        shifted: NDArray[np.float32] = np.left_shift(stored, 16, dtype="<u4").view("<f4")
        return shifted
    return stored.astype("<f4", copy=False)


def taken(weights: Weights, name: str, dtype: str, rows: slice = ALL) -> NDArray[Any]:
    """Rows of a tensor for a file of ``dtype``: as they are stored if that is all there is to do, else in float32."""
    stored = weights.stored(name, rows) if weights.dtype(name) == dtype else None
    return weights.read(name, rows) if stored is None else stored


def as_stored(name: str, values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """``values`` as a file holds them in ``dtype`` (``F32``, ``F16`` or ``BF16``), rounded to nearest even.

    Args:
        values: float32, or what is stored so already.

    Raises:
        ExportError: a value is not finite, or beyond what the type holds; the tensor ``name`` is named.
    """
    stored = np.ascontiguousarray(values)
    if stored.dtype != _WIDTHS[dtype]:
        if dtype == "F16":
            with np.errstate(over="ignore"):
                stored = stored.astype("<f2")
        else:
            require_finite(name, values)
            bits = stored.view("<u4")
            # To the nearest of the two neighbours, to the even one from the middle; finite values do not wrap around.
            stored = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2")
    most, infinite = _INFINITE[dtype]
    if stored.size and (stored.view(f"<u{stored.itemsize}") & most).max() >= infinite:
        require_finite(name, values)
        largest = f"{name} holds {np.abs(values).max():.3g}, which is more than {dtype} holds"
        raise ExportError(largest, hint="choose bf16 or f32", details={"tensor": name})
    return stored


def require_finite(name: str, values: NDArray[Any]) -> None:
    """Raise an ``ExportError`` that names the tensor if a value is not a number."""
    if values.dtype != np.float32 or not np.isfinite(values).all():
        hint = "the training diverged: export an earlier checkpoint with --step"
        raise ExportError(f"{name} holds values that are not finite", hint=hint, details={"tensor": name})
