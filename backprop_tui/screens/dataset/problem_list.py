"""What a check found: counts per code first, then every finding with its line; choosing one goes there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backprop.core.events import Problem
from textual.message import Message

from backprop_tui.widgets.list_view import LineList
from backprop_tui.widgets.styled import Line, fit, one_line

_MARKS = {"error": "✗", "warning": "!", "info": "·"}
_STYLES = {"error": "error", "warning": "warning", "info": "dim"}
_ORDER = ("error", "warning", "info")


class ProblemList(LineList):
    """Enter on a code shows its findings alone (and again: all of them); enter on a finding goes to its row."""

    class Picked(Message):
        """A finding was chosen."""

        def __init__(self, problem: Problem) -> None:
            super().__init__()
            self.problem = problem

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._problems: Sequence[Problem] = ()
        self._codes: list[tuple[str, str, int]] = []
        self._only = ""
        self._empty = ""
        self._shown: Sequence[Problem] = ()
        self.unit = "line"

    def show(self, problems: Sequence[Problem], counts: Mapping[str, int], unit: str) -> None:
        """Show findings, and how many there are of each code (more than are listed, maybe).

        A list that grows keeps the finding under the cursor, and the code that is shown alone.
        """
        place = self.cursor - len(self._codes)
        worst: dict[str, str] = {}
        for problem in problems:
            before = worst.get(problem.code, "info")
            worst[problem.code] = min(before, problem.severity, key=_ORDER.index)
        self._codes = sorted(
            ((code, worst.get(code, "info"), count) for code, count in counts.items()),
            key=lambda item: (_ORDER.index(item[1]), -item[2]),
        )
        self._problems, self.unit = problems, unit
        self._choose(self._only if self._only in counts else "")
        if place > 0:
            self.cursor = len(self._codes) + place

    def say(self, text: str) -> None:
        """Say in one line why there is nothing to list."""
        self._problems, self._codes = (), []
        self._empty = text
        self._choose("")

    def _choose(self, code: str) -> None:
        self._only = code
        self._shown = [problem for problem in self._problems if problem.code == code] if code else self._problems
        self.count = len(self._codes) + 1 + len(self._shown)
        self.refresh()

    def line_at(self, index: int, width: int) -> Line:
        if index < len(self._codes):
            code, severity, count = self._codes[index]
            only = "  shown alone: enter shows all" if code == self._only else ""
            return [(f"{count:>9,} {_MARKS[severity]} {code}", _STYLES[severity]), (only, "dim")]
        if index == len(self._codes):
            return [("─" * width if self._codes else self._empty, "dim")]
        problem = self._shown[index - len(self._codes) - 1]
        where = f"{self.unit} {problem.line:,}" if problem.line else "the file"
        message = one_line(problem.message)
        if problem.field and problem.field not in message:
            message = f"{one_line(problem.field)}: {message}"
        head = f"{where:>12} {_MARKS[problem.severity]} "
        return [(head, _STYLES[problem.severity]), (fit(message, width - len(head)), "")]

    def action_choose(self) -> None:
        if self.cursor < len(self._codes):
            code = self._codes[self.cursor][0]
            self._choose("" if code == self._only else code)
        elif self.cursor > len(self._codes) and self.count:
            self.post_message(self.Picked(self._shown[self.cursor - len(self._codes) - 1]))
