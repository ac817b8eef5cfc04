"""How numbers are spread, and which of them are far from the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

_OUTLIER = 3.5
_MAD_TO_SIGMA = 1.4826
_MEAN_TO_SIGMA = 1.2533


class Spread(Struct):
    """How numbers are spread."""

    mean: float
    min: float
    p10: float
    p50: float
    p90: float
    p99: float
    max: float


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, extremes and percentiles; ``None`` of nothing."""
    if not values:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    p10, p50, p90, p99 = np.percentile(numbers, (10, 50, 90, 99)).tolist()
    return Spread(float(numbers.mean()), float(numbers.min()), p10, p50, p90, p99, float(numbers.max()))


def far_from_the_rest(values: Sequence[float]) -> list[int]:
    """Places of values far from the rest, the farthest first (modified z-score, Iglewicz & Hoaglin 1993)."""
    if len(values) < 8:
        return []
    numbers = np.asarray(values, dtype=np.float64)
    away = np.abs(numbers - np.median(numbers))
    # Where most values are equal, the median distance is 0 and the mean one stands in.
    scale = float(np.median(away)) * _MAD_TO_SIGMA or float(away.mean()) * _MEAN_TO_SIGMA
    if scale == 0:
        return []
    found = np.flatnonzero(away / scale > _OUTLIER)
    return sorted(found.tolist(), key=lambda i: -away[i])
