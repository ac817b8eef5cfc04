"""Learning rate, gradient norm, speed, and the margin of preferences: a number each and its course over the run."""

from __future__ import annotations

from math import isnan

from backprop_tui.charts.canvas import SYMBOLS, Raster, Symbols
from backprop_tui.charts.series import Curve, RunSeries, shown_steps
from backprop_tui.text import Row
from backprop_tui.widgets.cells import Cells, cut, heading, pad

_GAP = 3
"""Cells between two series side by side."""
_FOUR = 12
"""Rows that four of them take, one under the other."""
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
    if width < 1:
        return []
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
    """Three series side by side in a low place, three or four one under the other in a narrow and high one."""

    series: RunSeries | None = None
    total = 0
    symbols = SYMBOLS[0]

    def show(self, series: RunSeries | None, total: int, symbols: Symbols) -> None:
        seen = (0, 0, total, symbols) if series is None else (id(series.loss), series.loss.last_step, total, symbols)
        self.series, self.total, self.symbols = series, total, symbols
        self.redraw_for(seen)

    def rows(self, width: int, height: int) -> list[Row]:
        if self.series is None:
            return []
        norm = self.series.grad_norm.last
        small = [
            ("learning rate", self.series.learning_rate, "{:.2e}"),
            ("gradient norm", self.series.grad_norm, "{:.2f}" if norm < 1000 else "{:.1e}"),
            ("tokens/s", self.series.tokens_per_second, "{:,.0f}"),
        ]
        if len(self.series.margin.buckets()):  # of a run on preferences it is what matters
            right = "" if self.series.accuracy is None else f" {self.series.accuracy:.0%} right"
            small = [("margin", self.series.margin, "{:.3f}" + right), *small[0 if height >= _FOUR else 1 :]]
        readings = [
            (title, curve, "–" if isnan(curve.last) else form.format(curve.last)) for title, curve, form in small
        ]
        shown = shown_steps(self.series.loss.last_step, self.total)
        if height < 6:
            return self._beside(readings, shown, width)
        rows: list[Row] = []
        tall = max(1, height // len(readings) - 2)
        for title, curve, value in readings:
            rows += [heading(title, width, value), *course(curve, shown, width, tall, self.symbols), []]
        return rows

    def _beside(self, readings: list[tuple[str, Curve, str]], shown: int, width: int) -> list[Row]:
        each = (width - 2 * _GAP) // 3
        numbers: Row = []
        bars: Row = []
        for title, curve, value in readings:
            numbers += pad(cut([(f"{title} ", "muted"), (value, "strong")], each), each)
            bars.append((sparkline(curve, shown, each, self.symbols.name == "ascii"), "info"))
            for row in (numbers, bars):
                row.append((" " * _GAP, "text"))
        return [numbers[:-1], bars[:-1]]
