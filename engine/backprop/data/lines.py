"""The index of a file in which each line is a row (JSON Lines, plain text)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backprop.data.line_index import CHUNK, LONG_ROW, ROWS_PER_ENTRY, Place, RowIndex

PIECE = 1024 * 1024
_NEWLINE = 10
_WHITESPACE = np.zeros(256, dtype=bool)
_WHITESPACE[list(b" \t\r\n\v\f")] = True


class LineIndex(RowIndex):
    """Rows are the lines that hold more than white space; line numbers count every line, from 1."""

    def __init__(self, path: Path, start: int = 0) -> None:
        super().__init__(path, start)
        self._buffer = bytearray(CHUNK)
        self._position = start
        """Offset up to which bytes were looked at."""
        self._line = 1
        """Number of the line that begins at ``_scanned``."""
        self._blank_so_far = True
        """Whether the unfinished line at the end of the last piece holds white space only."""
        self._last_row = start
        """Offset of the last row found."""

    def _advance(self) -> None:
        self._scan.seek(self._position)
        count = self._scan.readinto(self._buffer)
        if not count:
            if self._position > self._scanned:
                last = int(not self._blank_so_far)
                if last:
                    self._add_entries(np.array([self._scanned]), np.array([self._line]))
                self._scanned = self._position
                self.known += last
            self.complete = True
            return
        piece = np.frombuffer(self._buffer, dtype=np.uint8, count=count)
        ends = np.flatnonzero(piece == _NEWLINE)
        if len(ends):
            self._add_lines(piece, ends)
        tail = int(ends[-1]) + 1 if len(ends) else 0
        fresh = len(ends) > 0 or self._scanned == self._position
        rest_blank = bool(_WHITESPACE[piece[tail:]].all())
        self._blank_so_far = rest_blank and (fresh or self._blank_so_far)
        self._position += count

    def _add_lines(self, piece: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        """Add the rows among the lines that end at ``ends`` (positions within ``piece``)."""
        base = self._position
        starts = np.empty(len(ends), dtype=np.int64)
        starts[0] = self._scanned - base
        starts[1:] = ends[:-1] + 1
        keep = np.ones(len(ends), dtype=bool)
        inside = starts >= 0
        suspects = np.flatnonzero(_WHITESPACE[piece[np.where(inside, starts, 0)]] & inside)
        for i in suspects.tolist():
            keep[i] = not _WHITESPACE[piece[starts[i] : ends[i]]].all()
        if not inside[0]:
            keep[0] = not (self._blank_so_far and _WHITESPACE[piece[: ends[0]]].all())
        lines = np.arange(self._line, self._line + len(ends))
        self._add_entries(starts[keep] + base, lines[keep])
        self._line += len(ends)
        self._scanned = base + int(ends[-1]) + 1
        self.known += int(keep.sum())

    def _add_entries(self, offsets: npt.NDArray[np.int64], lines: npt.NDArray[np.int64]) -> None:
        """Index the new rows at ``offsets``: every sixteenth, and each that follows a long one."""
        if not len(offsets):
            return
        rows = np.arange(self.known, self.known + len(offsets))
        chosen = rows % ROWS_PER_ENTRY == 0
        chosen |= np.diff(offsets, prepend=self._last_row) > LONG_ROW
        self._rows.frombytes(rows[chosen].astype(np.uint64).tobytes())
        self._lines.frombytes(lines[chosen].astype(np.uint64).tobytes())
        self._offsets.frombytes(offsets[chosen].astype(np.uint64).tobytes())
        self._last_row = int(offsets[-1])

    def split(self, block: bytes, line: int, offset: int, count: int = 0) -> list[Place]:
        places = []
        for number, raw in enumerate(block.split(b"\n"), line):
            if raw and not raw.isspace():
                places.append((number, offset, raw.removesuffix(b"\r")))
            offset += len(raw) + 1
        return places

    def stream(self) -> Iterator[list[Place]]:
        """All rows in order, read straight through: no index is needed for it."""
        line = 1
        for offset, buffer, size in self.pieces():
            piece = bytes(memoryview(buffer)[:size])
            yield self.split(piece, line, offset)
            line += piece.count(b"\n")

    def pieces(self, size: int = PIECE) -> Iterator[tuple[int, bytearray, int]]:
        """The file in pieces of whole lines, of about ``size`` bytes.

        Offset, a buffer, and how much of it is the piece. The next piece overwrites the buffer.
        """
        offset, filled = self.start_offset, 0
        buffer = bytearray(size)
        while True:
            count = self._read_into(offset + filled, memoryview(buffer)[filled:])
            filled += count
            cut = buffer.rfind(b"\n", 0, filled) + 1
            if not count:
                cut = filled
            elif not cut:
                if filled == len(buffer):
                    buffer = buffer + bytearray(3 * len(buffer))
                continue
            if cut:
                yield offset, buffer, cut
            if not count:
                return
            buffer[: filled - cut] = buffer[cut:filled]
            offset, filled = offset + cut, filled - cut
