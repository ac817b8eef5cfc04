"""Series of any length in 1024 buckets.

A bucket covers ``width`` steps and keeps their lowest, highest and mean value, and the smoothed value at its end. When
the steps outgrow the buckets, neighbours are merged and ``width`` doubles: adding stays cheap, spikes survive, and what
was drawn once does not move between two doublings.
"""

from __future__ import annotations

from math import inf, isnan
from typing import NamedTuple

from backprop.runs.state import RunState
from msgspec import Struct

BUCKETS = 1024
STEPS_AT_ONCE = 2500
_COARSE = 256
"""Buckets of the series that are shown small."""
SMOOTHING = (0.0, 0.6, 0.9, 0.98)
"""Weights of the exponential moving averages that can be chosen; 0 is no smoothing."""


class Bucket(NamedTuple):
    low: float
    high: float
    mean: float
    smooth: tuple[float, ...]
    """The averages of ``SMOOTHING`` after the bucket's last finite value."""
    has_gap: bool
    """Whether a step of it was not finite."""


class _Cell(Struct):
    """A bucket while it is filled."""

    low: float = inf
    high: float = -inf
    total: float = 0.0
    count: int = 0
    gaps: int = 0
    smooth: tuple[float, ...] = ()


def _merged(a: _Cell, b: _Cell) -> _Cell:
    """Of two neighbours one."""
    return _Cell(
        min(a.low, b.low),
        max(a.high, b.high),
        a.total + b.total,
        a.count + b.count,
        a.gaps + b.gaps,
        b.smooth or a.smooth,
    )


class Curve:
    """One series over steps 1, 2, 3 … ``add`` takes them in order."""

    def __init__(self, buckets: int = BUCKETS, smoothing: tuple[float, ...] = SMOOTHING) -> None:
        self.width = 1
        """Steps in a bucket: a power of two."""
        self.last_step = 0
        self.last = float("nan")
        """The last value, NaN where it was not finite."""
        self.gaps = 0
        """Steps whose value was not finite."""
        self._most, self._smoothing = buckets, smoothing
        self._cells: list[_Cell] = []
        self._averages = [0.0] * len(smoothing)
        self._seen = 0
        self._known: list[tuple[float, Bucket]] = []
        self._indices: list[int] = []
        self._changed = 0
        """The first bucket that changed since ``_known`` was made."""

    def __len__(self) -> int:
        return len(self._cells)

    def add(self, step: int, value: float) -> None:
        """Take in the value of ``step``; NaN is a gap."""
        index = (step - 1) // self.width
        while index >= self._most:
            cells = [*self._cells, *[_Cell()] * (len(self._cells) % 2)]
            self._cells = [_merged(*pair) for pair in zip(cells[::2], cells[1::2], strict=True)]
            self.width *= 2
            self._changed = 0
            index = (step - 1) // self.width
        self._changed = min(self._changed, index)
        while len(self._cells) <= index:
            self._cells.append(_Cell())
        cell = self._cells[index]
        self.last_step, self.last = step, value
        if isnan(value):
            cell.gaps += 1
            self.gaps += 1
            return
        cell.low = min(cell.low, value)
        cell.high = max(cell.high, value)
        cell.total += value
        cell.count += 1
        if self._smoothing:
            cell.smooth = self._smoothed(value)

    def _smoothed(self, value: float) -> tuple[float, ...]:
        """The averages, corrected for their start at zero (as in Adam, arXiv:1412.6980)."""
        self._seen += 1
        result = []
        for i, weight in enumerate(self._smoothing):
            self._averages[i] = weight * self._averages[i] + (1 - weight) * value
            result.append(self._averages[i] / (1 - weight**self._seen) if weight else value)
        return tuple(result)

    def buckets(self) -> list[tuple[float, Bucket]]:
        """Every bucket with a finite value, with its last step. One before a bucket without any ends at a gap too."""
        known, indices = self._known, self._indices
        # The one before may have learned of a gap from a bucket that has a value now.
        start = max(0, self._changed - 1)
        while indices and indices[-1] >= start:
            indices.pop()
            known.pop()
        for index in range(start, len(self._cells)):
            cell = self._cells[index]
            if cell.count:
                bucket = Bucket(cell.low, cell.high, cell.total / cell.count, cell.smooth, cell.gaps > 0)
                known.append((min(self.last_step, (index + 1) * self.width), bucket))
                indices.append(index)
            elif cell.gaps and known:
                known[-1] = (known[-1][0], known[-1][1]._replace(has_gap=True))
        self._changed = len(self._cells)
        return known

    def span(self, positive: bool = False) -> tuple[float, float] | None:
        """Lowest and highest value, of the positive ones only for a logarithmic axis."""
        filled = [cell for cell in self._cells if cell.count]
        lows = [cell.low for cell in filled if cell.low > 0 or not positive]
        highs = [cell.high for cell in filled if cell.high > 0 or not positive]
        return (min(lows), max(highs)) if lows and highs else None


class RunSeries:
    """The run's series in buckets, caught up with its state a portion at a time."""

    def __init__(self) -> None:
        self._clear()
        self._resumes = 0

    def _clear(self) -> None:
        self.loss = Curve()
        self.learning_rate, self.grad_norm, self.tokens_per_second = (Curve(_COARSE, ()) for _ in range(3))
        self.taken = 0

    def follow(self, state: RunState, most: int = STEPS_AT_ONCE) -> bool:
        """Take in at most ``most`` new steps; whether more wait. After a resume the series begin anew."""
        columns = state.curves
        if state.resumes != self._resumes or len(columns) < self.taken:
            self._clear()
            self._resumes = state.resumes
        end = min(len(columns), self.taken + most)
        for i in range(self.taken, end):
            step = columns.step[i]
            self.loss.add(step, columns.loss[i])
            self.learning_rate.add(step, columns.learning_rate[i])
            self.grad_norm.add(step, columns.grad_norm[i])
            self.tokens_per_second.add(step, columns.tokens_per_second[i])
        self.taken = end
        return end < len(columns)


def shown_steps(last: int, total: int) -> int:
    """How many steps the horizontal axis covers: the whole run halved as long as the curve still fits.

    So the axis changes a few times in a run and not at each step.
    """
    shown = max(total, last, 1)
    while shown > 16 and last <= shown // 2:
        shown = (shown + 1) // 2
    return shown
