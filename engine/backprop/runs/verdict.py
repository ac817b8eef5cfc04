"""Did it help? Two models on the same rows: by how much they differ, and whether that could be chance.

Paired bootstrap (Efron and Tibshirani 1993; for comparing systems on one test set Koehn 2004): rows are drawn again and
again with replacement, both models' scores of a row together. With few rows its interval is too narrow; it is widened
as Student's t is (the expanded percentile interval of Hesterberg 2015, arXiv:1411.5279). The seed is fixed: the same
scores give the same answer.

A row counts with its supervised tokens, so that the difference is that of the two losses on the curve. Rows of the same
content are one with the tokens of all: they cannot disagree, and as many witnesses they would make chance look sure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from backprop.core.events import Verdict
from backprop.core.jobs import EvaluatedRow

Values = npt.NDArray[np.float64]
MATTERS = 0.005
"""Nats per token. Less than this half percent of perplexity is what rounding and other batches make as well."""
RESAMPLES = 10_000
_DRAWN_AT_ONCE = 2**21
_CONFIDENCE = 0.95
_POWER = 0.8
_NORMAL = NormalDist()


class Interval(NamedTuple):
    """A mean with its 95 % interval, and its standard error."""

    mean: float
    low: float
    high: float
    error: float


def compare(before: Sequence[EvaluatedRow], after: Sequence[EvaluatedRow]) -> Verdict | None:
    """Whether the second model has the lower loss on the rows that both scored; ``None`` where there are none.

    A row whose loss is not finite is left out; one that only the second model cannot score makes it worse.
    """
    pairs = paired(before, after)
    usable = [(a, b) for a, b in pairs if a.loss is not None and b.loss is not None]
    if not usable:
        return None
    broken = any(a.loss is not None and b.loss is None for a, b in pairs)
    found, rows = by_content((a.content, (b.loss or 0.0) - (a.loss or 0.0), a.tokens) for a, b in usable)
    known = rows >= Verdict.LEAST and abs(found.mean) >= MATTERS
    better, worse = known and found.high < 0, broken or (known and found.low > 0)
    return Verdict(
        word="worse" if worse else "better" if better else "cannot tell",
        difference=found.mean,
        low=_known(found.low),
        high=_known(found.high),
        rows=rows,
        smallest=_known(max(MATTERS, detectable(found.error))),
    )


def paired(before: Sequence[EvaluatedRow], after: Sequence[EvaluatedRow]) -> list[tuple[EvaluatedRow, EvaluatedRow]]:
    """The rows that both have, by place and content."""
    known = {(row.line, row.content): row for row in before}
    return [(known[row.line, row.content], row) for row in after if (row.line, row.content) in known]


def by_content(scored: Iterable[tuple[int, float, int]]) -> tuple[Interval, int]:
    """The mean of rows' values, of which those of the same content are one, and how many that are.

    Args:
        scored: content, value and weight of each row.
    """
    told: dict[int, tuple[float, int]] = {}
    for content, value, weight in scored:
        total, weights = told.get(content, (0.0, 0))
        told[content] = total + value * weight, weights + weight
    every = np.array([weight for _, weight in told.values()], dtype=np.float64)
    return interval(np.array([total for total, _ in told.values()]) / every, every), len(told)


def interval(values: Values, weights: Values | None = None) -> Interval:
    """The weighted mean of ``values`` ([rows], one or more) and what it could be with other rows of the same kind."""
    rows = len(values)
    weights = np.ones(rows) if weights is None else weights
    mean = float(np.average(values, weights=weights))
    if rows < 2:
        return Interval(mean, -math.inf, math.inf, math.inf)
    chooser, means, at_once = np.random.default_rng(0), [], max(1, _DRAWN_AT_ONCE // rows)
    for start in range(0, RESAMPLES, at_once):
        drawn = chooser.integers(0, rows, (min(at_once, RESAMPLES - start), rows))
        means.append((values * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    found = np.concatenate(means)
    tail = _NORMAL.cdf(-math.sqrt(rows / (rows - 1)) * _student(rows - 1))
    low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), float(found.std()))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _student(freedom: int) -> float:
    """The upper 2.5 % point of Student's t (Abramowitz and Stegun 26.7.5); from 5 degrees on to three digits."""
    z, n = float(_NORMAL.inv_cdf(0.5 + _CONFIDENCE / 2)), float(freedom)
    first, second = z**3.0 + z, 5 * z**5.0 + 16 * z**3.0 + 3 * z
    third = 3 * z**7.0 + 19 * z**5.0 + 17 * z**3.0 - 15 * z
    return float(z + first / (4 * n) + second / (96 * n * n) + third / (384 * n * n * n))


def detectable(error: float) -> float:
    """The smallest true difference that would be seen in four of five such comparisons, by the standard error."""
    return error * (_NORMAL.inv_cdf(0.5 + _CONFIDENCE / 2) + _NORMAL.inv_cdf(_POWER))


def mcnemar(gained: int, lost: int) -> float:
    """How probable a split as uneven as this is, or more, where gaining and losing are equally likely (exact, two
    sides; McNemar 1947)."""
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / float(2**n))


def gate(worsening: float | None, margin: float = 0.0, allowed: float = 0.0) -> bool:
    """Whether something may pass: it is not surely worse by more than is allowed; what is missing never passes.

    Args:
        worsening: by how much it is worse: of a loss the rise, of a metric the fall.
        margin: from there to the bound of its interval that speaks for it.
    """
    return worsening is not None and math.isfinite(worsening) and worsening - margin <= allowed + 1e-12


def bits_per_byte(pairs: Sequence[tuple[EvaluatedRow, EvaluatedRow]]) -> tuple[list[EvaluatedRow], list[EvaluatedRow]]:
    """Scores by which models with different tokenizers compare: bits per UTF-8 byte of the same supervised text.

    Rows of which one model saw another text (cut, or written by another template) are left out.
    """

    def rescaled(row: EvaluatedRow) -> EvaluatedRow:
        bits = None if row.loss is None else row.loss * row.tokens / (math.log(2) * row.bytes)
        return EvaluatedRow(line=row.line, content=row.content, loss=bits, tokens=row.bytes)

    same = [(a, b) for a, b in pairs if a.bytes == b.bytes > 0]
    return [rescaled(a) for a, _ in same], [rescaled(b) for _, b in same]
