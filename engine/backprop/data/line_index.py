"""Where the rows of a big JSON Lines file begin: a sparse index that is built while the first rows are already read.

Rows are the lines that hold more than white space; line numbers count every line, from 1. One entry per sixteen rows
(and around long rows) keeps the index near 1.5 bytes a row. The file is read in pieces into a reused buffer rather than
mapped: memory stays flat at any file size, and a file that somebody shortens meanwhile gives a short read instead of a
bus error.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backprop.core.errors import OperationCancelledError

Progress = Callable[[int, int], None]
"""Called with what is done and the total, in bytes unless said otherwise."""
Cancelled = Callable[[], bool]

ROWS_PER_ENTRY = 16
LONG_ROW = 64 * 1024
"""A row longer than this many bytes ends its block, so that reading its neighbours does not read it."""
PIECE = 1024 * 1024
"""Bytes that are read at once: four times as many find rows no sooner, and keep 7 MB of memory more."""
_CACHED_BLOCKS = 8
NEWLINE = 10
_WHITESPACE = np.zeros(256, dtype=bool)
_WHITESPACE[list(b" \t\r\n\v\f")] = True

Place = tuple[int, int, bytes]
"""Line, offset in the file, and the bytes of one row."""


def watched(path: Path, total: int, progress: Progress | None, cancelled: Cancelled | None) -> Callable[[int], None]:
    """Shows how far the reading of a file is, given the bytes that are done, and stops it when that is asked for.

    Raises:
        OperationCancelledError: when it is called, as ``cancelled`` said stop.
    """

    def show(done: int) -> None:
        if cancelled is not None and cancelled():
            raise OperationCancelledError(f"reading {path} was stopped")
        if progress is not None:
            progress(min(done, total), total)

    return show


class LineIndex:
    """Random access to the rows of one file.

    ``known`` rows can be read at once; ``complete`` says whether that is all. Asking for a later row scans on until
    it is found. Every method may be called while a thread started by ``start`` is scanning.

    Args:
        path: the file.
        start: offset of the first byte that belongs to rows (after a byte order mark, for instance).
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self._file = path.open("rb", buffering=0)
        self.size = path.stat().st_size
        """Bytes of the file: of the copy, where rows are read from one."""
        self.start_offset = start
        self.known = 0
        self.complete = False
        self._unscanned = self.pieces(PIECE)
        self._scanned = start
        """Offset up to which whole rows are known."""
        self._line = 1
        """Number of the line that begins at ``_scanned``."""
        self._last_row = start
        """Offset of the last row found."""
        self._rows = array("Q")
        self._lines = array("Q")
        self._offsets = array("Q")
        self._blocks: dict[tuple[int, int], list[Place]] = {}
        self._read_lock = threading.Lock()
        self._scan_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer where the file is shorter now."""
        data = bytearray(size)
        filled = 0
        while filled < size and (count := self._read_into(offset + filled, memoryview(data)[filled:])):
            filled += count
        return bytes(memoryview(data)[:filled])

    def _read_into(self, offset: int, room: memoryview) -> int:
        """Fill ``room`` from ``offset``; how many bytes there were."""
        with self._read_lock:
            self._file.seek(offset)
            return self._file.readinto(room) or 0

    def pieces(self, size: int = PIECE) -> Iterator[tuple[int, bytearray, int]]:
        """The file in pieces of whole lines, of about ``size`` bytes.

        Offset, a buffer, and how much of it is the piece. The next piece overwrites the buffer.
        """
        offset, filled = self.start_offset, 0
        buffer = bytearray(size)
        while True:
            count = self._read_into(offset + filled, memoryview(buffer)[filled:])
            filled += count
            cut = buffer.rfind(b"\n", 0, filled) + 1 if count else filled
            if cut:
                yield offset, buffer, cut
            elif count and filled == len(buffer):
                buffer = buffer + bytearray(3 * len(buffer))
            if not count:
                return
            buffer[: filled - cut] = buffer[cut:filled]
            offset, filled = offset + cut, filled - cut

    def _advance(self) -> None:
        """Scan the next piece: add entries, then move ``_scanned``, then ``known``; set ``complete`` at the end.

        The order is what lets other threads read without waiting for the scan.
        """
        offset, buffer, size = next(self._unscanned, (0, b"", 0))
        if not size:
            self.complete = True
            return
        piece = np.frombuffer(buffer, dtype=np.uint8, count=size)
        ends = np.flatnonzero(piece == NEWLINE)
        if not len(ends) or ends[-1] != size - 1:
            ends = np.append(ends, size)
        starts = np.append(0, ends[:-1] + 1)
        keep = starts < ends
        for i in np.flatnonzero(keep & _WHITESPACE[piece[np.minimum(starts, size - 1)]]).tolist():
            keep[i] = not _WHITESPACE[piece[starts[i] : ends[i]]].all()
        lines = np.arange(self._line, self._line + len(ends))
        self._add_entries(starts[keep] + offset, lines[keep])
        self._line += len(ends)
        self._scanned = offset + size
        self.known += int(keep.sum())

    def _add_entries(self, offsets: npt.NDArray[np.int64], lines: npt.NDArray[np.int64]) -> None:
        """Index the new rows at ``offsets``: every sixteenth, and each that follows a long one."""
        if not len(offsets):
            return
        rows = np.arange(self.known, self.known + len(offsets))
        chosen = rows % ROWS_PER_ENTRY == 0
        chosen |= np.diff(offsets, prepend=self._last_row) > LONG_ROW
        for column, values in ((self._rows, rows), (self._lines, lines), (self._offsets, offsets)):
            column.frombytes(values[chosen].astype(np.uint64).tobytes())
        self._last_row = int(offsets[-1])

    def build(self) -> None:
        """Scan to the end, or until it is closed."""
        while not (self.complete or self._closing):
            self._advance_once()

    def start(self) -> None:
        """Scan to the end in a thread of its own."""
        if self._thread is None and not self.complete:
            self._thread = threading.Thread(target=self.build, name="line-index", daemon=True)
            self._thread.start()

    def _advance_once(self) -> None:
        with self._scan_lock:
            if not self.complete and not self._closing:
                self._advance()

    def ensure(self, row: int) -> bool:
        """Scan until ``row`` (from 0) is known. Returns False where the file ends before it."""
        while row >= self.known and not self.complete:
            self._advance_once()
        return row < self.known

    def place(self, row: int) -> Place:
        """Line, offset and bytes (without line end) of ``row`` (from 0).

        Raises:
            IndexError: the file has no such row.
        """
        if row < 0 or not self.ensure(row):
            raise IndexError(row)
        entry = bisect_right(self._rows, row) - 1
        end = self._offsets[entry + 1] if entry + 1 < len(self._offsets) else self._scanned
        block = self._blocks.get((entry, end))
        if block is None:
            offset = self._offsets[entry]
            block = split_lines(self.read_at(offset, end - offset), self._lines[entry], offset)
            with self._read_lock:
                self._blocks[entry, end] = block
                while len(self._blocks) > _CACHED_BLOCKS:
                    del self._blocks[next(iter(self._blocks))]
        within = row - self._rows[entry]
        if within >= len(block):
            raise IndexError(row)
        return block[within]

    def find(self, line: int) -> int:
        """The row (from 0) that holds ``line``, else the last one before it; scans as far as needed.

        Raises:
            IndexError: the file has no row.
        """
        while not self.complete and (not self._offsets or self._lines[len(self._offsets) - 1] <= line):
            self._advance_once()
        if not self._offsets:
            raise IndexError(line)
        row = self._rows[max(bisect_right(self._lines, line) - 1, 0)]
        while self.ensure(row + 1) and self.place(row + 1)[0] <= line:
            row += 1
        return row

    def stream(self) -> Iterator[list[Place]]:
        """All rows in order, read straight through: no index is needed for it."""
        line = 1
        for offset, buffer, size in self.pieces(PIECE):
            piece = bytes(memoryview(buffer)[:size])
            yield split_lines(piece, line, offset)
            line += piece.count(b"\n")

    def close(self) -> None:
        """Stop a scan in progress and let go of the file."""
        self._closing = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._scan_lock, self._read_lock:
            self._file.close()


def split_lines(block: bytes, line: int, offset: int) -> list[Place]:
    """The rows of ``block``, which starts with the line of number ``line`` at ``offset``."""
    places = []
    for number, raw in enumerate(block.split(b"\n"), line):
        if raw and not raw.isspace():
            places.append((number, offset, raw.removesuffix(b"\r")))
        offset += len(raw) + 1
    return places
