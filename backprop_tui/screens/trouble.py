"""What went wrong, as one panel: the code, what is wrong, where, what to do, the log's end; and the keys that do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from backprop.core.definition import all_settings
from backprop.core.errors import BackpropError
from backprop.core.events import RunFailed
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_client import attach
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding
from textual.containers import Vertical
from textual.geometry import Size
from textual.message import Message
from textual.screen import Screen

from backprop_tui.hints import hint_here
from backprop_tui.remedy import place_of, remedy_of, remedy_words
from backprop_tui.screens.again import changed_settings
from backprop_tui.screens.base import ConfigureRun, OpenRun, ShowOn
from backprop_tui.screens.dialogs import Answer, AnswerList, Question
from backprop_tui.text import short_path
from backprop_tui.widgets.log import Problem, ProblemPane

_CLOSE, _COPY = "", "copy"
_EDGES = 7
"""Rows of the window that are neither the text nor an answer."""
Way = tuple[Answer, Message]
"""What a person can do about it: the answer, and what it asks the application for."""


def show_error(
    screen: Screen[Any], error: BackpropError, values: Mapping[str, Any] | None = None, log: str = ""
) -> None:
    """Show an error until a person has answered it, with what can be done about it from here.

    Args:
        values: the settings that it came of, where they can be changed.
        log: the last lines of the engine's, or what else is to be reported.
    """
    app = screen.app
    if isinstance(app.screen, ErrorPanel):  # one at a time
        app.notify(f"{error.message}. {hint_here(error.hint)}", title=error.code, severity="error", timeout=10)
        return
    found = ways(error, values)

    def answered(value: str | None) -> None:
        for answer, message in found:
            if answer.value == value:
                app.post_message(message)

    problem = Problem(f"[{error.code}]", error.message, hint_here(error.hint), place=place_of(error), log=log)
    app.push_screen(ErrorPanel(problem, [answer for answer, _ in found]), answered)


def edit(screen: Screen[Any], path: str, failed: RunFailed | None) -> None:
    """Configure a new run from the settings of the one in ``path``, with what its error proposes filled in."""
    try:
        record = RunDirectory(Path(path)).find_record()
    except BackpropError as error:
        show_error(screen, error)
        return
    remedy = remedy_of(failed.details) if failed else {}
    values = changed_settings(record.config, record.multi) | remedy
    screen.app.post_message(ConfigureRun(values, next(iter(remedy), "")))


def ways(error: BackpropError, values: Mapping[str, Any] | None = None) -> list[Way]:
    """What can be done about ``error`` from here; ``values``: the settings that it came of, where it came of some."""
    details, found = error.details, list[Way]()
    field, remedy = str(details.get("field", "")), remedy_of(details)
    if values is not None and remedy:
        answer = Answer("edit", "e", f"Edit the settings, with {remedy_words(remedy)}", "")
        found.append((answer, ConfigureRun({**values, **remedy}, next(iter(remedy)))))
    elif values is not None and field in all_settings():
        found.append((Answer("edit", "e", f"Change {field}", ""), ConfigureRun(values, field)))
    if error.code == "RUN_ALREADY_ACTIVE" and (run := str(details.get("run", ""))):
        found.append((Answer("watch", "w", "Watch it", ""), OpenRun(partial(attach, Path(run)), Path(run))))
    path, lines = str(details.get("path", "")), details.get("lines") or [details.get("line", 0)]
    if path and error.code.startswith("DATASET_") and Path(path).is_file():
        place = f"line {lines[0]} of {short_path(path)}" if lines[0] else short_path(path)
        asked = ShowOn("data", path, line=int(lines[0]))
        found.append((Answer("data", "d", f"Look at {place}", ""), asked))
    return found


class ErrorPanel(Question):
    """Stays until it is answered: the arrows choose what to do, page up and down scroll the text."""

    BINDINGS = [
        Binding("pageup", "scroll(-1)", show=False),
        Binding("pagedown", "scroll(1)", show=False),
    ]

    def __init__(self, problem: Problem, answers: Sequence[Answer] = ()) -> None:
        always = (Answer(_CLOSE, "c", "Close", ""), Answer(_COPY, "y", "Copy all of it", ""))
        super().__init__("what went wrong", "", (*answers, *always))
        self.told = _Told(problem, self.answers)

    def compose(self) -> ComposeResult:
        with Vertical(id="box") as box:
            box.border_title = self.question
            yield self.told
            yield self.answers

    def action_scroll(self, pages: int) -> None:
        self.told.action_pages(pages)

    def dismiss(self, result: str | None = None) -> AwaitComplete:
        if result != _COPY:
            return super().dismiss(result)
        self.app.copy_to_clipboard(self.told.text)
        return AwaitComplete()


class _Told(ProblemPane, can_focus=False):
    """As high as the text, as far as there is room."""

    def __init__(self, problem: Problem, below: AnswerList) -> None:
        super().__init__()
        self.problem, self._below = problem, below

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        room = self.app.size.height - self._below.get_content_height(Size(), Size(), width) - _EDGES
        return max(3, min(len(self.content(width - self.margin)) + 1, room))
