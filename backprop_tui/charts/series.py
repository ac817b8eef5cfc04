"""Series of any length in 1024 buckets.

A bucket covers ``width`` steps and keeps their lowest, highest and mean value, and the smoothed value at its end. When
the steps outgrow the buckets, neighbours are merged and ``width`` doubles: adding stays cheap, spikes survive, and what
was drawn once does not move between two doublings.
"""

from __future__ import annotations

from itertools import zip_longest
from math import inf

from backprop.runs.state import FELT, RunState
from msgspec import Struct

BUCKETS = 1024
STEPS_AT_ONCE = 2500
_DRAWABLE = 1e300
"""What is not below it is as good as not finite: differences of such values are none."""
_COARSE = 256
"""Buckets of the series that are shown small."""
SMOOTHING = (0.0, 0.6, 0.9, 0.98)
"""Weights of the exponential moving averages that can be chosen; 0 is no smoothing."""


class Bucket(Struct):
    """What is kept of the steps that fall into it."""

    low: float = inf
    high: float = -inf
    total: float = 0.0
    count: int = 0
    """Steps with a finite value."""
    gaps: int = 0
    """Steps without one."""
    smooth: tuple[float, ...] = ()
    """The averages of ``SMOOTHING`` after the bucket's last finite value."""
    has_gap: bool = False
    """Whether a step of it, or the one after it, was not finite."""

    @property
    def mean(self) -> float:
        return self.total / self.count

    def merged(self, later: Bucket) -> Bucket:
        """Of two neighbours one."""
        return Bucket(
            min(self.low, later.low),
            max(self.high, later.high),
            self.total + later.total,
            self.count + later.count,
            self.gaps + later.gaps,
            later.smooth or self.smooth,
            self.has_gap or later.has_gap,
        )


class Curve:
    """One series over steps 1, 2, 3 … ``add`` takes them in order."""

    def __init__(self, buckets: int = BUCKETS, smoothing: tuple[float, ...] = SMOOTHING) -> None:
        self.width = 1
        """Steps in a bucket: a power of two."""
        self.last_step = 0
        self.last = float("nan")
        """The last value, NaN where it was not finite."""
        self.smooth: tuple[float, ...] = ()
        """The averages now."""
        self.gaps = 0
        """Steps whose value was not finite."""
        self._most, self._smoothing = buckets, smoothing
        self._buckets: list[Bucket] = []
        self._averages = [0.0] * len(smoothing)
        self._seen = 0

    def __len__(self) -> int:
        return len(self._buckets)

    def add(self, step: int, value: float) -> None:
        """Take in the value of ``step``; NaN is a gap."""
        while (index := (step - 1) // self.width) >= self._most:
            pairs = zip_longest(self._buckets[::2], self._buckets[1::2], fillvalue=Bucket())
            self._buckets = [sooner.merged(later) for sooner, later in pairs]
            self.width *= 2
        while len(self._buckets) <= index:
            self._buckets.append(Bucket())
        bucket = self._buckets[index]
        self.last_step, self.last = step, value
        if not abs(value) < _DRAWABLE:
            bucket.gaps += 1
            self.gaps += 1
            return
        bucket.low = min(bucket.low, value)
        bucket.high = max(bucket.high, value)
        bucket.total += value
        bucket.count += 1
        if self._smoothing:
            bucket.smooth = self.smooth = self._smoothed(value)

    def _smoothed(self, value: float) -> tuple[float, ...]:
        """The averages, corrected for their start at zero (as in Adam, arXiv:1412.6980)."""
        self._seen += 1
        result = []
        for i, weight in enumerate(self._smoothing):
            self._averages[i] = weight * self._averages[i] + (1 - weight) * value
            result.append(self._averages[i] / (1 - weight**self._seen) if weight else value)
        return tuple(result)

    def buckets(self) -> list[tuple[int, Bucket]]:
        """Every bucket with a finite value, with its last step. One before a bucket without any ends at a gap too."""
        found: list[tuple[int, Bucket]] = []
        for index, bucket in enumerate(self._buckets):
            if bucket.count:
                bucket.has_gap = bucket.gaps > 0
                found.append((min(self.last_step, (index + 1) * self.width), bucket))
            elif bucket.gaps and found:
                found[-1][1].has_gap = True
        return found

    def span(self, positive: bool = False) -> tuple[float, float] | None:
        """Lowest and highest value, of the positive ones only for a logarithmic axis."""
        filled = [bucket for bucket in self._buckets if bucket.count]
        lows = [bucket.low for bucket in filled if bucket.low > 0 or not positive]
        highs = [bucket.high for bucket in filled if bucket.high > 0 or not positive]
        return (min(lows), max(highs)) if lows and highs else None


class RunSeries:
    """The run's series in buckets, caught up with its state a portion at a time."""

    def __init__(self) -> None:
        self._clear()
        self._resumes = 0

    def _clear(self) -> None:
        self.loss = Curve()
        self.learning_rate, self.grad_norm, self.tokens_per_second, self.margin = (Curve(_COARSE, ()) for _ in range(4))
        self.accuracy: float | None = None
        """Share of pairs whose chosen side won in the last step, of a run on preferences."""
        self.taken = 0
        """How many of the steps that the state has."""

    def follow(self, state: RunState, most: int = STEPS_AT_ONCE) -> bool:
        """Take in at most ``most`` new steps; whether more wait. After a resume the series begin anew."""
        columns = state.curves
        if state.resumes != self._resumes or len(columns) < self.taken:
            self._clear()
            self._resumes = state.resumes
        end = min(len(columns), self.taken + most)
        for i in range(self.taken, end):
            step = columns.step[i]
            for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "margin"):
                getattr(self, name).add(step, getattr(columns, name)[i])
        self.accuracy = state.last_step.metrics.get("rewards/accuracies") if state.last_step else None
        self.taken = end
        return end < len(columns)

    def release(self, state: RunState) -> None:
        """Have ``state`` let go of most steps that were taken in: a run of any length needs as much memory."""
        spare = self.taken - FELT
        if spare > max(STEPS_AT_ONCE, len(state.curves) // 2):
            state.curves.forget_first(spare)
            self.taken -= spare


def shown_steps(last: int, total: int) -> int:
    """How many steps the horizontal axis covers: the whole run halved as long as the curve still fits.

    So the axis changes a few times in a run and not at each step.
    """
    shown = max(total, last, 1)
    while shown > 16 and last <= shown // 2:
        shown = (shown + 1) // 2
    return shown
