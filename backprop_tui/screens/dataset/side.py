"""What is seen beside the table of rows (in a narrow terminal: instead of it): one of several panes."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import ComposeResult
from textual.widget import Widget
from textual.widgets import ContentSwitcher

from backprop_tui.keys import press
from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.findings import FindingsPane
from backprop_tui.screens.dataset.lengths import LengthsPane
from backprop_tui.screens.dataset.perplexity import ScoresPane
from backprop_tui.screens.dataset.row_view import VIEWS, RowView
from backprop_tui.screens.dataset.rows import RowTable
from backprop_tui.screens.dataset.statistics import statistics_lines
from backprop_tui.screens.dataset.tokens import Chosen
from backprop_tui.screens.tasks import Tasks
from backprop_tui.widgets.text_view import TextView


class Side(ContentSwitcher):
    """The panes; each begins what it shows where that was not done yet.

    Args:
        table: the rows, of which the one under the cursor is seen.
    """

    def __init__(self, chosen: Chosen, tasks: Tasks, *, id: str) -> None:
        super().__init__(id=id, initial="detail")
        self._chosen, self._tasks = chosen, tasks
        self.report, self.statistics = TextView(id="report"), TextView(id="statistics")
        self.findings, self.scores = FindingsPane(tasks, id="problems"), ScoresPane(chosen, tasks, id="scores")
        self.lengths = LengthsPane(chosen, tasks, id="lengths")
        self.table = RowTable(tasks, self.findings.lines_of, chosen, id="rows")
        self.stepped_to = 0
        """The line of the finding that a step went to last; 0 where the cursor moved on."""
        self.detail = RowView(chosen, self.findings.of_line, self.table.marked, tasks, id="detail")

    def compose(self) -> ComposeResult:
        yield from (self.detail, self.report, self.findings, self.lengths, self.statistics, self.scores)

    def forget(self) -> None:
        """Another file."""
        self._tasks.forget("clean", "check", "lengths", "score")
        self.stepped_to = 0
        for pane in (self.findings, self.lengths, self.scores):
            pane.forget()

    def show_row(self, *, again: bool = False) -> None:
        """Have the row under the cursor drawn."""
        row = self.table.row_of(self.table.cursor)
        if self.table.opened is None or self.current != "detail":
            return
        if row is not None:
            self.detail.show_row(self.table.opened, row, again=again)
        elif not self.table.count:
            self.detail.show_none()

    @property
    def steps_to(self) -> str:
        """What a step goes to; empty where there is nothing."""
        hits = self.table.number_of("search")
        return "hit" if hits else "finding" if hits is None and self.findings.line_after(0, 1) is not None else ""

    def next_view(self) -> None:
        """See the row in the next form."""
        self.detail.next_view()
        if VIEWS[self.detail.view] == "tokens":
            self._chosen.need_tokenizer()
        self.show_row(again=True)

    def check(self, opened: OpenFile, *, anew: bool = True) -> None:
        """Check every row; where that is not to be done ``anew``, only if it was not."""
        if anew or (self.findings.found is None and not self._tasks.goes_on("check")):
            self.findings.check(opened, self._chosen.rows, traces=self._chosen.traces)

    def step(self, by: int) -> str:
        """Go to the next or previous hit of a search, or without one finding; why that cannot be, in words."""
        if "search" in self.table.words:
            self.table.step(by)
        elif self.findings.found is None:
            check, *others = map(press, ("data.check", "data.next", "data.previous"))
            return f"{check} checks the file, then {' and '.join(others)} go to the next and the previous finding"
        elif (line := self.findings.line_after(self.stepped_to or self.table.line_of_cursor(), by)) is None:
            return "the check found nothing to look at"
        else:
            self.table.go_to_line(str(line))
            self.stepped_to = line
        return ""

    def count(self, opened: OpenFile) -> None:
        """Count the lengths where they are seen and were not counted; with the tokenizer, once it was looked for."""
        wanted = self.current == "lengths" and self.lengths.counted is None and not self._tasks.goes_on("lengths")
        if wanted and not self._chosen.need_tokenizer():
            self.lengths.count(opened)

    def draw_statistics(self, opened: OpenFile | None) -> None:
        """Show what is known of the file by now, where it is seen."""
        if self.current == "statistics" and opened is not None:
            known = (self.findings.found, self.lengths.counted, self._chosen, self.scores.report)
            self.statistics.show_rows(statistics_lines(opened, *known))

    def copy(self, opened: OpenFile, pane: Widget | None, take: Callable[[str], object]) -> None:
        """Give ``take`` what has the keys: the finding, what a pane says, or else the row as it stands in the file."""
        row = self.table.row_of(self.table.cursor)
        problem = self.findings.at_cursor()[1] if pane is self.findings else None
        if problem is not None:
            take(f"{opened.name}, {opened.source.unit} {problem.line}: {problem.code}: {problem.message}")
        elif isinstance(pane, TextView) and pane is not self.detail:
            take(pane.text)
        elif row is not None:
            self._tasks.begin("copy", "", lambda _: opened.row(row).raw.decode("utf-8", "replace"), take)
