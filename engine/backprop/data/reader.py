"""Any dataset file as rows: opened at once, read at random, whatever is wrong with single rows.

    with open_source("data.jsonl") as source:
        source.start_index()          # optional: find all rows in a thread
        first = source.row(0)         # milliseconds, at any size of file
        for row in source: ...        # every row, broken ones with their error

A hub name such as ``user/dataset`` is not resolved here: the engine fetches it into a file first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from backprop.core.errors import (
    DatasetFormatError,
    DatasetParseError,
)
from backprop.data.arrays import ArrayIndex
from backprop.data.columns import CsvIndex, ParquetRows
from backprop.data.example import RowError
from backprop.data.line_index import Cancelled, Place, Progress, RowIndex
from backprop.data.lines import LineIndex
from backprop.data.opening import KINDS, Kind, check_exists, empty, is_json_lines, refuse_array, unreadable
from backprop.data.parse import BOM, parse_json, parse_text, wide_encoding
from backprop.data.to_jsonl import PACKED, unpacked


class Row(Struct, frozen=True):
    """One row as it was read.

    ``line`` is the line of the file (from 1) for ``jsonl``, ``txt`` and ``csv``, the row's number (from 1) for ``json``
    and ``parquet``. ``value`` is the parsed row, ``None`` where ``error`` says why there is none.
    """

    line: int
    raw: bytes
    value: object | None
    error: RowError | None


class Source:
    """A dataset file as rows. Reading never raises for a bad row: its ``error`` says what is wrong.

    Iterating gives every row from the first, each time. ``row`` reaches any row; ``known`` says how many are found
    so far, and ``complete`` whether that is all.
    """

    def __init__(self, path: Path, kind: Kind, index: RowIndex, has_bom: bool = False) -> None:
        self.path = path
        """As the person named it."""
        self.kind: Kind = kind
        self.index = index
        self.has_bom = has_bom
        self.bytes = index.size
        """Size of the (unpacked) file."""
        self._parse = _parser(index, kind)

    @property
    def unit(self) -> str:
        """What ``Row.line`` counts, in a word."""
        return "row" if self.kind in ("json", "parquet") else "line"

    @property
    def known(self) -> int:
        return self.index.known

    @property
    def complete(self) -> bool:
        return self.index.complete

    def build(self, progress: Progress | None = None, cancelled: Cancelled | None = None) -> bool:
        """Find all rows. Returns whether it got to the end."""
        return self.index.build(progress, cancelled)

    def start_index(self) -> None:
        """Find all rows in a thread."""
        self.index.start()

    def row(self, index: int) -> Row:
        """Row ``index`` (from 0).

        Raises:
            IndexError: there is no such row.
        """
        return self.made(self.index.place(index))

    def find(self, line: int) -> int:
        """The index (from 0) of the row with this ``line``: what ``row`` takes.

        Raises:
            IndexError: the file has no row.
        """
        return self.index.find(line)

    def __len__(self) -> int:
        self.index.build()
        return self.index.known

    def __iter__(self) -> Iterator[Row]:
        for places in self.index.stream():
            for place in places:
                yield self.made(place)

    def made(self, place: Place) -> Row:
        """Parse what the index found."""
        line, offset, raw = place
        value, error = self._parse(raw, offset)
        return Row(line, raw, value, error)

    def close(self) -> None:
        self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ParquetSource(Source):
    """Rows of a Parquet file; their ``raw`` is the row written as JSON."""

    complete = True

    def __init__(self, path: Path, rows: ParquetRows, size: int) -> None:
        self.path = path
        self.kind = "parquet"
        self.has_bom = False
        self.bytes = size
        self._rows = rows

    @property
    def known(self) -> int:
        return self._rows.known

    def build(self, progress: Progress | None = None, cancelled: Cancelled | None = None) -> bool:
        return True

    def start_index(self) -> None:
        return

    def row(self, index: int) -> Row:
        try:
            value = self._rows.value(index)
        except DatasetParseError as error:
            return Row(index + 1, b"", None, RowError("broken_parquet", "", error.message))
        return Row(index + 1, msgspec.json.encode(value, enc_hook=str), value, None)

    def find(self, line: int) -> int:
        if not self.known:
            raise IndexError(line)
        return min(max(line - 1, 0), self.known - 1)

    def __len__(self) -> int:
        return self._rows.known

    def __iter__(self) -> Iterator[Row]:
        return (self.row(index) for index in range(self.known))

    def close(self) -> None:
        self._rows.close()


def open_source(path: str | Path, *, progress: Progress | None = None, cancelled: Cancelled | None = None) -> Source:
    """Open a dataset file: ``.jsonl``, ``.json``, ``.csv``, ``.parquet``, ``.txt``, each also ``.gz`` or ``.zst``.

    Nothing but the beginning is read, except that a packed file is unpacked into the cache first.

    Args:
        progress: called while unpacking, with packed bytes read and their total.
        cancelled: asked while unpacking.

    Raises:
        DatasetNotFoundError: no such file, or it cannot be read.
        DatasetFormatError: the ending is none of the known ones.
        DatasetParseError: the file as a whole is not what its ending says (another encoding, an array in ``.jsonl``).
        DatasetError: it holds no row (``DATASET_EMPTY``).
    """
    named = Path(path)
    check_exists(named, str(path))
    suffixes = [suffix.lower() for suffix in named.suffixes]
    packed = bool(suffixes) and suffixes[-1] in PACKED
    inner = suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes and not packed else ""
    if inner not in KINDS:
        raise DatasetFormatError(
            f"{named}: the ending {inner or 'of the name'} is not one of {', '.join(KINDS)} (each also .gz or .zst)",
            hint="rename the file to say what it holds",
            details={"path": str(named)},
        )
    try:
        file = unpacked(named, progress, cancelled) if packed else named
        source = _open(named, file, KINDS[inner])
    except OSError as error:
        raise unreadable(named, error) from error
    try:
        source.row(0)
    except IndexError:
        source.close()
        raise empty(named) from None
    return source


def _open(named: Path, file: Path, kind: Kind) -> Source:
    if file.stat().st_size == 0:
        raise empty(named)
    if kind == "parquet":
        return ParquetSource(named, ParquetRows(file), file.stat().st_size)
    with file.open("rb") as opened:
        head = opened.read(65536)
    wide = wide_encoding(head)
    if wide is not None:
        raise DatasetParseError(
            f"{named}: line 1, byte 1: the file is {wide}, not UTF-8",
            hint=f"save it as UTF-8, for instance with: iconv -f {wide} -t UTF-8 {named} > utf8-{named.name}",
            details={"path": str(named), "line": 1, "encoding": wide},
        )
    has_bom = head.startswith(BOM)
    start = len(BOM) if has_bom else 0
    if kind == "json" and is_json_lines(head[start:]):
        kind = "jsonl"
    index: RowIndex
    if kind == "json":
        index = ArrayIndex(file, start)
    elif kind == "csv":
        index = CsvIndex(file, start)
    else:
        index = LineIndex(file, start)
        if kind == "jsonl":
            refuse_array(named, head[start:], whole=len(head) < 65536)
    return Source(named, kind, index, has_bom)


def _parser(index: RowIndex, kind: Kind) -> Callable[[bytes, int], tuple[object | None, RowError | None]]:
    if isinstance(index, CsvIndex):
        return index.parse
    if isinstance(index, ArrayIndex):
        return lambda raw, offset: _parse_element(index, raw, offset)
    return parse_text if kind == "txt" else parse_json


def _parse_element(index: ArrayIndex, raw: bytes, offset: int) -> tuple[object | None, RowError | None]:
    """An element of an array; its error names the line of the file, which a row number does not give."""
    value: object | None = None
    error: RowError | None
    if index.after_end is not None and offset >= index.after_end:
        error = RowError("broken_json", "", f"something follows the end of the array, from {raw[:20]!r} on")
    elif not raw:
        error = RowError("broken_json", "", "a comma with no row after it (a trailing comma, or two in a row)")
    else:
        value, error = parse_json(raw, offset)
    if error is not None:
        place = f"line {index.line_at(offset)} of the file"
        error = RowError(error.code, error.field, f"{error.message} ({place})")
    return value, error
