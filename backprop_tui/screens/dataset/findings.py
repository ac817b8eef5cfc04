"""What is wrong with the rows: a check in the background, its findings listed while it goes on."""

from __future__ import annotations

from array import array
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

from backprop.core.errors import InputError
from backprop.core.events import Problem
from backprop.core.methods import Rows
from backprop.data.example import PROBLEM_CODES

from backprop_tui.keys import press
from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.rows import next_in
from backprop_tui.screens.tasks import GoToLine, Notice, RowsChanged, Task, Tasks
from backprop_tui.text import SEVERITY, Row, fit, safe
from backprop_tui.widgets.list_view import ListView

if TYPE_CHECKING:
    from backprop.data.validate import Validation

_OF_THE_FILE = ("duplicate_row", "held_out_overlap", "special_token", "nul_byte", "mixed_format", "no_pair", "no_label")
"""Findings that reading the row alone does not give."""
_ORDER = list(SEVERITY)
_Found = tuple[Sequence[Problem], Mapping[str, int], "Validation | None"]
"""Findings, how many there are of each code, and at the end the whole."""


class FindingsPane(ListView):
    """Counts per code, then every finding with its line.

    Enter on a code shows its findings alone (and again: all of them); enter on a finding goes to its row.
    """

    def __init__(self, tasks: Tasks, *, id: str) -> None:
        super().__init__(id=id)
        self._tasks = tasks
        self.found: Validation | None = None
        self._bad_lines: array[int] = array("Q")
        self._problems: Sequence[Problem] = ()
        self._shown: Sequence[Problem] = ()
        self._codes: list[tuple[str, str, int]] = []
        self._only = ""
        self._empty = ""
        self._unit = "line"

    # Checking

    def forget(self) -> None:
        """Another file."""
        self.found = None
        self._bad_lines = array("Q")
        self._say("not checked")

    def check(self, opened: OpenFile, rows: Rows = "conversation", *, traces: bool = False) -> None:
        """Check every row of a file that a run learns from ``rows`` in, in a thread."""

        def check(task: Task[_Found]) -> _Found:
            from backprop.data.validate import validate

            def so_far(problems: Sequence[Problem], counts: Mapping[str, int]) -> None:
                task.so_far(lambda: (list(problems), dict(counts), None))

            found = validate(
                opened.path,
                rows=rows,
                traces=traces,
                progress=task.progress,
                cancelled=task.stopped,
                so_far=so_far,
            )
            return found.problems, found.problem_counts, found

        self._unit = opened.source.unit
        self._say("checking every row …")
        self._tasks.begin("check", "checking", check, self._take)

    def _take(self, news: _Found) -> None:
        """List what was found; at the end, say so."""
        problems, counts, found = news
        if problems:
            self._list(problems, counts)
        if found is None:
            return
        self.found = found
        lines = {problem.line for problem in found.problems if problem.line and problem.severity != "info"}
        self._bad_lines = array("Q", sorted(lines))
        part = "" if found.complete else ", stopped before the end"
        if not found.problems:
            self._say(f"nothing to say about {found.rows:,} rows{part}")
        said = f"checked {found.rows:,} rows: {found.invalid:,} unusable, {len(lines):,} to look at{part}"
        keys = f" · {press('data.problems')} lists them, {press('data.next')} goes to the next"
        hint = keys if found.problem_counts and self.screen.focused is not self else ""  # the news of it comes later
        self.post_message(Notice(said + hint))
        self.post_message(RowsChanged())

    def of_line(self, line: int) -> list[Row]:
        """What the check said of one line, beyond what reading the row alone tells."""
        return [
            [(f"! {problem.code}: {safe(problem.message)}", "warn")]
            for problem in (self.found.problems if self.found is not None else ())
            if problem.line == line and problem.code in _OF_THE_FILE
        ]

    def lines_of(self, code: str) -> tuple[Container[int], str]:
        """The lines with a finding of this code, and how many are missing where not all are listed.

        Raises:
            InputError: nothing was checked yet.
        """
        if self.found is None:
            hint = f"press {press('data.check')} first, then filter by what was found"
            raise InputError("the file was not checked yet", hint=hint)
        lines = {problem.line for problem in self.found.problems if problem.code == code}
        more = self.found.problem_counts.get(code, 0) - sum(problem.code == code for problem in self.found.problems)
        return lines, f" ({more:,} more findings are counted and not listed)" if more else ""

    def at_cursor(self) -> tuple[str, Problem | None]:
        """The code under the cursor, and the finding where it is one."""
        place = self.cursor - len(self._codes) - 1
        problem = self._shown[place] if 0 <= place < len(self._shown) else None
        code = self._codes[self.cursor][0] if place < -1 else ""
        return problem.code if problem is not None else code, problem

    def line_after(self, here: int, by: int) -> int | None:
        """The next (``by`` 1) or previous (-1) line with a finding, beginning again at the other end."""
        return next_in(self._bad_lines, here, by)

    # The list

    def _list(self, problems: Sequence[Problem], counts: Mapping[str, int]) -> None:
        """List findings, and how many there are of each code (more than are listed, maybe).

        The cursor begins on the first finding; a list that grows keeps the one under the cursor, and the code that is
        shown alone.
        """
        first, (_, chosen) = not self._codes, self.at_cursor()
        worst: dict[str, str] = {}
        for problem in problems:
            before = worst.get(problem.code, "info")
            worst[problem.code] = min(before, problem.severity, key=_ORDER.index)
        self._codes = sorted(
            ((code, worst.get(code, "info"), count) for code, count in counts.items()),
            key=lambda item: (_ORDER.index(item[1]), -item[2]),
        )
        self._problems = problems
        self._show_code(self._only if self._only in counts else "")
        place = next((at for at, problem in enumerate(self._shown) if problem is chosen), None)
        if place is not None or first:
            self.cursor = len(self._codes) + 1 + (place or 0)

    def _say(self, text: str) -> None:
        """Say in one line why there is nothing to list."""
        self._problems, self._codes, self._empty = (), [], text
        self._show_code("")

    def _show_code(self, code: str) -> None:
        self._only = code
        self._shown = [problem for problem in self._problems if problem.code == code] if code else self._problems
        self.resize_list(len(self._codes) + 1 + len(self._shown))

    def row_at(self, index: int, width: int) -> Row:
        if index < len(self._codes):
            code, severity, count = self._codes[index]
            mark, ink = SEVERITY[severity]
            words = "shown alone: enter shows all" if code == self._only else PROBLEM_CODES.get(code, "")
            return [(f"{count:>9,} {mark} {code}", ink), (f"  {words}", "muted")]
        if index == len(self._codes):
            return [("─" * width if self._codes else self._empty, "muted")]
        problem = self._shown[index - len(self._codes) - 1]
        mark, ink = SEVERITY[problem.severity]
        where = f"{self._unit} {problem.line:,}" if problem.line else "the file"
        message = safe(problem.message)
        if problem.field and problem.field not in message:
            message = f"{safe(problem.field)}: {message}"
        head = f"{where:>12} {mark} "
        return [(head, ink), (fit(message, width - len(head)), "text")]

    def action_choose(self) -> None:
        code, problem = self.at_cursor()
        if problem is not None:
            self.post_message(GoToLine(problem.line) if problem.line else Notice(problem.message))
        elif code:
            self._show_code("" if code == self._only else code)
