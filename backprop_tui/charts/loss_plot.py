"""The loss as a picture: raw values faint, the smoothed ones bright, held-out losses as marks."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from backprop.core.events import AnyEvent, Evaluated
from backprop.runs.describe import number
from backprop.runs.state import RunState

from backprop_tui.charts.canvas import Raster, step_labels
from backprop_tui.charts.curve_plot import LABELS, CurvePlot
from backprop_tui.charts.series import SMOOTHING, Curve, shown_steps
from backprop_tui.charts.timeline import marks, timeline
from backprop_tui.text import Row
from backprop_tui.widgets.cells import cut, heading, row_width

_ROOM_FOR_MARKS = 8
"""Rows of a plot that can spare one for the timeline."""


class LossPlot(CurvePlot):
    """Shows a ``Curve`` of losses; the horizontal axis is in steps."""

    curve = Curve()
    evaluations: Sequence[Evaluated] = ()
    events: Sequence[AnyEvent] = ()
    total = 0
    waiting: Sequence[Row] = ()
    """Shown instead of the axes while there is no step."""

    def show(self, curve: Curve, state: RunState | None, total: int, waiting: list[Row]) -> None:
        """Draw ``curve`` over ``total`` steps with what else happened in the run of ``state``."""
        self.curve, self.total, self.waiting = curve, total, waiting
        self.evaluations, self.events = (state.evaluations, state.notable) if state else ((), ())
        happened = (len(self.evaluations), len(self.events))
        seen = (id(curve), curve.last_step, happened, total, waiting if not curve.last_step else [])
        self.redraw_for(seen)

    @property
    def longest(self) -> int:
        return max(self.total, self.curve.last_step)

    def rows(self, width: int, height: int) -> list[Row]:
        if not self.curve.last_step:
            return [heading("loss", width), *self._waiting_rows(width, height - 1)]
        span = self._span()
        if span is None:
            why = "no positive loss to show on a logarithmic axis" if self.log_y else "no step had a finite loss"
            return [self._title(width), [], [(f"  {why}", "warn")]]
        found = marks(self.events) if height >= _ROOM_FOR_MARKS else []
        plot_height = max(1, height - 2 - bool(found))
        self._axis.follow(*span, log=self.log_y, parts=max(3, min(8, plot_height // 2)))
        raster = Raster(max(4, width - LABELS - 1), plot_height, self.symbols)
        shown = shown_steps(self.curve.last_step, self.total)
        self._draw(raster, shown)
        for step, loss in self._held_out():
            raster.mark(self._x(max(1, step), shown, raster), self._y(loss, raster), "◆", "mark")
        rows = [self._title(width), *self._body(raster)]
        if found:
            cells = timeline(
                found, raster.width, lambda step: self._x(max(1, step), shown, raster) // self.symbols.columns
            )
            rows.append([(f"{'events':>{LABELS - 1}}  ", "muted"), *cells])
        labels = [(self._x(step, shown, raster), label) for step, label in step_labels(shown, raster.width)]
        return [*rows, self._bottom(raster, "step", labels)]

    def _waiting_rows(self, width: int, height: int) -> list[Row]:
        rows = self.waiting[-max(0, height) :]
        left = max(2, (width - max((row_width(row) for row in rows), default=0)) // 2)
        above = max(0, (height - len(rows)) // 2)
        return [[] for _ in range(above)] + [cut([(" " * left, "text"), *row], width) for row in rows]

    def _span(self) -> tuple[float, float] | None:
        span = self.curve.span(positive=self.log_y)
        losses = [loss for _, loss in self._held_out()]
        if span is None or not losses:
            return span
        return min(span[0], *losses), max(span[1], *losses)

    def _held_out(self) -> list[tuple[int, float]]:
        """Step and held-out loss of each evaluation that can be drawn."""
        found = [(event.step, event.loss) for event in self.evaluations if event.loss is not None]
        return [(step, loss) for step, loss in found if loss > 0 or not self.log_y]

    def _title(self, width: int) -> Row:
        weight = SMOOTHING[self.smoothing]
        last = None if isnan(self.curve.last) else self.curve.last
        parts: Row = [("━ ", "raw"), (number(last), "text"), (" raw", "muted")]
        if weight:
            average = self.curve.smooth[self.smoothing] if self.curve.smooth else None
            parts += [("  ━ ", "smooth+bold"), (number(average), "strong"), (f" smoothed {weight:g}", "muted")]
        if self.evaluations:
            parts += [("  ◆ ", "mark"), (number(self.evaluations[-1].loss), "strong"), (" held-out", "muted")]
        if self.curve.gaps:
            parts += [(f"  {self.curve.gaps} not finite", "bad")]
        if self.log_y:
            parts += [("  log", "muted")]
        rule = max(0, width - 6 - row_width(parts))
        return cut([("loss ", "info"), ("─" * rule + " ", "rule"), *parts], width)

    def _draw(self, raster: Raster, shown: int) -> None:
        """Raw first, then the average over it: in a shared cell the average is seen."""
        columns = self._columns(self.curve, lambda step: self._x(step, shown, raster))
        self._draw_raw(raster, columns, "raw")
        if SMOOTHING[self.smoothing]:
            self._draw_average(raster, columns, "smooth+bold")

    def _x(self, step: float, shown: int, raster: Raster) -> int:
        return round((step - 1) / max(1, shown - 1) * (raster.dots_across - 1))
