"""What plots of losses have in common: the vertical axis, the strokes of a curve, how strongly it is smoothed."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

from backprop.runs.state import usual_smoothing

from backprop_tui.charts.canvas import LABEL, SYMBOLS, Axis, Raster, Symbols
from backprop_tui.charts.series import SMOOTHING, Bucket, Curve
from backprop_tui.remembered import remember
from backprop_tui.text import Row
from backprop_tui.widgets.cells import Cells

LABELS = LABEL + 1
"""Cells left of the plot for the numbers of the vertical axis."""
SOLID = "1"
"""A stroke without gaps; in others each ``0`` is a column of dots that is left out."""


def reaching(top: int, bottom: int, other_top: int, other_bottom: int) -> tuple[int, int]:
    """A stroke from ``top`` to ``bottom``, made longer until it touches its neighbour's."""
    return min(top, other_bottom), max(bottom, other_top)


class CurvePlot(Cells):
    """Draws curves of losses; a subclass says which, and over what."""

    log_y = False
    chosen_smoothing: int | None = None
    """Index into ``SMOOTHING``; open: a light average for a short run, a heavier one for a long one."""
    symbols: ClassVar[Symbols] = SYMBOLS[0]
    """Of all plots: what a font lacks it lacks everywhere."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._axis = Axis()

    @property
    def longest(self) -> int:
        """Steps of the longest run that is drawn."""
        raise NotImplementedError

    def toggle_log(self) -> None:
        self.log_y = not self.log_y
        self.redraw()

    def smooth_more(self, by: int) -> None:
        """Choose the next stronger (``by`` 1) or weaker (-1) average."""
        self.chosen_smoothing = max(0, min(len(SMOOTHING) - 1, self.smoothing + by))
        self.redraw()

    @property
    def smoothing(self) -> int:
        """Index into ``SMOOTHING`` of the average that is drawn."""
        if self.chosen_smoothing is not None:
            return self.chosen_smoothing
        return SMOOTHING.index(usual_smoothing(self.longest))

    def next_symbols(self) -> None:
        """Change to the next set of symbols; it is remembered."""
        CurvePlot.symbols = SYMBOLS[(SYMBOLS.index(self.symbols) + 1) % len(SYMBOLS)]
        remember("symbols", self.symbols.name)
        self.redraw()

    @staticmethod
    def take_symbols(name: str) -> None:
        """Draw with the symbols of this name; without one as the terminal can: Linux's console has no braille."""
        name = name or ("ascii" if os.environ.get("TERM") == "linux" else "")
        CurvePlot.symbols = next((each for each in SYMBOLS if each.name == name), SYMBOLS[0])

    def _columns(self, curve: Curve, x_of: Callable[[int], int]) -> list[tuple[int, Bucket]]:
        """The buckets that fall on each column of dots, as one."""
        found: list[tuple[int, Bucket]] = []
        for step, bucket in curve.buckets():
            if self.log_y and bucket.low <= 0:
                continue
            x = x_of(step)
            if found and found[-1][0] == x:
                found[-1] = (x, found[-1][1].merged(bucket))
            else:
                found.append((x, bucket))
        return found

    def _draw_raw(self, raster: Raster, columns: list[tuple[int, Bucket]], ink: str) -> None:
        """From the lowest to the highest value of each column: no spike is lost."""
        previous: tuple[int, int, int] | None = None
        for x, bucket in columns:
            top, bottom = self._y(bucket.high, raster), self._y(bucket.low, raster)
            if previous is not None and x - previous[0] > 1:
                raster.line(previous[0], sum(previous[1:]) // 2, x, (top + bottom) // 2, ink)
            elif previous is not None:
                top, bottom = reaching(top, bottom, *previous[1:])
            raster.column(x, top, bottom, ink)
            previous = None if bucket.has_gap else (x, top, bottom)

    def _draw_average(
        self, raster: Raster, columns: list[tuple[int, Bucket]], ink: str, stroke: str = SOLID
    ) -> list[tuple[int, int]]:
        """The average that was chosen; the dots that it goes through."""
        averages = [(x, bucket.smooth[self.smoothing]) for x, bucket in columns]
        places = [(x, self._y(value, raster)) for x, value in averages if value > 0 or not self.log_y]
        raster.stroke = stroke
        for (x0, y0), (x1, y1) in pairwise(places):
            if x1 - x0 > 1:
                raster.line(x0, y0, x1, y1, ink)
            else:
                raster.column(x1, *reaching(y1, y1, y0, y0), ink)
        raster.stroke = SOLID
        return places

    def _y(self, value: float, raster: Raster) -> int:
        return round((1 - self._axis.share(value)) * (raster.dots_down - 1))

    def _body(self, raster: Raster) -> list[Row]:
        """The raster with the vertical axis at its left."""
        labels = {round((1 - share) * (raster.height - 1)): text for share, text in self._axis.labels()}
        rows: list[Row] = []
        for y in range(raster.height):
            label = labels.get(y)
            axis: Row = [(f"{label or '':>{LABELS - 1}} ", "muted"), ("┤" if label else "│", "rule")]
            rows.append(axis + raster.row(y))
        return rows

    def _bottom(self, raster: Raster, unit: str, labels: list[tuple[int, str]]) -> Row:
        """The horizontal axis: each label under the column of dots where it belongs, as far as there is room."""
        text = [" "] * raster.width
        for x, label in labels:
            start = min(raster.width - len(label), x // self.symbols.columns - len(label) // 2)
            if start >= 0 and all(c == " " for c in text[max(0, start - 1) : start + len(label) + 1]):
                text[start : start + len(label)] = label
        return [(f"{unit:>{LABELS - 1}}  ", "muted"), ("".join(text), "muted")]
