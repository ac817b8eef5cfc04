"""Series of any length in 1024 buckets.

A bucket covers ``width`` steps and keeps their lowest, highest and mean value, and the smoothed value at its end. When
the steps outgrow the buckets, neighbours are merged and ``width`` doubles: adding stays cheap, spikes survive, and what
was drawn once does not move between two doublings.
"""

from __future__ import annotations

from math import inf, isnan
from typing import NamedTuple

from backprop.runs.state import RunState

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


class _Open:
    """The buckets while they are filled: columns, so that merging is a loop over slices."""

    def __init__(self) -> None:
        self.low: list[float] = []
        self.high: list[float] = []
        self.total: list[float] = []
        self.count: list[int] = []
        self.gaps: list[int] = []
        self.smooth: list[tuple[float, ...]] = []

    def extend_to(self, length: int) -> None:
        while len(self.low) < length:
            self.low.append(inf)
            self.high.append(-inf)
            self.total.append(0.0)
            self.count.append(0)
            self.gaps.append(0)
            self.smooth.append(())

    def halve(self) -> None:
        self.extend_to(len(self.low) + len(self.low) % 2)
        self.low = [min(pair) for pair in zip(self.low[::2], self.low[1::2], strict=True)]
        self.high = [max(pair) for pair in zip(self.high[::2], self.high[1::2], strict=True)]
        self.total = [sum(pair) for pair in zip(self.total[::2], self.total[1::2], strict=True)]
        self.count = [sum(pair) for pair in zip(self.count[::2], self.count[1::2], strict=True)]
        self.gaps = [sum(pair) for pair in zip(self.gaps[::2], self.gaps[1::2], strict=True)]
        self.smooth = [later or sooner for sooner, later in zip(self.smooth[::2], self.smooth[1::2], strict=True)]


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
        self._cells = _Open()
        self._averages = [0.0] * len(smoothing)
        self._seen = 0
        self._known: list[tuple[float, Bucket]] = []
        self._indices: list[int] = []
        self._changed = 0
        """The first bucket that changed since ``_known`` was made."""

    def __len__(self) -> int:
        return len(self._cells.low)

    def add(self, step: int, value: float) -> None:
        """Take in the value of ``step``; NaN is a gap."""
        index = (step - 1) // self.width
        while index >= self._most:
            self._cells.halve()
            self.width *= 2
            self._changed = 0
            index = (step - 1) // self.width
        self._changed = min(self._changed, index)
        cells = self._cells
        cells.extend_to(index + 1)
        self.last_step, self.last = step, value
        if isnan(value):
            cells.gaps[index] += 1
            self.gaps += 1
            return
        cells.low[index] = min(cells.low[index], value)
        cells.high[index] = max(cells.high[index], value)
        cells.total[index] += value
        cells.count[index] += 1
        if self._smoothing:
            cells.smooth[index] = self._smoothed(value)

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
        cells, known, indices = self._cells, self._known, self._indices
        # The one before may have learned of a gap from a bucket that has a value now.
        start = max(0, self._changed - 1)
        while indices and indices[-1] >= start:
            indices.pop()
            known.pop()
        for index in range(start, len(cells.low)):
            if cells.count[index]:
                bucket = Bucket(
                    cells.low[index],
                    cells.high[index],
                    cells.total[index] / cells.count[index],
                    cells.smooth[index],
                    cells.gaps[index] > 0,
                )
                known.append((min(self.last_step, (index + 1) * self.width), bucket))
                indices.append(index)
            elif cells.gaps[index] and known:
                known[-1] = (known[-1][0], known[-1][1]._replace(has_gap=True))
        self._changed = len(cells.low)
        return known

    def span(self, positive: bool = False) -> tuple[float, float] | None:
        """Lowest and highest value, of the positive ones only for a logarithmic axis."""
        lows = [v for v, n in zip(self._cells.low, self._cells.count, strict=True) if n and (v > 0 or not positive)]
        highs = [v for v, n in zip(self._cells.high, self._cells.count, strict=True) if n and (v > 0 or not positive)]
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
