"""Rows in batches of about a quarter of a megabyte, decoded together where every one is good."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from backprop.data.arrays import ArrayIndex
from backprop.data.index import Place
from backprop.data.lines import LineIndex
from backprop.data.scan import scan
from backprop.data.source import Row, Source
from backprop.data.typed import Prints, QuickLook

_ROWS = 1_000
_GROUP = 64
"""Lines decoded at once: few enough that their values are still in the processor's cache when they are looked at."""


class Batch:
    """Some rows of a source, in order; to be looked at before the next batch is asked for.

    ``data`` holds them between line breaks; ``ends`` are the positions in it where rows end, ``marks`` those that
    ``scan`` found odd.
    """

    def __init__(
        self,
        source: Source,
        data: bytes | memoryview,
        end: int,
        *,
        line: int = 1,
        offset: int = 0,
        ends: npt.NDArray[np.int64] | None = None,
        marks: npt.NDArray[np.int64] | None = None,
        places: list[Place] | None = None,
        rows: list[Row] | None = None,
    ) -> None:
        self._source = source
        self._data = data
        self.end = end
        """Bytes of the file that are read with this batch."""
        self._line = line
        self._offset = offset
        self._ends = ends
        self._marks = marks
        self._places = places
        self._rows = rows

    def __len__(self) -> int:
        if self._rows is not None:
            return len(self._rows)
        if self._places is not None:
            return len(self._places)
        return len(self._ends) if self._ends is not None else 0

    @property
    def raws_are_json(self) -> bool:
        return self._rows is None

    def _place(self, i: int) -> Place:
        if self._places is not None:
            return self._places[i]
        assert self._ends is not None
        start = int(self._ends[i - 1]) + 1 if i else 0
        return self._line + i, self._offset + start, bytes(self._data[start : self._ends[i]]).removesuffix(b"\r")

    def row(self, i: int) -> Row:
        """Row ``i`` of the batch, parsed."""
        if self._rows is not None:
            return self._rows[i]
        return self._source.made(self._place(i))

    def doubtful(self, quick: QuickLook, prints: Prints, labels: set[bool]) -> list[int]:
        """Positions of the rows that need the slow look; ``prints`` gets a fingerprint for every row."""
        doubtful = self._suspicious()
        for first in range(0, len(self), _GROUP):
            doubtful.update(self._group(first, min(first + _GROUP, len(self)), quick, prints, labels))
        return sorted(doubtful)

    def _group(self, first: int, last: int, quick: QuickLook, prints: Prints, labels: set[bool]) -> list[int]:
        """Decode some rows in one go where they are lines, one by one where one of them is no good row."""
        if self._ends is not None:
            start = int(self._ends[first - 1]) + 1 if first else 0
            try:
                rows = quick.decoder.decode_lines(self._data[start : int(self._ends[last - 1])])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                rows = []
            if len(rows) == last - first:
                self._take_labels(quick, rows, labels)
                return [first + i for i in quick.check(rows, prints)]
        good, rows, doubtful = [], [], []
        for i in range(first, last):
            try:
                rows.append(quick.decoder.decode(self._place(i)[2]))
                good.append(i)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                doubtful.append(i)
        found: Prints = array("q")
        doubtful += [good[at] for at in quick.check(rows, found)]
        self._take_labels(quick, rows, labels)
        base = len(prints) - first
        prints.extend([0] * (last - first))
        for i, value in zip(good, found, strict=True):
            prints[base + i] = value
        return doubtful

    @staticmethod
    def _take_labels(quick: QuickLook, decoded: Sequence[object], labels: set[bool]) -> None:
        if quick.format == "kto" and len(labels) < 2:
            labels.update(row.label for row in decoded)  # type: ignore[attr-defined]

    def _suspicious(self) -> set[int]:
        ends, marks = self._ends, self._marks
        if ends is None or marks is None:
            assert self._places is not None
            ends = np.cumsum([len(raw) + 1 for _, _, raw in self._places]) - 1
            data = b"\n".join(raw for _, _, raw in self._places)
            marks = scan(data, len(data))[1]
        return set(np.searchsorted(ends, marks).tolist()) if len(marks) else set()


def batches(source: Source) -> Iterator[Batch]:
    """All rows of a source."""
    index = getattr(source, "index", None)
    if isinstance(index, LineIndex) and source.kind == "jsonl":
        yield from _line_batches(source, index)
    elif isinstance(index, ArrayIndex):
        for places in index.stream():
            end = places[-1][1] + len(places[-1][2])
            if index.after_end is not None and places[-1][1] >= index.after_end:
                yield Batch(source, b"", end, rows=[source.made(place) for place in places])
            else:
                yield Batch(source, b"", end, places=places)
    else:
        rows: list[Row] = []
        done = 0
        for row in source:
            rows.append(row)
            done += len(row.raw) + 1
            if len(rows) == _ROWS:
                yield Batch(source, b"", min(done, source.bytes), rows=rows)
                rows = []
        if rows:
            yield Batch(source, b"", source.bytes, rows=rows)


def _line_batches(source: Source, index: LineIndex) -> Iterator[Batch]:
    line = 1
    for offset, buffer, size in index.pieces():
        ends, marks = scan(buffer, size)
        data = memoryview(buffer)[:size]
        if not len(ends) or ends[-1] != size - 1:
            ends = np.append(ends, size)
        if _each_line_an_object(np.frombuffer(data, dtype=np.uint8), ends):
            yield Batch(source, data, offset + size, line=line, offset=offset, ends=ends, marks=marks)
        elif places := index.split(bytes(data), line, offset):
            yield Batch(source, b"", offset + size, places=places)
        line += len(ends)


def _each_line_an_object(piece: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> bool:
    """Whether every line begins with ``{`` and ends with ``}``.

    Then no value can reach over a line break, so that values decoded in one go are the lines' when their number agrees.
    """
    if ends[0] == 0:
        return False
    last = piece[ends - 1]
    returns = last == 13
    if returns.any():
        last = np.where(returns, piece[ends - 2], last)
    return bool((last == 0x7D).all() and piece[0] == 0x7B and (piece[ends[:-1] + 1] == 0x7B).all())
