"""Learning rate, gradient norm and speed: a number each and its course over the run."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan

from backprop_tui.charts.canvas import SYMBOLS, Raster, Symbols
from backprop_tui.charts.series import Curve, RunSeries, shown_steps
from backprop_tui.text import Row, count
from backprop_tui.widgets.cells import Cells, cut, heading, row_width

_Series = tuple[str, Curve, Callable[[float], str]]
"""A title, the values, and how one is written."""

_BARS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#%"


def sparkline(curve: Curve, shown: int, width: int, ascii_only: bool = False) -> str:
    """The means of the curve over ``shown`` steps as bars in one row of ``width`` cells, zero at the bottom."""
    levels = _levels(curve, shown, width)
    finite = [v for v in levels if v is not None]
    if not finite:
        return " " * width
    low, high = rounded_span(min(finite), max(finite))
    signs = _ASCII if ascii_only else _BARS
    top = len(signs) - 1
    return "".join(" " if v is None else signs[max(1, round((v - low) / (high - low) * top))] for v in levels)


def course(curve: Curve, shown: int, width: int, height: int, symbols: Symbols) -> list[Row]:
    """The means of the curve over ``shown`` steps as a line, zero at the bottom."""
    raster = Raster(width, height, symbols)
    span = curve.span()
    if span is None:
        return [[] for _ in range(height)]
    low, high = rounded_span(*span)
    previous: tuple[int, int] | None = None
    for x, mean in enumerate(_levels(curve, shown, raster.dots_across)):
        if mean is None:
            previous = None
            continue
        y = round((1 - (mean - low) / (high - low)) * (raster.dots_down - 1))
        raster.line(*(previous or (x, y)), x, y, "info")
        previous = (x, y)
    return [raster.row(y) for y in range(height)]


def rounded_span(low: float, high: float) -> tuple[float, float]:
    """Limits that change seldom while the values wander: zero, or a third below; the next eighth of an octave above."""
    if high <= 0 or high == low:
        return (0.0, high * 1.15) if high > 0 else (low - 1, high + 1)
    limit = 1e-12
    while limit < high:
        limit *= 2
    limit = next(limit * i / 8 for i in range(4, 9) if limit * i / 8 >= high)
    return min(0.0, low), limit


def _levels(curve: Curve, shown: int, width: int) -> list[float | None]:
    """The mean of each cell's steps; a cell that no step ends in repeats its left neighbour up to the last step."""
    sums, counts = [0.0] * width, [0] * width
    last = 0
    for step, bucket in curve.buckets():
        cell = min(width - 1, int((step - 1) / max(1, shown) * width))
        sums[cell] += bucket.mean
        counts[cell] += 1
        last = cell
    levels: list[float | None] = [None] * width
    for cell in range(last + 1 if curve.last_step else 0):
        levels[cell] = sums[cell] / counts[cell] if counts[cell] else (levels[cell - 1] if cell else None)
    return levels


class Readings(Cells):
    """Three series side by side in a low place, one under the other in a narrow and high one."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.series: RunSeries | None = None
        self.total = 0
        self.symbols = SYMBOLS[0]

    def show(self, series: RunSeries | None, total: int, symbols: Symbols) -> None:
        seen = (0, 0, total, symbols) if series is None else (id(series.loss), series.loss.last_step, total, symbols)
        self.series, self.total, self.symbols = series, total, symbols
        self.redraw_for(seen)

    def rows(self, width: int, height: int) -> list[Row]:
        if self.series is None:
            return []
        small: list[_Series] = [
            ("learning rate", self.series.learning_rate, "{:.2e}".format),
            ("gradient norm", self.series.grad_norm, lambda norm: f"{norm:.2f}" if norm < 1000 else f"{norm:.1e}"),
            ("tokens/s", self.series.tokens_per_second, count),
        ]
        shown = shown_steps(self.series.loss.last_step, self.total)
        if height < 6:
            return self._beside(small, shown, width)
        return self._below(small, shown, width, height)

    def _beside(self, series: list[_Series], shown: int, width: int) -> list[Row]:
        gap = 3
        each = (width - 2 * gap) // 3
        numbers: Row = []
        bars: Row = []
        for place, (title, curve, form) in enumerate(series):
            if place:
                numbers.append((" " * gap, "text"))
                bars.append((" " * gap, "text"))
            value = "–" if isnan(curve.last) else form(curve.last)
            cell: Row = [(title + " ", "muted"), (value, "strong")]
            cell = cut(cell, each)
            numbers += [*cell, (" " * (each - row_width(cell)), "text")]
            bars.append((sparkline(curve, shown, each, self.symbols.name == "ascii"), "info"))
        return [numbers, bars]

    def _below(self, series: list[_Series], shown: int, width: int, height: int) -> list[Row]:
        rows: list[Row] = []
        tall = max(1, (height - 6) // 3) if height >= 9 else 1
        for title, curve, form in series:
            value = "–" if isnan(curve.last) else form(curve.last)
            rows.append(heading(title, width, value))
            rows += course(curve, shown, width, tall, self.symbols)
            rows.append([])
        return rows
