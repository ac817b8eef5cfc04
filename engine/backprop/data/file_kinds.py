"""The rows of a file that is no JSON Lines: plain text, CSV, Parquet, one big JSON array."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
import orjson
from msgspec import Struct

from backprop.core.errors import DatasetParseError
from backprop.data.example import RowError
from backprop.data.line_index import CHUNK
from backprop.data.parse import BOM, not_utf8, parse_json, parse_text

Kind = Literal["jsonl", "json", "csv", "parquet", "txt"]
KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "txt",
}
PACKED = (".gz", ".zst")
_LARGEST_FIELD = 2**31 - 1
_NESTED = ("messages", "conversations", "tools")
"""Columns whose cells are JSON where they look like it: a table has no other way to hold them."""
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_QUOTE, _BACKSLASH, _COMMA = 34, 92, 44
_LOWER = 0x20
_OPEN, _CLOSE = 0x7B, 0x7D
"""``{`` and ``}``; with bit 0x20 set, ``[`` and ``]`` have the same codes."""
_SPACE = b" \t\r\n"

Found = tuple[int, bytes, object, RowError | None]
"""A row of the original: its number (from 1), its bytes, and its value or what is wrong with it."""


def _read_txt(path: Path, source: IO[bytes]) -> Iterator[Found]:
    offset = 0
    for number, line in enumerate(source, 1):
        raw = line.rstrip(b"\n").removesuffix(b"\r")
        if raw.removeprefix(BOM).strip():
            yield number, raw, *parse_text(raw, offset)
        offset += len(line)


def _read_csv(path: Path, source: IO[bytes]) -> Iterator[Found]:
    """Records after the header; a quoted cell may hold line breaks. Lines are where records begin."""
    csv.field_size_limit(_LARGEST_FIELD)
    taken: list[bytes] = []
    """Lines of the record that is being read."""
    head = source.readline()
    offset = len(BOM) if head.startswith(BOM) else 0
    head = head[offset:]
    delimiter = max(",;\t", key=lambda mark: (head.count(mark.encode()), mark == ","))

    def lines() -> Iterator[str]:
        nonlocal head
        while line := head or source.readline():
            head = b""
            taken.append(line)
            yield line.decode("latin-1")

    reader = csv.reader(lines(), delimiter=delimiter)
    columns: list[str] = []
    line = 1
    while True:
        error: RowError | None = None
        cells: list[str] | None
        try:
            cells = next(reader, None)
        except csv.Error as wrong:
            cells, error = [""], RowError("broken_csv", "", f"not a CSV record: {wrong}")
        if cells is None:
            return
        raw = b"".join(taken)
        if not columns:
            columns = _columns(path, cells, error)
        elif cells:
            value, error = (None, error) if error else _record(columns, cells, raw, offset)
            yield line, raw.rstrip(b"\r\n"), value, error
        line, offset = line + len(taken), offset + len(raw)
        taken.clear()


def _columns(path: Path, cells: list[str], error: RowError | None) -> list[str]:
    """The names in the header.

    Raises:
        DatasetParseError: it cannot be read, or names a column twice.
    """
    try:
        names = [cell.encode("latin-1").decode().strip() for cell in cells]
    except UnicodeDecodeError as wrong:
        names, error = [], RowError("not_utf8", "", str(wrong))
    if error is not None:
        raise DatasetParseError(
            f"{path}: the header in line 1 cannot be read: {error.message}",
            hint="save the file as UTF-8 CSV with the column names in the first line",
            details={"path": str(path), "line": 1},
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DatasetParseError(
            f"{path}: line 1 names the column {twice[0]!r} twice",
            hint="give each column a name of its own",
            details={"path": str(path), "line": 1, "field": twice[0]},
        )
    return names


def _record(columns: list[str], cells: list[str], raw: bytes, offset: int) -> tuple[object, RowError | None]:
    """The record as a dict by column; an empty cell is ``None``."""
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            return None, not_utf8(raw, offset, error)
        cells = [cell.encode("latin-1").decode() for cell in cells]
    if len(cells) != len(columns):
        message = f"{len(cells)} cells where the header names {len(columns)} columns"
        return None, RowError("column_count", "", f"{message}: a cell with a comma or line break needs quotes")
    return {name: _cell(name, cell) for name, cell in zip(columns, cells, strict=True)}, None


def _cell(name: str, cell: str) -> object:
    """A table holds text alone: labels and nested columns get their type back, nothing else is touched."""
    if not cell:
        return None
    if name == "label":
        return _TRUTH.get(cell.strip().lower(), cell)
    if name in _NESTED and cell.lstrip().startswith(("[", "{")):
        try:
            return orjson.loads(cell)
        except orjson.JSONDecodeError:
            return cell
    return cell


def _read_parquet(path: Path, source: IO[bytes]) -> Iterator[Found]:
    """Rows by row group, in small batches; a damaged group gives as many broken rows as it has."""
    import pyarrow
    from pyarrow import parquet

    broken = (pyarrow.ArrowException, OSError, ValueError)
    with tempfile.TemporaryFile() as spooled:
        if path.suffix.lower() in PACKED:
            shutil.copyfileobj(source, spooled)
            source = spooled
        try:
            file = parquet.ParquetFile(source, pre_buffer=False)
        except broken as error:
            raise DatasetParseError(
                f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}",
                hint="fetch or write the file again",
                details={"path": str(path)},
            ) from error
        number = 0
        for group in range(file.num_row_groups):
            end = number + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(1024, row_groups=[group]):
                    for value in batch.to_pylist():
                        number += 1
                        yield number, b"", value, None
            except broken as error:
                words = f"the row cannot be read: {str(error).splitlines()[0]}"
                while number < end:
                    number += 1
                    yield number, b"", None, RowError("broken_parquet", "", words)


def _read_json(path: Path, source: IO[bytes]) -> Iterator[Found]:
    """The elements of one big array, in pieces: their ends are found without parsing them.

    A file that holds one value and no array is one row. An element that is missing between commas, or after the last
    one, is a broken row; so is what follows the closing bracket. Errors name the line of the file, which a number does
    not.
    """
    data = source.read(CHUNK).removeprefix(BOM)
    line = 1 + data[: len(data) - len(data.lstrip(_SPACE))].count(b"\n")
    data = data.lstrip(_SPACE)
    while not data and (data := source.read(CHUNK)):
        line += data[: len(data) - len(data.lstrip(_SPACE))].count(b"\n")
        data = data.lstrip(_SPACE)
    if not data.startswith(b"["):
        if data:
            raw = (data + source.read()).strip(_SPACE)
            yield 1, raw, *_element(raw, line)
        return
    number, state, element = 0, _Scan(), bytearray()
    data = data[1:]
    while data:
        start = 0
        for end in _element_ends(np.frombuffer(data, dtype=np.uint8), state).tolist():
            element += data[start:end]
            closed = data[end] != _COMMA
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
        data = source.read(CHUNK)
    if number or element.strip(_SPACE):
        yield number + 1, bytes(element.strip(_SPACE)), *_element(bytes(element), line)


def _element(raw: bytes, line: int) -> tuple[object, RowError | None]:
    """The value of an element that begins in ``line``, with the white space before it."""
    text = raw.strip(_SPACE)
    value, error = parse_json(text)
    if not text:
        error = RowError("broken_json", "", "a comma with no row after it (a trailing comma, or two in a row)")
    if error is None:
        return value, None
    line += raw[: raw.index(text)].count(b"\n") if text else raw.count(b"\n")
    return None, RowError(error.code, error.field, f"{error.message} (line {line} of the file)")


class _Scan(Struct):
    """Where the scan of an array stands between two pieces of a file."""

    depth: int = 1
    in_string: bool = False
    escaped: bool = False
    """The next byte belongs to a backslash before it."""


def _element_ends(piece: npt.NDArray[np.uint8], state: _Scan) -> npt.NDArray[np.int64]:
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


READERS: dict[Kind, Callable[[Path, IO[bytes]], Iterator[Found]]] = {
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "txt": _read_txt,
}
