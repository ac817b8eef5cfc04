"""Weights of a model on disk, one tensor at a time: what is in memory is never more than the largest of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from backprop.core.errors import ExportError, ModelLoadError
from backprop.core.files import open_regular

_WIDTHS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_PIECE = 4 << 20
"""Weights that are read at once, so that a large tensor is in memory once."""


class Weights(Protocol):
    """A model's tensors by name: those of a file, or a base model's with an adapter added on the way."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> str:
        """How the base model stores it: ``F32``, ``F16`` or ``BF16``."""
        ...

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor in float32, which holds every value of the narrower types exactly."""
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

    def read(self, name: str) -> NDArray[np.float32]:
        path, begin, _, dtype, shape = self._at[name]
        if dtype not in _WIDTHS:
            raise ModelLoadError(f"{path}: {name} is stored as {dtype}, not as F32, F16 or BF16")
        values = np.empty(shape, np.float32)
        flat, width = values.reshape(-1), np.dtype(_WIDTHS[dtype]).itemsize
        with path.open("rb") as file:
            for start in range(0, flat.size, _PIECE):
                piece = flat[start : start + _PIECE]
                content = os.pread(file.fileno(), piece.size * width, begin + start * width)
                if len(content) != piece.size * width:  # cut since it was opened
                    raise ModelLoadError(f"{path} ends within {name}", hint="fetch or copy it again")
                stored = np.frombuffer(content, _WIDTHS[dtype])
                if dtype == "BF16":
                    np.left_shift(stored, 16, out=piece.view("<u4"), dtype="<u4")
                else:
                    piece[:] = stored
        return values


def as_stored(name: str, values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """``values`` as a file holds them in ``dtype`` (``F32``, ``F16`` or ``BF16``), rounded to nearest even.

    Raises:
        ExportError: a value is not finite, or beyond what the type holds; the tensor ``name`` is named.
    """
    if not np.isfinite(values).all():
        raise ExportError(
            f"{name} holds values that are not finite", hint="the training diverged: export an earlier checkpoint"
        )
    if dtype == "F32":
        return values.astype("<f4", copy=False)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        finite = np.isfinite(half).all()
    else:
        bits = np.ascontiguousarray(values, "<f4").view("<u4")
        half = ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype("<u2")
        finite = not ((half & 0x7F80) == 0x7F80).any()
    if not finite:
        raise ExportError(
            f"{name} holds {np.abs(values).max():.3g}, which is more than {dtype} holds", hint="choose bf16 or f32"
        )
    return half
