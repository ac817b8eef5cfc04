"""The rows of a dataset as a table: only rows on screen, and one page around them, are ever read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from msgspec import Struct
from textual.events import Resize
from textual.message import Message

from backprop_tui.widgets.list_view import LineList
from backprop_tui.widgets.styled import Line, Piece, fit

_REMEMBERED = 2000
"""Summaries kept: a few hundred bytes each."""
MARKS = {"error": "✗", "warning": "!", "": " "}


class RowSummary(Struct, frozen=True):
    """What the table shows of one row."""

    line: int
    mark: str
    """``error``, ``warning`` or empty."""
    turns: str
    """The roles in order, one letter each (``SUAUA``), or the format where a row has none."""
    size: int
    """Bytes of the row in the file."""
    preview: str
    """The row's text on one line, or what is wrong with it."""


class RowTable(LineList):
    """Rows by position. ``order`` names the rows that are shown where a filter leaves some out."""

    class Wanted(Message):
        """These rows (indices in the file) are to be shown and are not known yet."""

        def __init__(self, rows: list[int]) -> None:
            super().__init__()
            self.rows = rows

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.order: Sequence[int] | None = None
        self._known: OrderedDict[int, RowSummary] = OrderedDict()

    def clear(self) -> None:
        """Forget every row: another file was opened, or the rows mean something else now."""
        self.order = None
        self._known.clear()
        self.count = 0
        self.cursor = 0
        self.scroll_to(y=0, animate=False)
        self.refresh()

    def forget(self) -> None:
        """Read the rows on screen again: what their summary says has changed."""
        self._known.clear()
        self.ask()

    def show(self, order: Sequence[int] | None, count: int) -> None:
        """Show these rows, or with ``None`` the first ``count`` of the file."""
        changed = order is not self.order
        self.order = order
        self.count = count
        if changed:
            self.refresh()
        self.ask()

    def row_at(self, position: int) -> int | None:
        """The row (index in the file) in this position."""
        if not 0 <= position < self.count:
            return None
        return position if self.order is None else self.order[position]

    def line_of_cursor(self) -> int:
        """The line (in the file) of the row under the cursor; before it is read, its number."""
        row = self.row_at(self.cursor) or 0
        summary = self._known.get(row)
        return summary.line if summary is not None else row + 1

    def put(self, rows: Iterable[tuple[int, RowSummary]]) -> None:
        """Take summaries that were asked for, and show those on screen."""
        fresh = set()
        for row, summary in rows:
            self._known[row] = summary
            fresh.add(row)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        for position in self.in_view():
            if self.row_at(position) in fresh:
                self.refresh_line(position)

    def ask(self) -> None:
        """Ask for the rows on screen, then for one page before and after them."""
        in_view = self.in_view()
        if not in_view:
            return
        page = max(self.size.height, 1)
        after = range(in_view.stop, min(in_view.stop + page, self.count))
        before = range(max(in_view.start - page, 0), in_view.start)
        wanted = [self.row_at(position) for part in (in_view, after, before) for position in part]
        missing = [row for row in wanted if row is not None and row not in self._known]
        if missing:
            self.post_message(self.Wanted(missing))

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if round(old_value) != round(new_value):
            self.ask()

    def on_resize(self, event: Resize) -> None:
        del event
        self.bring_into_view(self.cursor)
        self.ask()

    def _columns(self, width: int) -> tuple[int, bool]:
        """Digits of the line number, and whether there is room for the size."""
        digits = max(len(str(self._largest())), 4)
        return digits, width - digits > 72

    def head(self, width: int) -> str:
        """The names of the columns."""
        digits, sized = self._columns(width)
        return f"{'line':>{digits}}   {'turns':<8} {'size  ' if sized else ''}{' ' * sized}text"

    def line_at(self, index: int, width: int) -> Line:
        row = self.row_at(index)
        summary = None if row is None else self._known.get(row)
        digits, sized = self._columns(width)
        if summary is None:
            return [(fit("…".rjust(digits), width), "dim")]
        pieces: list[Piece] = [(f"{summary.line:>{digits}} ", "dim"), (f"{MARKS[summary.mark]} ", summary.mark)]
        pieces.append((fit(summary.turns, 8) + " ", "key"))
        if sized:
            pieces.append((f"{in_bytes(summary.size):>6} ", "dim"))
        rest = width - digits - 12 - 7 * sized
        pieces.append((fit(summary.preview, rest), "error" if summary.mark == "error" else ""))
        return pieces

    def _largest(self) -> int:
        return self.count if self.order is None or not len(self.order) else self.order[-1] + 1


def in_bytes(count: float) -> str:
    """``512``, ``1.5k``, ``12M``: at most five characters."""
    for unit in ("", "k", "M", "G"):
        if count < 999.5 or unit == "G":
            break
        count /= 1000
    return f"{count:.0f}{unit}" if not unit or count >= 9.95 else f"{count:.1f}{unit}"
