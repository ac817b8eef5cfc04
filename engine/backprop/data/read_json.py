"""The rows of a JSON document: one array, objects one after the other, or an object that holds all rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from backprop.core.errors import DatasetError
from backprop.data.example import TURN_PARTS, RowError
from backprop.data.line_index import PIECE
from backprop.data.parse import BOM, Found, Note, parse_json
from backprop.data.spellings import SPELLINGS, spelled, turn_keys

_QUOTE, _BACKSLASH, _COMMA = 34, 92, 44
_LOWER = 0x20
_OPEN, _CLOSE = 0x7B, 0x7D
"""``{`` and ``}``; with bit 0x20 set, ``[`` and ``]`` have the same codes."""
_SPACE = b" \t\r\n"
_OF_A_ROW = tuple(part for part in SPELLINGS if part not in TURN_PARTS)
"""Parts of which an object that is one row has some, beside whatever lists."""


def read_json(path: Path, source: IO[bytes], note: Note) -> Iterator[Found]:
    """The rows of a document, in pieces: where a value ends is found without parsing it.

    An element that is missing between commas, or after the last one, is a broken row; so is what follows the closing
    bracket. Errors name the line of the file, which a number does not.

    Raises:
        DatasetError: an object that holds several lists of rows (``DATASET_AMBIGUOUS``).
    """
    data = source.read(PIECE).removeprefix(BOM)
    line = 1 + data[: len(data) - len(data.lstrip(_SPACE))].count(b"\n")
    data = data.lstrip(_SPACE)
    while not data and (data := source.read(PIECE)):
        line += data[: len(data) - len(data.lstrip(_SPACE))].count(b"\n")
        data = data.lstrip(_SPACE)
    if data.startswith(b"["):
        yield from _elements(data[1:], source, line, _Scan())
    elif data.startswith(b"{"):
        found = _elements(data, source, line, _Scan(in_array=False))
        only, more = next(found), next(found, None)
        if more is not None:
            note("the file holds JSON objects one after the other: each is a row, and lines do not matter")
            yield from chain([only, more], found)
        elif isinstance(only[2], dict) and (rows := _held(path, only[2], note)) is not None:
            yield from ((number, b"", row, None) for number, row in enumerate(rows, 1))
        else:
            yield only
    elif data:
        raw = (data + source.read()).strip(_SPACE)
        yield 1, raw, *_element(raw, line)


def _elements(data: bytes, source: IO[bytes], line: int, state: _Scan) -> Iterator[Found]:
    """The elements of an array after its opening bracket, or values that follow each other."""
    number, element = 0, bytearray()
    while data:
        start = 0
        for end in _element_ends(np.frombuffer(data, dtype=np.uint8), state).tolist():
            stop = end if state.in_array else end + 1
            element += data[start:stop]
            closed = state.in_array and data[end] != _COMMA
            if not (closed and number == 0 and not element.strip(_SPACE)):
                number += 1
                yield number, bytes(element.strip(_SPACE)), *_element(bytes(element), line)
            line += element.count(b"\n")
            element.clear()
            start = end + 1
            if closed:
                rest = (data[start:] + source.read()).strip()
                if rest:
                    words = f"something follows the end of the array, from {rest[:20]!r} on (line {line} of the file)"
                    yield number + 1, rest, None, RowError("broken_json", "", words)
                return
        element += data[start:]
        data = source.read(PIECE)
    error = None
    if element.strip(_SPACE):
        number += 1
        value, error = _element(bytes(element), line)
        yield number, bytes(element.strip(_SPACE)), value, error
    if state.in_array and error is None:
        words = f"the array has no end: the file may be cut off (line {line + element.count(10)} of the file)"
        yield number + 1, b"", None, RowError("broken_json", "", words)


def _held(path: Path, document: dict[str, Any], note: Note) -> list[Any] | None:
    """The rows that an object holds as a list under one of its keys, as columns, or by name; ``None``: it is a row.

    Raises:
        DatasetError: it holds several lists of rows.
    """
    values = list(document.values())
    if values and all(isinstance(value, dict) for value in values):
        inner = [list(value) for value in values]
        if all(name.isdigit() for name in inner[0]) and inner.count(inner[0]) == len(inner):
            values = [list(value.values()) for value in values]
        elif len(values) > 1 and set.intersection(*map(set, inner)):
            note(f"the file holds an object of rows: their names ({', '.join(list(document)[:3])} …) are not read")
            return values
    is_row = "text" in document or any(spelled(part, document) for part in _OF_A_ROW)
    rows_of = [name for name, value in document.items() if not is_row and _is_rows(value)]
    if len(rows_of) > 1:
        raise DatasetError(
            f"{path} holds several lists of rows: {', '.join(rows_of)}",
            hint=f"write the one you mean into a file of its own: jq -c '.{rows_of[0]}[]' {path} > {rows_of[0]}.jsonl",
            code="DATASET_AMBIGUOUS",
            details={"path": str(path), "choices": rows_of},
        )
    if rows_of:
        others = ", ".join(name for name in document if name != rows_of[0])
        note(f"the rows are the list {rows_of[0]!r} of one object" + (f"; not read beside it: {others}" * bool(others)))
        return list(document[rows_of[0]])
    lengths = {len(value) if isinstance(value, list) else -1 for value in values}
    if len(lengths) != 1 or min(lengths) < 1 or any(isinstance(value[0], dict) for value in values):
        return None
    note(f"the file holds columns ({', '.join(document)}): a row is made of the values at one place in all of them")
    return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]


def _is_rows(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
        return False
    is_turns = turn_keys(value)
    return is_turns is None or not is_turns[0]


def _element(raw: bytes, line: int) -> tuple[object, RowError | None]:
    """The value of an element that begins in ``line``, with the white space before it."""
    text = raw.strip(_SPACE)
    value, error = parse_json(text)
    if not text:
        error = RowError("broken_json", "", "a comma with no row after it (a trailing comma, or two in a row)")
    if error is None or error.severity != "error":
        return value, error
    line += raw[: raw.index(text)].count(b"\n") if text else raw.count(b"\n")
    return None, RowError(error.code, error.field, f"{error.message} (line {line} of the file)")


class _Scan(Struct):
    """Where the scan of an array, or of values that follow each other, stands between two pieces of a file."""

    depth: int = 1
    in_array: bool = True
    in_string: bool = False
    escaped: bool = False
    """The next byte belongs to a backslash before it."""


def _element_ends(piece: npt.NDArray[np.uint8], state: _Scan) -> npt.NDArray[np.int64]:
    """Positions in ``piece`` of the commas at depth 1 and of the bracket that closes depth 1; outside an array, of
    each bracket that closes a value.

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
    ends = (depth == (0 if state.in_array else 1)) & (kinds == _CLOSE)
    if state.in_array:
        ends |= (depth == 1) & (piece[marks] == _COMMA)
    state.in_string = bool((len(quotes) + state.in_string) % 2)
    if len(depth):
        state.depth = int(depth[-1])
    found: npt.NDArray[np.int64] = marks[ends]
    return found
