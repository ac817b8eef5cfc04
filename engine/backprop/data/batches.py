"""Rows in batches of about a quarter of a megabyte, decoded together where every one is good."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from backprop.data.arrays import ArrayIndex
from backprop.data.line_index import Place
from backprop.data.lines import LineIndex
from backprop.data.prints import Numbers
from backprop.data.reader import Row, Source
from backprop.data.typed import QuickLook

_ROWS = 1_000
_GROUP_BYTES = 256 * 1024
"""Lines decoded at once: few enough that their values are still in the processor's cache when they are looked at."""
_GROUP_ROWS = 64
_SEARCHED = 4096
_NEWLINE = 10


class Batch:
    """Some rows of a source, in order; to be looked at before the next batch is asked for."""

    def __init__(self, source: Source, end: int, rows: Sequence[Row | Place], raws_are_json: bool) -> None:
        self._source = source
        self.end = end
        """Bytes of the file that are read with this batch."""
        self._rows = rows
        self.raws_are_json = raws_are_json

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, i: int) -> Row:
        """Row ``i`` of the batch, parsed."""
        row = self._rows[i]
        return row if isinstance(row, Row) else self._source.made(row)

    def quick_look(self, quick: QuickLook) -> tuple[Numbers, list[int]]:
        """A fingerprint per row, and the positions of the rows that need the slow look (and a fingerprint by it)."""
        good: list[int] = []
        doubtful: set[int] = set()
        for first in range(0, len(self), _GROUP_ROWS):
            rows, at = [], []
            for i in range(first, min(first + _GROUP_ROWS, len(self))):
                try:
                    rows.append(quick.decoder.decode(self._rows[i][2]))  # type: ignore[index]
                    at.append(i)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    doubtful.add(i)
            doubtful.update([at[i] for i in quick.take(rows)])
            good += at
        prints = np.zeros(len(self), dtype=np.int64)
        prints[good] = quick.prints.take()
        return prints, sorted(doubtful)


class LineBatch(Batch):
    """A piece of a file of lines; single lines are made only of what needs another look.

    Args:
        data: the piece, whole lines; the next one overwrites it.
        line, offset: line number and place in the file of its start.
    """

    def __init__(self, source: Source, index: LineIndex, data: memoryview, line: int, offset: int) -> None:
        super().__init__(source, offset + len(data), (), raws_are_json=True)
        self._index = index
        self._data = data
        self._spans = [(0, len(data), line)]
        """Parts of the piece, as start, end and line number."""
        self._offset = offset
        self._firsts = [0]
        """First row of each span."""
        self._made: dict[int, list[Place]] = {}
        self._count: int | None = None
        self._lines: int | None = None

    def lines(self) -> int:
        """Lines of the piece, blank ones too."""
        if self._lines is None:
            self._lines = _lines(np.frombuffer(self._data, dtype=np.uint8))
        return self._lines

    def _places(self, span: int) -> list[Place]:
        """The rows of a span."""
        if span not in self._made:
            start, end, line = self._spans[span]
            self._made[span] = self._index.split(bytes(self._data[start:end]), line, self._offset + start)
        return self._made[span]

    def __len__(self) -> int:
        return len(self._places(0)) if self._count is None else self._count

    def row(self, i: int) -> Row:
        span = bisect_right(self._firsts, i) - 1
        return self._source.made(self._places(span)[i - self._firsts[span]])

    def quick_look(self, quick: QuickLook) -> tuple[Numbers, list[int]]:
        piece = np.frombuffer(self._data, dtype=np.uint8)
        prints: list[Numbers] = []
        doubtful: list[int] = []
        first_line = line = self._spans[0][2]
        start = count = 0
        self._spans, self._firsts = [], []
        while start < len(piece):
            end = _line_end(piece, start + _GROUP_BYTES)
            lines = _lines(piece[start:end])
            self._spans.append((start, end, line))
            self._firsts.append(count)
            odd = quick.take_lines(self._data[start:end], lines)
            taken = lines
            if odd is None:
                places = self._places(len(self._spans) - 1)
                prints.append(quick.prints.take())
                found, odd = Batch(self._source, 0, places, raws_are_json=True).quick_look(quick)
                prints.append(found)
                taken = len(places)
            doubtful += [count + i for i in odd]
            start, line, count = end, line + lines, count + taken
        self._count, self._lines = count, line - first_line
        return np.concatenate((*prints, quick.prints.take())), sorted(set(doubtful))


def _line_end(piece: npt.NDArray[np.uint8], start: int) -> int:
    """One past the first line break from ``start`` on."""
    while start < len(piece):
        some = piece[start : start + _SEARCHED]
        at = int((some == _NEWLINE).argmax())
        if some[at] == _NEWLINE:
            return start + at + 1
        start += _SEARCHED
    return len(piece)


def _lines(piece: npt.NDArray[np.uint8]) -> int:
    """Lines of whole ones; the last may lack its line break."""
    return int(np.count_nonzero(piece == _NEWLINE)) + int(piece[-1] != _NEWLINE)


def batches(source: Source) -> Iterator[Batch]:
    """All rows of a source."""
    index = getattr(source, "index", None)
    if isinstance(index, LineIndex) and source.kind == "jsonl":
        yield from _line_batches(source, index)
    elif isinstance(index, ArrayIndex):
        for places in index.stream():
            end = places[-1][1] + len(places[-1][2])
            if index.after_end is not None and places[-1][1] >= index.after_end:
                yield Batch(source, end, [source.made(place) for place in places], raws_are_json=False)
            else:
                yield Batch(source, end, places, raws_are_json=True)
    else:
        rows: list[Row] = []
        done = 0
        for row in source:
            rows.append(row)
            done += len(row.raw) + 1
            if len(rows) == _ROWS:
                yield Batch(source, min(done, source.bytes), rows, raws_are_json=False)
                rows = []
        if rows:
            yield Batch(source, source.bytes, rows, raws_are_json=False)


def _line_batches(source: Source, index: LineIndex) -> Iterator[Batch]:
    line = 1
    for offset, buffer, size in index.pieces():
        data = memoryview(buffer)[:size]
        batch = LineBatch(source, index, data, line, offset)
        yield batch
        line += batch.lines()
