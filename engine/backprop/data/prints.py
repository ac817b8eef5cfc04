"""Fingerprints of rows: eight bytes, equal for equal content, cheap enough to be made for every row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.int64]

_tail = itemgetter(slice(-20, None))
_FACTORS: Numbers = np.array([[0x9E3779B97F4A7C15], [0xC2B2AE3D27D4EB4F], [0x165667B19E3779F9]], dtype=np.uint64).view(
    np.int64
)
"""Odd numbers that spread their factors over 64 bits."""


class Prints:
    """From the number of a row's texts, the lengths of the first and the last one, and the end of the last one.

    They hold within one process, as ``hash`` does.
    """

    def __init__(self) -> None:
        self._groups: list[Numbers] = []

    def add(self, count: int | Sequence[int], first: Sequence[str], last: Sequence[str]) -> None:
        """Rows as their number of texts (one number for all, or one for each), first text and last text."""
        size = len(last)
        group = np.fromiter(chain(map(hash, map(_tail, last)), map(len, first), map(len, last)), np.int64, 3 * size)
        counts = count if isinstance(count, int) else np.fromiter(count, np.int64, size)
        self._groups.append((group.reshape(3, size) * _FACTORS).sum(axis=0) + counts)

    def take(self) -> Numbers:
        """The fingerprints of the rows added since the last time."""
        groups, self._groups = self._groups, []
        return np.concatenate(groups) if groups else np.empty(0, dtype=np.int64)
