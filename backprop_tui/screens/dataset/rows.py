"""The rows of the open file: a table of which only what is on screen, and a page around it, is ever read; the search
whose hits are stepped through, and the filter."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence

from backprop.core.errors import InputError
from textual.binding import Binding

from backprop_tui.hints import hint_here
from backprop_tui.keys import press
from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.row_text import RowSummary, summarise
from backprop_tui.screens.dataset.search import LinesOf, Test, row_test, scan, text_test
from backprop_tui.screens.dataset.tokens import Chosen
from backprop_tui.screens.tasks import Notice, RowsChanged, Tasks
from backprop_tui.text import SEVERITY, Row, fit, marked, rows_of, safe, short_number
from backprop_tui.widgets.cells import paragraph
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.path_input import Prompt

_REMEMBERED = 2000
"""Summaries kept: a few hundred bytes each."""
_LABELS = {"search": "Search", "filter": "Show only rows with"}
_HELP = {
    "search": "text in any field, in any case",
    "filter": "text, or: bad · role:tool · format:alpaca · finding:duplicate · finding:cut · finding:lost"
    " · nothing: all",
}
_BATCH = 16
"""Rows read before those are shown."""


class RowTable(ListView):
    """Rows by position. ``order`` names the rows that are shown where a filter leaves some out."""

    BINDINGS = [Binding("space", "pages(1)", show=False)]
    opened: OpenFile | None = None
    order: Sequence[int] | None = None
    _seek = False
    """The first hit of the search is to be gone to, as soon as there is one."""
    _to_the_end = False

    def __init__(self, tasks: Tasks, lines_of: LinesOf, chosen: Chosen, *, id: str) -> None:
        super().__init__(id=id)
        self._tasks, self._lines_of, self._chosen = tasks, lines_of, chosen
        self.words: dict[str, str] = {}
        """What is searched for (``search``) and what is filtered by (``filter``)."""
        self._hits: dict[str, array[int]] = {}
        """Rows found for each so far, in order."""
        self._summaries: OrderedDict[int, RowSummary] = OrderedDict()

    def open(self, opened: OpenFile) -> None:
        """Show the rows of a file, from the first; the file that was open is closed."""
        for kind in ("search", "filter"):
            self.forget(kind)
        self._tasks.forget("go")
        self._seek = self._to_the_end = self._filled = False
        self.close()
        self.opened, self.order = opened, None
        self._summaries.clear()
        self.count = self.top = self.cursor = 0
        self.redraw()

    def close(self) -> None:
        """Close the file."""
        self._tasks.forget("page", "row")
        if self.opened is not None:
            self.opened.close()

    def flush(self) -> None:
        """Show as many rows as are known by now."""
        if self.opened is None:
            return
        # Asked first: what is found after that is shown by the next flush.
        complete = self.opened.source.complete
        self._show(self.opened)
        if self._to_the_end:
            self.cursor = self.count - 1
            self._to_the_end = not complete
        if self._seek and self._hits.get("search"):
            self._seek = False
            self.step(1, stay=True)

    def _show(self, opened: OpenFile) -> None:
        hits = self._hits.get("filter")
        count = opened.source.known if hits is None else len(hits)
        if hits is not self.order or count != self.count:
            self.order = hits
            self.resize_list(count)
        self.ask()

    # Moving

    def row_of(self, position: int) -> int | None:
        """The row (index in the file) in this position."""
        if not 0 <= position < self.count:
            return None
        return position if self.order is None else self.order[position]

    @property
    def row(self) -> int:
        """The row (index in the file) under the cursor."""
        return self.row_of(self.cursor) or 0

    def line_of_cursor(self) -> int:
        """The line (in the file) of the row under the cursor; before it is read, its number."""
        summary = self._summaries.get(self.row)
        return summary.line if summary is not None else self.row + 1

    def where(self) -> str:
        """Which of how many rows that is."""
        if self.opened is None or not self.count:
            return ""
        return f"{self.cursor + 1:,} of {'' if self.opened.source.complete else '> '}{self.count:,}"

    def last(self, opened: OpenFile) -> None:
        """Go to the last row; while rows are still being found, the last known one and on with it."""
        self._to_the_end = not opened.source.complete
        self._show(opened)
        self.cursor = self.count - 1

    def ask_line(self, prompt: Prompt, opened: OpenFile) -> None:
        """Ask for a line of the file, and go there."""
        unit, far = opened.source.unit, "" if opened.source.complete else " so far"
        help = f"a number · nothing: the first {unit} · {rows_of(opened.source.known)}{far}"
        prompt.ask(f"Go to {unit}", self.go_to_line, numbers=range(1, 2**53), help=help)

    def go_to_line(self, number: str) -> None:
        """Go to the row of a line of the file, as soon as it is found; without one, to the first."""
        self._to_the_end = False
        if self.opened is None or not number:
            self.cursor = 0
        else:
            line, find, unit = int(number), self.opened.source.find, self.opened.source.unit
            self._tasks.begin("go", f"going to {unit} {line:,}", lambda _: find(line), self.go_to_row)

    def go_to_row(self, row: int) -> None:
        """Put the cursor on a row of the file; where a filter hides it, on the next one that is shown."""
        if self.opened is not None:
            self._show(self.opened)
        self.cursor = row if self.order is None else bisect_left(self.order, row)
        self.post_message(RowsChanged())

    # Search and filter

    def ask_words(self, prompt: Prompt, kind: str, then: Callable[[str], object], text: str = "") -> None:
        """Ask for what to ``search`` or to ``filter`` by, beginning with ``text`` or what was asked for last."""
        prompt.ask(*(_LABELS[kind], then, text or self.words.get(kind, "")), help=_HELP[kind])

    def look_for(self, kind: str, words: str) -> None:
        """Search for words, or show only the rows that a filter lets through; without words, forget it."""
        if self.opened is None:
            return
        self.forget(kind)
        if words:
            try:
                meant: tuple[Test, str] = text_test(words), ""
                if kind == "filter":
                    meant = row_test(words, self.opened.file, self._lines_of, self._chosen)
            except InputError as error:
                self.post_message(Notice(f"{error.message}; {hint_here(error.hint)}"))
                return
            self._scan(kind, words, self.opened.path, *meant)
        self.post_message(Notice())

    def _scan(self, kind: str, words: str, path: str, test: Test, note: str) -> None:
        self.words[kind] = words
        hits = self._hits[kind] = array("Q")
        if kind == "search":
            self._seek = True
        else:
            self.cursor = 0

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
            self.redraw()  # only now that no row is let through
            self.post_message(RowsChanged())

    def forget(self, kind: str) -> None:
        """End a search or a filter."""
        self._tasks.forget(kind)
        self.words.pop(kind, None)
        self._hits.pop(kind, None)
        self.redraw()

    def number_of(self, kind: str) -> int | None:
        """Hits so far; ``None`` where nothing is searched for or filtered by."""
        return len(self._hits[kind]) if kind in self.words else None

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

    # Drawing

    def _take(self, rows: list[tuple[int, RowSummary]]) -> None:
        """Show rows that were read, and ask for the next ones."""
        self._summaries.update(rows)
        while len(self._summaries) > _REMEMBERED:
            self._summaries.popitem(last=False)
        self.redraw()
        self.ask()

    def ask(self) -> None:
        """Have the rows on screen read, then one page before and after them."""
        in_view, opened = self.in_view(), self.opened
        if not in_view or opened is None or self._tasks.goes_on("page"):
            return
        page = self.body_height
        after = range(in_view.stop, min(in_view.stop + page, self.count))
        before = range(max(in_view.start - page, 0), in_view.start)
        wanted = [self.row_of(position) for part in (in_view, after, before) for position in part]
        missing = [row for row in wanted if row is not None and row not in self._summaries][:_BATCH]
        if missing:
            self._tasks.begin("page", "", lambda _: [(row, summarise(opened, row)) for row in missing], self._take)

    def scroll_by(self, rows: int) -> None:
        super().scroll_by(rows)
        self.ask()

    def on_resize(self) -> None:
        self.ask()

    def _columns(self) -> tuple[int, bool]:
        """Digits of the line number, and whether there is room for the size."""
        largest = self.count if self.order is None or not len(self.order) else self.order[-1] + 1
        digits = max(len(f"{largest:,}"), 4)
        return digits, self.size.width - 1 - digits > 72

    def head(self) -> list[Row]:
        digits, sized = self._columns()
        unit = "line" if self.opened is None else self.opened.source.unit
        names = f"{unit:>{digits}}   {'turns':<8} {'size  ' if sized else ''}{' ' * sized}text"
        title: Row = [(fit(names, self.size.width), "info+underline" if self.has_focus else "muted+underline")]
        if self.count or "filter" not in self.words or self._tasks.goes_on("filter"):
            return [title]
        words = f"no row is let through by {safe(self.words['filter'])!r}"
        keys = f"{press('data.back')} shows every row, {press('data.filter')} changes the filter"
        return [title, [], *paragraph(f"{words}: {keys}", max(1, self.size.width), "muted")]

    def row_at(self, index: int, width: int) -> Row:
        row = self.row_of(index)
        summary = None if row is None else self._summaries.get(row)
        digits, sized = self._columns()
        if summary is None:
            return [("…".rjust(digits), "muted")]
        mark, ink = SEVERITY[summary.mark]
        pieces: Row = [(f"{summary.line:>{digits},} ", "muted"), (f"{mark} ", ink)]
        pieces.append((fit(summary.turns, 8) + " ", "info"))
        if sized:
            pieces.append((f"{short_number(summary.size):>6} ", "muted"))
        rest = width - digits - 12 - 7 * sized
        preview: Row = [(fit(summary.preview, rest), "bad" if summary.mark == "error" else "text")]
        return [*pieces, *marked(preview, self.marked())]


def next_in(places: array[int], here: int, by: int, *, stay: bool = False) -> int | None:
    """The next or previous of sorted ``places``, beginning again at the other end."""
    if not len(places):
        return None
    if by < 0:
        return places[bisect_left(places, here) - 1]
    return places[(bisect_left if stay else bisect_right)(places, here) % len(places)]
