"""The rows of the open file: a table of which only what is on screen, and a page around it, is ever read."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence

from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.row_text import RowSummary, summarise
from backprop_tui.screens.tasks import Tasks
from backprop_tui.text import SEVERITY, Row, fit, marked, short_number
from backprop_tui.widgets.list_view import ListView

_REMEMBERED = 2000
"""Summaries kept: a few hundred bytes each."""
_BATCH = 16
"""Rows read before those are shown."""


class RowTable(ListView):
    """Rows by position. ``order`` names the rows that are shown where a filter leaves some out."""

    opened: OpenFile | None = None
    order: Sequence[int] | None = None
    words = ""
    """What is marked in the rows."""

    def __init__(self, tasks: Tasks, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tasks = tasks
        self._known: OrderedDict[int, RowSummary] = OrderedDict()

    def open(self, opened: OpenFile) -> None:
        """Show the rows of a file, from the first; the file that was open is closed."""
        self.close()
        self.opened, self.order = opened, None
        self._known.clear()
        self.count = self.top = self.cursor = 0
        self.redraw()

    def close(self) -> None:
        """Close the file."""
        self._tasks.forget("page", "row")
        if self.opened is not None:
            self.opened.close()

    def show(self, order: Sequence[int] | None, count: int) -> None:
        """Show these rows, or with ``None`` the first ``count`` of the file."""
        if order is not self.order or count != self.count:
            self.order = order
            self.resize_list(count)
        self.ask()

    def row_of(self, position: int) -> int | None:
        """The row (index in the file) in this position."""
        if not 0 <= position < self.count:
            return None
        return position if self.order is None else self.order[position]

    def line_of_cursor(self) -> int:
        """The line (in the file) of the row under the cursor; before it is read, its number."""
        row = self.row_of(self.cursor) or 0
        summary = self._known.get(row)
        return summary.line if summary is not None else row + 1

    def _take(self, rows: list[tuple[int, RowSummary]]) -> None:
        """Show rows that were read, and ask for the next ones."""
        self._known.update(rows)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
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
        missing = [row for row in wanted if row is not None and row not in self._known][:_BATCH]
        if missing:
            self._tasks.begin("page", "", lambda _: [(row, summarise(opened, row)) for row in missing], self._take)

    def scroll_by(self, rows: int) -> None:
        super().scroll_by(rows)
        self.ask()

    def on_resize(self) -> None:
        self.bring_into_view(self.cursor)
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
        return [[(fit(names, self.size.width), "info+underline" if self.has_focus else "muted+underline")]]

    def row_at(self, index: int, width: int) -> Row:
        row = self.row_of(index)
        summary = None if row is None else self._known.get(row)
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
        return [*pieces, *marked(preview, self.words)]


def next_in(places: array[int], here: int, by: int, *, stay: bool = False) -> int | None:
    """The next or previous of sorted ``places``, beginning again at the other end."""
    if not len(places):
        return None
    if by < 0:
        return places[bisect_left(places, here) - 1]
    return places[(bisect_left if stay else bisect_right)(places, here) % len(places)]
