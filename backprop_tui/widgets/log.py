"""What happened to a run, one event a line, the newest last; and what went wrong with it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from backprop.core.events import AnyEvent, Sample, Warning  # noqa: A004
from backprop.runs.describe import describe, level
from backprop.runs.state import RunState

from backprop_tui.hints import hint_here
from backprop_tui.text import Row, from_home, wrap_text
from backprop_tui.widgets.cells import heading, labelled, paragraph
from backprop_tui.widgets.text_view import TextView

_INK = {"info": "text", "warning": "warn", "error": "bad"}
_TIME = 10
"""Cells of the time of day and its gap."""


class Problem(NamedTuple):
    """What went wrong, what to do now, and what else is to be said."""

    title: str
    message: str
    hint: str
    more: Sequence[str] = ()
    place: str = ""
    """File and line, or setting."""
    log: str = ""
    """The last lines of the engine's log."""


class ProblemPane(TextView):
    problem: Problem | None = None

    def show(self, problem: Problem | None) -> None:
        self.problem = problem
        self.redraw()

    def content(self, width: int) -> list[Row]:
        if self.problem is None:
            return []
        title, message, hint, more, place, log = self.problem
        rows: list[Row] = [[(f"✗ {title}", "bad+bold")], [], *paragraph(message, width)]
        rows += paragraph(f"at {place}", width, "muted") if place and place not in message else []
        if hint:
            rows += [[], heading("what to do", width), *paragraph(hint, width, "strong")]
        for line in more:
            rows += [[], *paragraph(line, width, "muted")]
        if log:
            rows += [[], heading("the log ends", width), *paragraph(log, width, "muted")]
        return rows


class EventLog(TextView):
    """Events worth a line. Long ones are wrapped; of a sample only the beginning: its text has a place of its own."""

    tail: ClassVar[bool] = True
    events: Sequence[AnyEvent] = ()
    _wrapped: tuple[int, int, list[Row]] = (0, 0, [])
    """To which width, how many of the events, and their rows."""

    def show(self, state: RunState | None) -> None:
        events = () if state is None else state.notable
        if events is not self.events:
            self.events, self._wrapped, self.follows = events, (0, 0, []), True
        if len(events) != self._wrapped[1] or not events:
            self.redraw()

    def content(self, width: int) -> list[Row]:
        wrapped_at, taken, rows = self._wrapped
        if width != wrapped_at:
            taken, rows = 0, []
        for event in self.events[taken:]:
            rows += event_rows(event, width)
        self._wrapped = width, len(self.events), rows
        return rows or [[("nothing has happened yet", "muted")]]


def event_words(event: AnyEvent) -> str:
    """What happened, in words of the application; empty where it is worth none."""
    text = from_home(describe(event))
    return hint_here(text) if isinstance(event, Warning) else text


def event_rows(event: AnyEvent, width: int) -> list[Row]:
    """One event as rows: the time of day, then its words."""
    text = event_words(event)
    if not text:
        return []
    if isinstance(event, Sample):
        first, *more = wrap_text(text, width - _TIME)
        text = first[: width - _TIME - 1] + "…" if more else first
    at = time.strftime("%H:%M:%S", time.localtime(event.time))
    return labelled(f"{at}  ", text, width, _INK[level(event)])
