"""The rows of the open file: a table of which only what is on screen, and a page around it, is ever read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from backprop.data.example import RowError
from backprop.data.reader import Row as DataRow
from textual.message import Message

from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.row_text import RowSummary, summarise
from backprop_tui.screens.dataset.tasks import Failed, defect_in
from backprop_tui.text import SEVERITY, Row, fit, short_number
from backprop_tui.widgets.list_view import ListView

_REMEMBERED = 2000
"""Summaries kept: a few hundred bytes each."""
_BATCH = 16


class RowTable(ListView):
    """Rows by position. ``order`` names the rows that are shown where a filter leaves some out."""

    class RowsRead(Message):
        """Summaries of rows that were asked for."""

        def __init__(self, opened: OpenFile, rows: list[tuple[int, RowSummary]]) -> None:
            super().__init__()
            self.opened = opened
            self.rows = rows

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.reader: RowReader | None = None
        self.order: Sequence[int] | None = None
        self._known: OrderedDict[int, RowSummary] = OrderedDict()

    def open(self, opened: OpenFile) -> None:
        """Show the rows of a file, from the first; the file that was open is closed."""
        self.close()
        self.reader = RowReader(
            opened,
            lambda rows: self.post_message(self.RowsRead(opened, rows)),
            lambda error: self.post_message(Failed("row", defect_in("reading a row", error))),
        )
        self.order = None
        self._known.clear()
        self.count = self.top = self.cursor = 0
        self.redraw()

    def close(self) -> None:
        """Close the file."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None

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

    def on_row_table_rows_read(self, message: RowsRead) -> None:
        """Take summaries that were asked for, and show those on screen."""
        if self.reader is None or message.opened is not self.reader.opened:
            return
        self._known.update(message.rows)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        fresh = {row for row, _ in message.rows}
        if any(self.row_of(position) in fresh for position in self.in_view()):
            self.redraw()

    def ask(self) -> None:
        """Ask for the rows on screen, then for one page before and after them."""
        in_view = self.in_view()
        if not in_view or self.reader is None:
            return
        page = self.body_height
        after = range(in_view.stop, min(in_view.stop + page, self.count))
        before = range(max(in_view.start - page, 0), in_view.start)
        wanted = [self.row_of(position) for part in (in_view, after, before) for position in part]
        missing = [row for row in wanted if row is not None and row not in self._known]
        if missing:
            self.reader.want(missing)

    def scroll_by(self, rows: int) -> None:
        super().scroll_by(rows)
        self.ask()

    def on_resize(self) -> None:
        self.bring_into_view(self.cursor)
        self.ask()

    def _columns(self) -> tuple[int, bool]:
        """Digits of the line number, and whether there is room for the size."""
        largest = self.count if self.order is None or not len(self.order) else self.order[-1] + 1
        digits = max(len(str(largest)), 4)
        return digits, self.size.width - 1 - digits > 72

    def head(self) -> list[Row]:
        digits, sized = self._columns()
        names = f"{'line':>{digits}}   {'turns':<8} {'size  ' if sized else ''}{' ' * sized}text"
        return [[(fit(names, self.size.width), "muted+underline")]]

    def row_at(self, index: int, width: int) -> Row:
        row = self.row_of(index)
        summary = None if row is None else self._known.get(row)
        digits, sized = self._columns()
        if summary is None:
            return [("…".rjust(digits), "muted")]
        mark, ink = SEVERITY[summary.mark]
        pieces: Row = [(f"{summary.line:>{digits}} ", "muted"), (f"{mark} ", ink)]
        pieces.append((fit(summary.turns, 8) + " ", "info"))
        if sized:
            pieces.append((f"{short_number(summary.size):>6} ", "muted"))
        rest = width - digits - 12 - 7 * sized
        pieces.append((fit(summary.preview, rest), "bad" if summary.mark == "error" else "text"))
        return pieces


class RowReader:
    """Reads rows of the open file in a thread of its own; what was asked for last comes first.

    Args:
        opened: the open file; only this thread reads rows from it.
        deliver: called from the thread with (index, summary) pairs.
        report: called from the thread with a defect in what it was given to do; reading goes on.
    """

    def __init__(
        self,
        opened: OpenFile,
        deliver: Callable[[list[tuple[int, RowSummary]]], object],
        report: Callable[[Exception], object],
    ) -> None:
        self.opened = opened
        self.reads = 0
        """Rows read so far."""
        self._deliver = deliver
        self._report = report
        self._wanted: list[int] = []
        self._task: tuple[int, Callable[[DataRow], object]] | None = None
        self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="row-reader", daemon=True)
        self._thread.start()

    def want(self, rows: Iterable[int]) -> None:
        """Summarise these rows, in this order, instead of those asked for before."""
        with self._change:
            self._wanted = list(rows)
            self._change.notify()

    def detail(self, row: int, use: Callable[[DataRow], object]) -> None:
        """Read one row ahead of all others and hand it to ``use``, in the thread; only the last request counts."""
        with self._change:
            self._task = (row, use)
            self._change.notify()

    def close(self) -> None:
        """Stop after the row being read, and close the file."""
        with self._change:
            self._closed = True
            self._change.notify()

    def _work(self) -> None:
        while True:
            with self._change:
                while not (self._wanted or self._task or self._closed):
                    self._change.wait()
                if self._closed:
                    break
                task, self._task = self._task, None
                batch: Sequence[int] = ()
                if task is None:
                    batch, self._wanted = self._wanted[:_BATCH], self._wanted[_BATCH:]
            try:
                self._do(task, batch)
            except Exception as error:
                self._report(error)
        self.opened.source.close()

    def _do(self, task: tuple[int, Callable[[DataRow], object]] | None, batch: Sequence[int]) -> None:
        if task is None:
            self._deliver([(row, summarise(self._read(row), self.opened.file)) for row in batch])
        else:
            row, use = task
            use(self._read(row))

    def _read(self, row: int) -> DataRow:
        self.reads += 1
        try:
            return self.opened.source.row(row)
        except (IndexError, OSError):
            gone = "the row is no longer there: the file was changed while it is open here. Open it again"
            return DataRow(row + 1, b"", None, RowError("file_changed", "", gone))
