"""How long the rows of a dataset are, and what any limit on their length would cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from backprop.core.events import LengthLimit

_LONGEST = 1_000_000
"""Rows longer than this are counted as this long."""
Counts = npt.NDArray[np.int64]


class Lengths(Struct, frozen=True):
    """Lengths of the rows counted so far, before anything is cut, in tokens or characters."""

    chats: Counts
    """Conversations by their length: to the end of the last answer, since what follows it goes first."""
    texts: Counts
    """Raw texts by their length."""
    losing: Counts
    """Rows by the largest limit at which their last answer no longer fits; 0: never."""

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return int(self.chats.sum() + self.texts.sum())

    @property
    def longest(self) -> int:
        return max(int(np.flatnonzero(counts)[-1]) if counts.any() else 0 for counts in (self.chats, self.texts))

    def percentile(self, share: float) -> int:
        """The length that ``share`` (0 to 1) of the rows do not exceed."""
        sums = np.cumsum(self._all())
        return int(np.searchsorted(sums, share * sums[-1])) if sums[-1] else 0

    @property
    def answers_fit(self) -> int:
        """The smallest limit at which no answer is lost, at least 1."""
        return int(np.flatnonzero(self.losing[1:])[-1]) + 2 if self.losing[1:].any() else 1

    def at(self, limit: int) -> LengthLimit:
        """What ``limit`` costs, at least 1."""
        whole = int(self.chats[: limit + 1].sum())
        lost = int(self.losing[limit:].sum())
        fit = int(self.texts[: limit + 1].sum())
        return LengthLimit(
            max_length=limit,
            whole=whole + fit,
            cut=int(self.chats.sum()) - whole - lost,
            split=int(self.texts.sum()) - fit,
            answer_lost=lost,
        )

    def limits(self, chosen: int) -> list[LengthLimit]:
        """What is lost at the chosen limit, at p50, p90, p99, and at the length of the longest row."""
        return [self.at(max(at, 1)) for at in (chosen, *map(self.percentile, (0.5, 0.9, 0.99)), self.longest)]

    def buckets(self, edges: list[int]) -> list[int]:
        """Rows of each stretch from one edge up to (not including) the next."""
        sums = np.concatenate(([0], np.cumsum(self._all())))
        found: list[int] = np.diff(sums[np.minimum(edges, len(sums) - 1)]).tolist()
        return found

    def _all(self) -> Counts:
        everything = np.zeros(max(len(self.chats), len(self.texts)), dtype=np.int64)
        everything[: len(self.chats)] += self.chats
        everything[: len(self.texts)] += self.texts
        return everything


class LengthCounter:
    """The counts behind ``Lengths`` while they grow."""

    def __init__(self) -> None:
        self._chats, self._texts, self._losing = (np.zeros(1, dtype=np.int64) for _ in range(3))

    def add_chats(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Count conversations, each with its length and the largest limit that loses its answer."""
        if sizes:
            lengths, losing = zip(*sizes, strict=True)
            self._chats = _added(self._chats, lengths)
            self._losing = _added(self._losing, losing)

    def add_texts(self, lengths: Sequence[int]) -> None:
        """Count texts, which no limit cuts: a longer one is split."""
        if lengths:
            self._texts = _added(self._texts, lengths)

    def snapshot(self) -> Lengths:
        return Lengths(self._chats, self._texts, self._losing)


def _added(counts: Counts, values: Sequence[int]) -> Counts:
    """``counts`` with one more at each of ``values``; a new array, because somebody may be reading the old one."""
    more: Counts = np.bincount(np.minimum(values, _LONGEST), minlength=len(counts))
    more[: len(counts)] += counts
    return more
