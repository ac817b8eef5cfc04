"""Moving over the rows of the open file: the table, the search whose hits are stepped through, the filter."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from backprop.core.errors import InputError
from textual.app import ComposeResult
from textual.containers import Vertical

from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.rows import RowTable, next_in
from backprop_tui.screens.dataset.search import Known, Test, row_test, scan, text_test
from backprop_tui.screens.tasks import Notice, RowsChanged, Tasks
from backprop_tui.text import rows_of, safe


class Browser(Vertical):
    """The rows that are shown, and the row under the cursor."""

    def __init__(self, tasks: Tasks, known: Known, *, id: str) -> None:
        super().__init__(id=id)
        self._tasks, self._known = tasks, known
        self.table = RowTable(tasks, id="rows")
        self.words: dict[str, str] = {}
        """What is searched for (``search``) and what is filtered by (``filter``)."""
        self._hits: dict[str, array[int]] = {}
        """Rows found for each so far, in order."""
        self._seek = False
        """The first hit of the search is to be gone to, as soon as there is one."""
        self._to_the_end = False

    def compose(self) -> ComposeResult:
        yield self.table

    def open(self, opened: OpenFile) -> None:
        """Show another file, from its first row, all of it."""
        for kind in ("search", "filter"):
            self.forget(kind)
        self._tasks.forget("go")
        self._seek = self._to_the_end = False
        self.table.open(opened)

    @property
    def opened(self) -> OpenFile | None:
        """The file that is on screen."""
        return self.table.opened

    def flush(self) -> None:
        """Show as many rows as are known by now."""
        if self.opened is None:
            return
        # Asked first: what is found after that is shown by the next flush.
        complete = self.opened.source.complete
        self._show()
        if self._to_the_end:
            self.table.cursor = self.table.count - 1
            self._to_the_end = not complete
        if self._seek and self._hits.get("search"):
            self._seek = False
            self.step(1, stay=True)

    def _show(self) -> None:
        hits = self._hits.get("filter")
        if self.opened is not None:
            self.table.show(hits, self.opened.source.known if hits is None else len(hits))

    @property
    def row(self) -> int:
        """The row (index in the file) under the cursor."""
        return self.table.row_of(self.table.cursor) or 0

    def where(self) -> str:
        """Which of how many rows that is."""
        if self.opened is None or not self.table.count:
            return ""
        return f"{self.table.cursor + 1:,} of {'' if self.opened.source.complete else '> '}{self.table.count:,}"

    def last(self) -> None:
        """Go to the last row; while rows are still being found, the last known one and on with it."""
        if self.opened is not None:
            self._to_the_end = not self.opened.source.complete
            self._show()
            self.table.cursor = self.table.count - 1

    def go_to_line(self, number: str) -> None:
        """Go to the row of a line of the file, as soon as it is found; without one, to the first."""
        self._to_the_end = False
        if self.opened is None or not number:
            self.table.cursor = 0
        else:
            line, find, unit = int(number), self.opened.source.find, self.opened.source.unit
            self._tasks.begin("go", f"going to {unit} {line:,}", lambda _: find(line), self.go_to_row)

    def go_to_row(self, row: int) -> None:
        """Put the cursor on a row of the file; where a filter hides it, on the next one that is shown."""
        self._show()
        order = self.table.order
        self.table.cursor = row if order is None else bisect_left(order, row)
        self.post_message(RowsChanged())

    # Search and filter

    def look_for(self, kind: str, words: str) -> None:
        """Search for words, or show only the rows that a filter lets through; without words, forget it."""
        if self.opened is None:
            return
        self.forget(kind)
        if words:
            try:
                meant = row_test(words, self.opened.file, self._known) if kind == "filter" else (text_test(words), "")
            except InputError as error:
                self.post_message(Notice(f"{error.message}; {error.hint}"))
                return
            self._scan(kind, words, self.opened.path, *meant)
        self.post_message(Notice())

    def _scan(self, kind: str, words: str, path: str, test: Test, note: str) -> None:
        self.words[kind] = words
        self.table.words = self.marked()
        hits = self._hits[kind] = array("Q")
        if kind == "search":
            self._seek = True
        else:
            self.table.cursor = 0

        self._tasks.begin(
            kind,
            f"{kind} {safe(words)!r}",
            lambda task: scan(path, test, hits, task),
            lambda whole: self._scanned(kind, "" if whole else " so far: stopped before the end", note),
        )

    def _scanned(self, kind: str, part: str, note: str) -> None:
        """The file was looked at: all of it, or until a person stopped it."""
        number = len(self._hits[kind])
        self._seek = self._seek and number > 0
        none = kind == "search" and not number
        found = f"search: {self.words[kind]!r} was not found" if none else f"{kind}: {rows_of(number)}"
        self.post_message(Notice(found + part + note))
        if kind == "filter":
            self.post_message(RowsChanged())

    def forget(self, kind: str) -> None:
        """End a search or a filter."""
        self._tasks.forget(kind)
        self.words.pop(kind, None)
        self._hits.pop(kind, None)
        self.table.words = self.marked()
        self.table.redraw()

    def marked(self) -> str:
        """What is searched for, which is marked wherever it stands."""
        return self.words.get("search", "")

    def step(self, by: int, *, stay: bool = False) -> None:
        """Go to the next (1) or previous (-1) hit of the search; with ``stay`` the row under the cursor counts."""
        row = next_in(self._hits["search"], self.row, by, stay=stay)
        if row is not None:
            self.go_to_row(row)

    def back(self) -> None:
        """End the search, or else the filter."""
        if "search" in self.words:
            self.forget("search")
        elif "filter" in self.words:
            row = self.row
            self.forget("filter")
            self.go_to_row(row)

    def shown(self) -> list[str]:
        """What is shown of the file, where that is not all of it."""
        marks = (("filter", "only "), ("search", "search "))
        return [
            f"{mark}{safe(self.words[kind])!r}: {len(self._hits[kind]):,}" for kind, mark in marks if kind in self.words
        ]
