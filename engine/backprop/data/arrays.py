"""The index of a ``.json`` file: where the elements of one big array begin, found without parsing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from backprop.data.line_index import CHUNK, LONG_ROW, ROWS_PER_ENTRY, Place, RowIndex

_QUOTE, _BACKSLASH, _COMMA = 34, 92, 44
_LOWER = 0x20
_OPEN, _CLOSE = 0x7B, 0x7D
"""``{`` and ``}``; with bit 0x20 set, ``[`` and ``]`` have the same codes."""
_SPACE = b" \t\r\n"


class _State(Struct):
    """Where the scan stands between two pieces of a file."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False
    """The next byte belongs to a backslash before it."""


def _boundaries(piece: npt.NDArray[np.uint8], state: _State) -> npt.NDArray[np.int64]:
    """Positions in ``piece`` of the commas at depth 1 and of the bracket that closes depth 1.

    ``state`` is moved to the end of the piece.
    """
    quotes = np.flatnonzero(piece == _QUOTE)
    slashes = np.flatnonzero(piece == _BACKSLASH)
    if state.escaped:
        quotes, slashes = quotes[quotes > 0], slashes[slashes > 0]
        state.escaped = False
    if len(slashes):
        first = np.flatnonzero(np.diff(slashes, prepend=-2) != 1)
        lengths = np.diff(first, append=len(slashes))
        odd = lengths % 2 == 1
        after = slashes[first[odd]] + lengths[odd]
        if len(after) and after[-1] == len(piece):
            state.escaped = True
            after = after[:-1]
        is_escaped = np.zeros(len(piece), dtype=bool)
        is_escaped[after] = True
        quotes = quotes[~is_escaped[quotes]]
    folded = piece | _LOWER
    marks: npt.NDArray[np.int64] = np.flatnonzero((folded == _OPEN) | (folded == _CLOSE) | (piece == _COMMA))
    outside = (np.searchsorted(quotes, marks) + state.in_string) % 2 == 0
    marks = marks[outside]
    kinds = folded[marks]
    depth = state.depth + np.cumsum((kinds == _OPEN).astype(np.int64) - (kinds == _CLOSE))
    ends = ((depth == 1) & (piece[marks] == _COMMA)) | ((depth == 0) & (kinds == _CLOSE))
    state.in_string = bool((len(quotes) + state.in_string) % 2)
    if len(depth):
        state.depth = int(depth[-1])
    found: npt.NDArray[np.int64] = marks[ends]
    return found


class ArrayIndex(RowIndex):
    """Rows are the elements of the array; their numbers, from 1, stand for lines.

    A file that holds one value and no array is one row. An element that is missing between commas, or after the last
    one, is a row of no bytes, so that it is reported. What follows the closing bracket is a row too, from offset
    ``after_end``. ``unclosed`` says that the bracket is missing.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        super().__init__(path, start)
        self.after_end: int | None = None
        self.unclosed = False
        self._state = _State(depth=1)
        head = self._skip_space(start)
        self.is_array = self.read_at(head, 1) == b"["
        if self.is_array:
            self._scanned = self._position = head + 1
        elif head < self.size:
            self._add_entry(0, 1, head)
            self._scanned, self.known, self.complete = self.size, 1, True
        else:
            self.complete = True
        self._last_row = self._scanned

    def _skip_space(self, offset: int) -> int:
        while piece := self.read_at(offset, 65536):
            kept = len(piece.lstrip(_SPACE))
            if kept:
                return offset + len(piece) - kept
            offset += len(piece)
        return offset

    def _advance(self) -> None:
        self._scan.seek(self._position)
        data = self._scan.read(CHUNK)
        if not data:
            self._finish_unclosed()
            return
        piece = np.frombuffer(data, dtype=np.uint8)
        ends = _boundaries(piece, self._state)
        closing = np.flatnonzero((piece[ends] | _LOWER) == _CLOSE)
        if len(closing):
            ends = ends[: closing[0] + 1]
        base, self._position = self._position, self._position + len(data)
        if not len(ends):
            return
        starts = np.concatenate(([self._scanned], ends[:-1] + base + 1))
        last_end = base + int(ends[-1])
        if not len(closing):
            self._add_rows(starts, last_end + 1)
            return
        empty = len(starts) + self.known == 1 and not self.read_at(int(starts[0]), last_end - int(starts[0])).strip(
            _SPACE
        )
        self._add_rows(starts[:0] if empty else starts, last_end + 1)
        extra = self._skip_space(last_end + 1)
        if extra < self.size:
            self.after_end = extra
            self._add_rows(np.array([extra]), self.size)
        self.complete = True

    def _finish_unclosed(self) -> None:
        self.unclosed = True
        if self._skip_space(self._scanned) < self.size or self.known:
            self._add_rows(np.array([self._scanned]), self.size)
        self.complete = True

    def _add_rows(self, starts: npt.NDArray[np.int64], end: int) -> None:
        rows = np.arange(self.known, self.known + len(starts))
        chosen = rows % ROWS_PER_ENTRY == 0
        chosen |= np.diff(starts, prepend=self._last_row) > LONG_ROW
        if self.after_end is not None and len(starts):
            chosen[-1] = True
        self._rows.frombytes(rows[chosen].astype(np.uint64).tobytes())
        self._lines.frombytes((rows[chosen] + 1).astype(np.uint64).tobytes())
        self._offsets.frombytes(starts[chosen].astype(np.uint64).tobytes())
        if len(starts):
            self._last_row = int(starts[-1])
        self._scanned = end
        self.known += len(starts)

    def split(self, block: bytes, line: int, offset: int, count: int) -> list[Place]:
        if not self.is_array:
            return [(line, offset, block.strip(_SPACE))]
        places: list[Place] = []
        inside = len(block) if self.after_end is None else max(0, min(len(block), self.after_end - offset))
        ends = _boundaries(np.frombuffer(block[:inside], dtype=np.uint8), _State(depth=1)).tolist() if inside else []
        if self.unclosed and len(ends) < count and offset + len(block) == self.size:
            ends.append(len(block))
        if inside < len(block):
            ends.append(len(block))
        start = 0
        for end in ends[:count]:
            text = block[start:end] if end <= inside else block[max(start, inside) : end]
            lead = len(text) - len(text.lstrip(_SPACE))
            places.append((line, offset + end - len(text) + lead, text.strip(_SPACE)))
            line, start = line + 1, end + 1
        return places

    def line_at(self, offset: int) -> int:
        """Line of the file, from 1, in which the byte at ``offset`` stands. Reads the file up to there."""
        line, position = 1, self.start_offset
        while position < offset and (piece := self.read_at(position, min(CHUNK, offset - position))):
            line += piece.count(b"\n")
            position += len(piece)
        return line
