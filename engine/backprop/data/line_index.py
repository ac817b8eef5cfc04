"""Where the rows of a big file begin: a sparse index that is built while the first rows are already read.

One entry per sixteen rows (and around long rows) keeps it near 1.5 bytes a row. The file is read in pieces into a
reused buffer rather than mapped: memory stays flat at any file size, and a file that somebody shortens
meanwhile gives a short read instead of a bus error.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

Progress = Callable[[int, int], None]
"""Called with what is done and the total, in bytes unless said otherwise."""
Cancelled = Callable[[], bool]

ROWS_PER_ENTRY = 16
LONG_ROW = 64 * 1024
"""A row longer than this many bytes ends its block, so that reading its neighbours does not read it."""
CHUNK = 4 * 1024 * 1024
_CACHED_BLOCKS = 8
_STREAM_BYTES = 1024 * 1024

Place = tuple[int, int, bytes]
"""Line (or row number), offset in the file, and the bytes of one row."""


class RowIndex(ABC):
    """Random access to the rows of one file.

    ``known`` rows can be read at once; ``complete`` says whether that is all. Asking for a later row scans on until
    it is found. Every method may be called while a thread started by ``start`` is scanning.

    Args:
        path: the file.
        start: offset of the first byte that belongs to rows (after a byte order mark, for instance).
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self._file = path.open("rb", buffering=0)
        self._scan = path.open("rb", buffering=0)
        self.size = path.stat().st_size
        self.start_offset = start
        self.known = 0
        self.complete = False
        self._scanned = start
        """Offset up to which whole rows are known."""
        self._rows = array("Q")
        self._lines = array("Q")
        self._offsets = array("Q")
        self._blocks: dict[tuple[int, int, int], list[Place]] = {}
        self._read_lock = threading.Lock()
        self._scan_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False

    @abstractmethod
    def _advance(self) -> None:
        """Scan the next piece: add entries, then move ``_scanned``, then ``known``; set ``complete`` at the end.

        The order is what lets other threads read without waiting for the scan.
        """

    @abstractmethod
    def split(self, block: bytes, line: int, offset: int, count: int) -> list[Place]:
        """The rows of ``block``, which starts with the row of ``line`` at ``offset`` and holds ``count`` of them."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer where the file is shorter now."""
        pieces = []
        with self._read_lock:
            self._file.seek(offset)
            while size > 0 and (piece := self._file.read(size)):
                pieces.append(piece)
                size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_into(self, offset: int, room: memoryview) -> int:
        """Fill ``room`` from ``offset``; how many bytes there were."""
        with self._read_lock:
            self._file.seek(offset)
            return self._file.readinto(room) or 0

    def build(self, progress: Progress | None = None, cancelled: Cancelled | None = None) -> bool:
        """Scan to the end. Returns whether it got there (False when ``cancelled`` said stop)."""
        while not self.complete:
            if self._closing or (cancelled is not None and cancelled()):
                return False
            self._advance_once()
            if progress is not None:
                progress(min(self._scanned, self.size), self.size)
        return True

    def start(self) -> None:
        """Scan to the end in a thread of its own."""
        if self._thread is None and not self.complete:
            self._thread = threading.Thread(target=self.build, name="row-index", daemon=True)
            self._thread.start()

    def ensure(self, row: int) -> bool:
        """Scan until ``row`` (from 0) is known. Returns False where the file ends before it."""
        while row >= self.known and not self.complete:
            self._advance_once()
        return row < self.known

    def place(self, row: int) -> Place:
        """Line, offset and bytes of ``row`` (from 0).

        Raises:
            IndexError: the file has no such row.
        """
        if row < 0 or not self.ensure(row):
            raise IndexError(row)
        entry = bisect_right(self._rows, row) - 1
        end = self._offsets[entry + 1] if entry + 1 < len(self._offsets) else self._scanned
        count = self._count(entry)
        block = self._blocks.get((entry, end, count))
        if block is None:
            offset = self._offsets[entry]
            block = self.split(self.read_at(offset, end - offset), self._lines[entry], offset, count)
            with self._read_lock:
                self._blocks[entry, end, count] = block
                while len(self._blocks) > _CACHED_BLOCKS:
                    del self._blocks[next(iter(self._blocks))]
        within = row - self._rows[entry]
        if within >= len(block):
            raise IndexError(row)
        return block[within]

    def row_bytes(self, row: int) -> bytes:
        """The bytes of ``row`` (from 0), without its line end."""
        return self.place(row)[2]

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
        """All rows in order, in batches of about a megabyte."""
        entry = 0
        while self._entry_known(entry):
            last = entry + 1
            while self._entry_known(last) and self._offsets[last] - self._offsets[entry] < _STREAM_BYTES:
                last += 1
            start = self._offsets[entry]
            end = self._offsets[last] if last < len(self._offsets) else self._scanned
            count = sum(self._count(i) for i in range(entry, last))
            yield self.split(self.read_at(start, end - start), self._lines[entry], start, count)
            entry = last

    def _count(self, entry: int) -> int:
        """Rows from this entry to the next one, or to the end of what is known."""
        following = self._rows[entry + 1] if entry + 1 < len(self._offsets) else self.known
        return following - self._rows[entry]

    def _entry_known(self, entry: int) -> bool:
        while entry >= len(self._offsets) and not self.complete:
            self._advance_once()
        return entry < len(self._offsets)

    def _advance_once(self) -> None:
        with self._scan_lock:
            if not self.complete and not self._closing:
                self._advance()

    def _add_entry(self, row: int, line: int, offset: int) -> None:
        self._rows.append(row)
        self._lines.append(line)
        self._offsets.append(offset)

    def close(self) -> None:
        """Stop a scan in progress and let go of the file."""
        self._closing = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._scan_lock, self._read_lock:
            self._file.close()
            self._scan.close()
