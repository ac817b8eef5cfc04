"""Second layer of the Data screen: search and filter, in the background, with progress and a way to stop."""

from __future__ import annotations

from array import array
from functools import partial

from backprop.core.errors import BackpropError
from textual import on

from backprop_tui.screens.dataset.browser import DataBrowser, next_in
from backprop_tui.screens.dataset.file import Job, Test, row_test, scan, text_test
from backprop_tui.screens.dataset.messages import ScanEnded
from backprop_tui.widgets.path_input import Prompt
from backprop_tui.widgets.styled import one_line


class DataSearch(DataBrowser):
    """A search marks rows to step through; a filter leaves the others out of the table."""

    def __init__(self, path: str = "") -> None:
        super().__init__(path)
        self.words: dict[str, str] = {}
        """What is searched for and what is filtered by."""
        self.hits: dict[str, array[int]] = {}
        """Rows found for each so far, in order."""
        self._seek = 0
        """The direction of a step that waits for a first hit."""

    def action_search(self) -> None:
        if self.opened is not None:
            self.query_one(Prompt).ask(
                "search", "Search", self.words.get("search", ""), help="text in any field, in any case · n and N step"
            )

    def action_filter(self) -> None:
        if self.opened is not None:
            self.query_one(Prompt).ask(
                "filter",
                "Show only rows with",
                self.words.get("filter", ""),
                help="text, or: bad · role:tool · format:alpaca · nothing: all rows",
            )

    @on(Prompt.Answered)
    def _answered(self, event: Prompt.Answered) -> None:
        self.table.focus()
        self.answer(event.kind, event.text)

    @on(Prompt.Left)
    def _prompt_left(self) -> None:
        if self.opened is not None:
            self.table.focus()

    def answer(self, kind: str, text: str) -> None:
        """Do what the prompt was asked for."""
        if kind == "open" and text:
            self.open_path(text)
        elif kind == "go":
            self.go_to_line(text)
        elif kind in ("search", "filter"):
            self.look_for(kind, text)

    def look_for(self, kind: str, words: str) -> None:
        """Search for words, or show only the rows that a filter lets through; without words, forget it."""
        opened = self.opened
        if opened is None:
            return
        self.forget(kind)
        if not words:
            self.flush()
            return
        try:
            test = text_test(words) if kind == "search" else row_test(words, opened.file)
        except BackpropError as error:
            self.say(f"{error.message}; {error.hint}")
            return
        self.words[kind] = words
        hits = self.hits[kind] = array("Q")
        self._seek = 1 if kind == "search" else self._seek
        self.begin(kind, f"{kind} {one_line(words)!r}", partial(self._scan, kind, opened.path, test, hits))
        if kind == "filter":
            self.table.cursor = 0

    def _scan(self, kind: str, path: str, test: Test, hits: array[int], job: Job) -> None:
        whole = scan(path, test, hits, job)
        self.post_message(ScanEnded(kind, hits, whole=whole))

    def forget(self, kind: str) -> None:
        """End a search or a filter."""
        if kind in self.jobs:
            self.jobs[kind].stop()
        self.words.pop(kind, None)
        self.hits.pop(kind, None)

    @on(ScanEnded)
    def _scan_ended(self, event: ScanEnded) -> None:
        if self.hits.get(event.kind) is not event.hits:
            return
        count = f"{len(event.hits):,} row{'' if len(event.hits) == 1 else 's'}"
        part = "" if event.whole else " so far: stopped before the end"
        self.notice = f"{event.kind}: {count}{part}"
        if event.kind == "search" and not len(event.hits):
            self.notice = f"search: {self.words['search']!r} was not found{part}"
        self.flush()
        if event.kind == "filter":
            self.show_detail(again=True)

    def flush(self) -> None:
        super().flush()
        if self._seek and self.hits.get("search"):
            by, self._seek = self._seek, 0
            self.step(self.hits["search"], by, stay=True)

    def show_rows(self) -> None:
        hits = self.hits.get("filter")
        if hits is None:
            super().show_rows()
        else:
            self.table.show(hits, len(hits))

    def action_step(self, by: int) -> None:
        """The next or previous hit of the search."""
        hits = self.hits.get("search")
        if hits is None:
            self.say("nothing to step through: / searches")
        else:
            self.step(hits, by)

    def step(self, places: array[int], by: int, *, stay: bool = False) -> None:
        """Go to the next or previous of ``places``; with ``stay`` the row under the cursor counts."""
        here = self.table.row_at(self.table.cursor) or 0
        row = next_in(places, here - 1 if stay and here else here, by) if not (stay and here in places[:1]) else here
        if row is not None:
            self.go_to_row(row)

    def view_words(self) -> list[str]:
        marks = (("filter", "only "), ("search", "search "))
        return [
            f"{word}{one_line(self.words[kind])!r}: {len(self.hits[kind]):,}"
            for kind, word in marks
            if kind in self.words
        ]

    def action_back(self) -> None:
        """One layer out: the pane beside the table, then the search, then the filter."""
        if self.has_class("-inside") or self.side.current != "detail":
            super().action_back()
        elif "search" in self.words:
            self.forget("search")
            self.flush()
        elif "filter" in self.words:
            row = self.table.row_at(self.table.cursor) or 0
            self.forget("filter")
            self.go_to_row(row)
