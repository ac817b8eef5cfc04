"""A thread that reads rows of an open file for the screen: what was asked for last comes first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from backprop.data.example import RowError
from backprop.data.reader import Row, Source

_BATCH = 16
Summary = TypeVar("Summary")


class RowReader(Generic[Summary]):
    """Reads rows of ``source`` in a thread of its own.

    Args:
        source: the open file; only this thread reads rows from it.
        summarise: row → what the table keeps of it.
        deliver: called from the thread with (index, summary) pairs.
        report: called from the thread with a defect in what it was given to do; reading goes on.
    """

    def __init__(
        self,
        source: Source,
        summarise: Callable[[Row], Summary],
        deliver: Callable[[list[tuple[int, Summary]]], object],
        report: Callable[[Exception], object],
    ) -> None:
        self.source = source
        self.reads = 0
        """Rows read so far."""
        self._summarise = summarise
        self._deliver = deliver
        self._report = report
        self._wanted: list[int] = []
        self._task: tuple[int, Callable[[Row], object]] | None = None
        self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="row-reader", daemon=True)
        self._thread.start()

    def want(self, rows: Iterable[int]) -> None:
        """Summarise these rows, in this order, instead of those asked for before."""
        with self._change:
            self._wanted = list(rows)
            self._change.notify()

    def detail(self, row: int, use: Callable[[Row], object]) -> None:
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
        self.source.close()

    def _do(self, task: tuple[int, Callable[[Row], object]] | None, batch: Sequence[int]) -> None:
        if task is None:
            self._deliver([(row, self._summarise(self._read(row))) for row in batch])
        else:
            row, use = task
            use(self._read(row))

    def _read(self, row: int) -> Row:
        self.reads += 1
        try:
            return self.source.row(row)
        except (IndexError, OSError):
            gone = "the row is no longer there: the file was changed while it is open here. Open it again"
            return Row(row + 1, b"", None, RowError("file_changed", "", gone))
