"""The losses of several runs over each other, told apart by colour, by stroke and by the number on each curve."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from backprop.runs.describe import number
from backprop.runs.state import RunState

from backprop_tui.charts.canvas import Raster, round_step
from backprop_tui.charts.curve_plot import LABELS, SOLID, CurvePlot
from backprop_tui.charts.series import SMOOTHING, Curve
from backprop_tui.text import Row, clock, count, safe, short_number
from backprop_tui.widgets.cells import cut, heading

STYLES = (
    ("smooth", SOLID),
    ("mark", "11111100"),
    ("good", "1100"),
    ("bad", "1111110010"),
    ("strong", "1111000000"),
    ("info", "10"),
)
"""Ink and stroke of each run."""
MOST = len(STYLES)
AXES = {"step": count, "time": clock, "tokens": short_number}
"""What the curves can be drawn over, and how its numbers are written."""
_MARKS = 4
"""Numbers on each curve."""
_STROKE = 6
"""Cells of a stroke in the legend."""
_TIMES = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)


class Overlaid:
    """One run of an overlay."""

    def __init__(self, state: RunState) -> None:
        curves = state.curves
        self.run_id, self.status = state.run_id, state.status
        self.name = str(state.config.get("run_name") or "")
        self.curve = Curve()
        for step, loss in zip(curves.step, curves.loss, strict=True):
            self.curve.add(step, loss)
        self._steps = curves.step
        tokens = (rate * seconds for rate, seconds in zip(curves.tokens_per_second, curves.seconds, strict=True))
        self._along: dict[str, Sequence[float]] = {
            "step": curves.step,
            "time": list(accumulate(curves.seconds)),
            "tokens": list(accumulate(tokens)),
        }

    def at(self, axis: str, step: int) -> float:
        """How far the run was at ``step``: in steps, seconds of its steps, or tokens."""
        return self._along[axis][min(bisect_left(self._steps, step), len(self._steps) - 1)]

    def end(self, axis: str) -> float:
        """How far it came."""
        return self._along[axis][-1] if self._steps else 0.0


class OverlayPlot(CurvePlot, can_focus=True):
    """Shows a curve of each run; a shorter run simply ends."""

    runs: Sequence[Overlaid] = ()
    axis = next(iter(AXES))

    def show(self, runs: Sequence[Overlaid]) -> None:
        self.runs = runs
        self.redraw()

    def next_axis(self) -> None:
        """Draw over the next of ``AXES``."""
        names = list(AXES)
        self.axis = names[(names.index(self.axis) + 1) % len(names)]
        self.redraw()

    @property
    def longest(self) -> int:
        return max((run.curve.last_step for run in self.runs), default=0)

    def rows(self, width: int, height: int) -> list[Row]:
        weight = SMOOTHING[self.smoothing]
        how = f"smoothed {weight:g}" if weight else "raw"
        title = heading(f"loss of {len(self.runs)} runs", width, f"{how}{', log' * self.log_y}, by {self.axis}")
        spans = [span for run in self.runs if (span := self._span(run)) is not None]
        legend = [self._legend(place, run, width) for place, run in enumerate(self.runs)]
        if not spans:
            return [title, *legend, [], [("  no step had a loss that can be drawn", "warn")]]
        raster = Raster(max(4, width - LABELS - 1), max(1, height - 2 - len(legend)), self.symbols)
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        self._axis.follow(low, high, log=self.log_y, parts=max(3, min(8, raster.height // 2)))
        most = max(run.end(self.axis) for run in self.runs) or 1.0
        for place, run in enumerate(self.runs):
            self._draw(raster, run, place, most)
        return [title, *legend, *self._body(raster), self._bottom(raster, self.axis, self._labels(raster, most))]

    def _span(self, run: Overlaid) -> tuple[float, float] | None:
        """The lowest and highest value that is drawn."""
        if not SMOOTHING[self.smoothing]:
            return run.curve.span(positive=self.log_y)
        averages = [bucket.smooth[self.smoothing] for _, bucket in run.curve.buckets()]
        averages = [value for value in averages if value > 0 or not self.log_y]
        return (min(averages), max(averages)) if averages else None

    def _draw(self, raster: Raster, run: Overlaid, place: int, most: float) -> None:
        """One curve, with its number on it where those of the others are not."""
        ink, stroke = STYLES[place]
        columns = self._columns(run.curve, lambda step: self._x(run.at(self.axis, step), most, raster))
        if SMOOTHING[self.smoothing]:
            dots = self._draw_average(raster, columns, f"{ink}+bold", stroke)
        else:
            self._draw_raw(raster, columns, ink)
            dots = [(x, self._y(bucket.mean, raster)) for x, bucket in columns]
        for part in range(_MARKS if dots else 0):
            share = (part + (place + 1) / len(self.runs)) / _MARKS
            raster.mark(*dots[round(share * (len(dots) - 1))], str(place + 1), f"{ink}+bold")

    def _legend(self, place: int, run: Overlaid, width: int) -> Row:
        ink, stroke = STYLES[place]
        sample = Raster(_STROKE, 1, self.symbols)
        sample.stroke = stroke if SMOOTHING[self.smoothing] else SOLID
        middle = sample.dots_down // 2
        sample.line(0, middle, sample.dots_across - 1, middle, f"{ink}+bold")
        loss = run.curve.smooth[self.smoothing] if run.curve.smooth else None
        steps = run.curve.last_step
        end = f"{number(loss)} after {count(steps)} step{'s' * (steps != 1)}" if steps else "took no step"
        words: Row = [(f" {run.run_id[:12]:<12} ", "strong"), (f"{end:<26} {run.status:<11} ", "text")]
        return cut([(f"{place + 1} ", f"{ink}+bold"), *sample.row(0), *words, (safe(run.name), "muted")], width)

    def _x(self, value: float, most: float, raster: Raster) -> int:
        return round(min(1.0, value / most) * (raster.dots_across - 1))

    def _labels(self, raster: Raster, most: float) -> list[tuple[int, str]]:
        parts = max(2, raster.width // 12)
        every = round_step(most, parts)
        if self.axis == "time":
            every = next((each for each in _TIMES if each * parts >= most), every)
        elif self.axis == "step":
            every = max(1.0, every)
        values = [every * i for i in range(1, int(most / every + 1e-9) + 1)]
        return [(self._x(value, most, raster), AXES[self.axis](value)) for value in values]
