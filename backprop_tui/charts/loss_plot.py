"""The loss as a picture: raw values faint, the smoothed ones bright, held-out losses as marks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isnan

from backprop.core.events import AnyEvent, Evaluated
from backprop.runs.describe import number
from backprop.runs.state import RunState, usual_smoothing

from backprop_tui.charts.canvas import LABEL, SYMBOLS, Axis, Raster, step_labels
from backprop_tui.charts.series import SMOOTHING, Bucket, Curve, shown_steps
from backprop_tui.charts.timeline import marks, timeline
from backprop_tui.text import Row
from backprop_tui.widgets.cells import Cells, cut, heading, row_width

_LABELS = LABEL + 1
"""Cells left of the plot for the numbers of the vertical axis."""
_ROOM_FOR_MARKS = 8
"""Rows of a plot that can spare one for the timeline."""


def reaching(top: int, bottom: int, other_top: int, other_bottom: int) -> tuple[int, int]:
    """A stroke from ``top`` to ``bottom``, made longer until it touches its neighbour's."""
    return min(top, other_bottom), max(bottom, other_top)


class LossPlot(Cells):
    """Shows a ``Curve`` of losses; the horizontal axis is in steps."""

    curve = Curve()
    evaluations: Sequence[Evaluated] = ()
    events: Sequence[AnyEvent] = ()
    total = 0
    log_y = False
    chosen_smoothing: int | None = None
    """Index into ``SMOOTHING``; open: a light average for a short run, a heavier one for a long one."""
    symbols = SYMBOLS[0]
    waiting: Sequence[Row] = ()
    """Shown instead of the axes while there is no step."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._axis = Axis()

    def show(self, curve: Curve, state: RunState | None, total: int, waiting: list[Row]) -> None:
        """Draw ``curve`` over ``total`` steps with what else happened in the run of ``state``."""
        self.curve, self.total, self.waiting = curve, total, waiting
        self.evaluations, self.events = (state.evaluations, state.notable) if state else ((), ())
        happened = (len(self.evaluations), len(self.events))
        seen = (id(curve), curve.last_step, happened, total, waiting if not curve.last_step else [])
        self.redraw_for(seen)

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
        return SMOOTHING.index(usual_smoothing(max(self.total, self.curve.last_step)))

    def next_symbols(self) -> None:
        """Change to the next set of symbols."""
        self.symbols = SYMBOLS[(SYMBOLS.index(self.symbols) + 1) % len(SYMBOLS)]
        self.redraw()

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
        raster = Raster(max(4, width - _LABELS - 1), plot_height, self.symbols)
        shown = shown_steps(self.curve.last_step, self.total)
        self._draw(raster, shown)
        rows = [self._title(width), *self._body(raster, shown)]
        if found:
            cells = timeline(
                found, raster.width, lambda step: self._x(max(1, step), shown, raster) // self.symbols.columns
            )
            rows.append([(f"{'events':>{_LABELS - 1}}  ", "muted"), *cells])
        return [*rows, self._steps_axis(raster, shown)]

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
        columns = self._columns(raster, shown)
        previous: tuple[int, int, int] | None = None
        for x, bucket in columns:
            top, bottom = self._y(bucket.high, raster), self._y(bucket.low, raster)
            if previous is not None and x - previous[0] > 1:
                raster.line(previous[0], sum(previous[1:]) // 2, x, (top + bottom) // 2, "raw")
            elif previous is not None:
                top, bottom = reaching(top, bottom, *previous[1:])
            raster.column(x, top, bottom, "raw")
            previous = None if bucket.has_gap else (x, top, bottom)
        if SMOOTHING[self.smoothing]:
            averages = [(x, bucket.smooth[self.smoothing]) for x, bucket in columns]
            places = [(x, self._y(value, raster)) for x, value in averages if value > 0 or not self.log_y]
            for (x0, y0), (x1, y1) in pairwise(places):
                if x1 - x0 > 1:
                    raster.line(x0, y0, x1, y1, "smooth+bold")
                else:
                    raster.column(x1, *reaching(y1, y1, y0, y0), "smooth+bold")

    def _columns(self, raster: Raster, shown: int) -> list[tuple[int, Bucket]]:
        """The buckets that fall on each column of dots, as one."""
        found: list[tuple[int, Bucket]] = []
        for step, bucket in self.curve.buckets():
            if self.log_y and bucket.low <= 0:
                continue
            x = self._x(step, shown, raster)
            if found and found[-1][0] == x:
                found[-1] = (x, found[-1][1].merged(bucket))
            else:
                found.append((x, bucket))
        return found

    def _x(self, step: float, shown: int, raster: Raster) -> int:
        return round((step - 1) / max(1, shown - 1) * (raster.dots_across - 1))

    def _y(self, value: float, raster: Raster) -> int:
        return round((1 - self._axis.share(value)) * (raster.dots_down - 1))

    def _body(self, raster: Raster, shown: int) -> list[Row]:
        labels = {round((1 - share) * (raster.height - 1)): text for share, text in self._axis.labels()}
        for step, loss in self._held_out():
            raster.mark(self._x(max(1, step), shown, raster), self._y(loss, raster), "◆", "mark")
        rows: list[Row] = []
        for y in range(raster.height):
            label = labels.get(y)
            axis: Row = [(f"{label or '':>{_LABELS - 1}} ", "muted"), ("┤" if label else "│", "rule")]
            rows.append(axis + raster.row(y))
        return rows

    def _steps_axis(self, raster: Raster, shown: int) -> Row:
        text = [" "] * raster.width
        for step, label in step_labels(shown, raster.width):
            column = self._x(step, shown, raster) // self.symbols.columns
            start = min(raster.width - len(label), column - len(label) // 2)
            if start >= 0 and all(c == " " for c in text[max(0, start - 1) : start + len(label) + 1]):
                text[start : start + len(label)] = label
        return [(f"{'step':>{_LABELS - 1}}  ", "muted"), ("".join(text), "muted")]
