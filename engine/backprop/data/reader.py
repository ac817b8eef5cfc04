"""Any dataset file as rows: opened at once, read at random, whatever is wrong with single rows.

    with open_source("data.jsonl") as source:
        source.start()                # optional: find all rows in a thread
        first = source.row(0)         # milliseconds, at any size of file
        for row in source: ...        # every row, broken ones with their error

A hub name such as ``user/dataset`` is not resolved here: the engine fetches it into a file first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from backprop.core.datasets import is_hub_name
from backprop.core.errors import (
    DatasetError,
    DatasetFormatError,
    DatasetNotFoundError,
    DatasetParseError,
)
from backprop.data.example import RowError
from backprop.data.file_kinds import KINDS, PACKED, Kind
from backprop.data.line_index import Cancelled, LineIndex, Place, Progress
from backprop.data.parse import BOM, parse_json, wide_encoding
from backprop.data.to_jsonl import BROKEN, BrokenRow, jsonl_copy, unpacked

__all__ = ["KINDS", "PACKED", "Kind", "Row", "Source", "open_source"]

_HEAD = 65536
_SMALL = 1024 * 1024
"""Bytes of a file all of whose rows are looked at by ``sample``."""
_PLACES = 64
_ROWS_PER_PLACE = 16


class Row(Struct, frozen=True):
    """One row as it was read.

    ``line`` is the line of the file (from 1) for ``jsonl``, ``txt`` and ``csv``, the row's number (from 1) for ``json``
    and ``parquet``. ``raw`` is the row as a line of JSON Lines; where it cannot be read, its own bytes. ``value`` is
    the parsed row, ``None`` where ``error`` says why there is none.
    """

    line: int
    raw: bytes
    value: object | None
    error: RowError | None


class Source(LineIndex):
    """A dataset file as rows. Reading never raises for a bad row: its ``error`` says what is wrong.

    Iterating gives every row from the first, each time; ``row`` reaches any row.

    Args:
        path: the file as the person named it.
        file: where its lines are: itself, or its copy as JSON Lines.
        start: offset of the first row in ``file``.
    """

    def __init__(self, path: Path, kind: Kind, file: Path, start: int, *, has_bom: bool, is_copy: bool) -> None:
        super().__init__(file, start)
        self.path = path
        self.kind: Kind = kind
        self.has_bom = has_bom
        self._is_copy = is_copy

    @property
    def unit(self) -> str:
        """What ``Row.line`` counts, in a word."""
        return "row" if self.kind in ("json", "parquet") else "line"

    def row(self, index: int) -> Row:
        """Row ``index`` (from 0).

        Raises:
            IndexError: there is no such row.
        """
        return self.made(self.place(index))

    def sample(self) -> Iterator[object]:
        """Values of rows from all over the file: of every row of a small one, else of the first rows and of some at
        evenly spread places. The same ones each time."""
        for row in self if self.size <= _SMALL else islice(self, _ROWS_PER_PLACE):
            if row.error is None:
                yield row.value
        for place in range(1, _PLACES if self.size > _SMALL else 0):
            # The first piece began somewhere within a row, the last one may be cut off.
            block = self.read_at(self.size * place // _PLACES, _HEAD).split(b"\n")[1:-1]
            for raw in [line for line in block if line.strip()][:_ROWS_PER_PLACE]:
                row = self.made((0, 0, raw))
                if row.error is None:
                    yield row.value

    def __len__(self) -> int:
        self.build()
        return self.known

    def __iter__(self) -> Iterator[Row]:
        for places in self.stream():
            for place in places:
                yield self.made(place)

    def made(self, place: Place) -> Row:
        """Parse what the index found."""
        line, offset, raw = place
        if self._is_copy and raw.startswith(BROKEN):
            broken = msgspec.json.decode(raw[len(BROKEN) :], type=BrokenRow)
            return Row(line, broken.raw, None, RowError(broken.code, broken.field, broken.message))
        value, error = parse_json(raw, offset)
        return Row(line, raw, value, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(path: str | Path, *, progress: Progress | None = None, cancelled: Cancelled | None = None) -> Source:
    """Open a dataset file: ``.jsonl``, ``.json``, ``.csv``, ``.parquet``, ``.txt``, each also ``.gz`` or ``.zst``.

    Of a plain file of JSON Lines nothing but the beginning is read; any other becomes one in the cache first.

    Args:
        progress: called while that is made, with bytes of the file read and their total.
        cancelled: asked meanwhile.

    Raises:
        DatasetNotFoundError: no such file, or it cannot be read.
        DatasetFormatError: the ending is none of the known ones.
        DatasetParseError: the file as a whole is not what its ending says (another encoding, an array in ``.jsonl``).
        DatasetError: it holds no row (``DATASET_EMPTY``).
        OperationCancelledError: ``cancelled`` said stop.
    """
    named = Path(path)
    _check_exists(named, str(path))
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
        kind, has_bom = _look(named, KINDS[inner])
        is_copy = packed or kind != "jsonl"
        file = jsonl_copy(named, kind, progress, cancelled) if is_copy else named
        start = len(BOM) if has_bom and kind == "jsonl" else 0
        source = Source(named, kind, file, start, has_bom=has_bom, is_copy=kind != "jsonl")
    except OSError as error:
        raise DatasetNotFoundError(
            f"{named} cannot be read: {error.strerror or error}",
            hint="check who may read it",
            details={"path": str(named)},
        ) from error
    try:
        source.row(0)
    except IndexError:
        source.close()
        raise _empty(named) from None
    return source


def _look(path: Path, kind: Kind) -> tuple[Kind, bool]:
    """What a file really holds by its first bytes, and whether it begins with a byte order mark."""
    with path.open("rb") as file, unpacked(path, file) as plain:
        head = plain.read(_HEAD)
    if not head:
        raise _empty(path)
    if kind == "parquet":
        return kind, False
    wide = wide_encoding(head)
    if wide is not None:
        raise DatasetParseError(
            f"{path}: line 1, byte 1: the file is {wide}, not UTF-8",
            hint=f"save it as UTF-8, for instance with: iconv -f {wide} -t UTF-8 {path} > utf8-{path.name}",
            details={"path": str(path), "line": 1, "encoding": wide},
        )
    has_bom = head.startswith(BOM)
    head = head.removeprefix(BOM)
    if kind == "json" and _is_json_lines(head):
        kind = "jsonl"
    if kind == "jsonl":
        _refuse_array(path, head, whole=len(head) < _HEAD - len(BOM))
    return kind, has_bom


def _is_json_lines(head: bytes) -> bool:
    """Whether a ``.json`` file holds one object a line, as many such files do."""
    lines = [line for line in head.split(b"\n", 64) if line.strip()][:2]
    return len(lines) == 2 and lines[0].lstrip().startswith(b"{") and parse_json(lines[0])[1] is None


def _refuse_array(path: Path, head: bytes, *, whole: bool) -> None:
    """Stop for JSON of another layout under the name ``.jsonl``: every line would be broken."""
    lines = [line.strip() for line in head.split(b"\n") if line.strip()]
    first = lines[0] if lines else b""
    what = ""
    if first.startswith(b"["):
        value, error = parse_json(first)
        lists_of_rows = isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
        torn = first == b"[" or (error is not None and first[1:].lstrip()[:1] == b"{")
        if torn or (lists_of_rows and len(lines) == 1 and whole):
            what = "one JSON array"
    elif first == b"{":
        what = "one JSON object written over many lines"
    if what:
        raise DatasetParseError(
            f"{path}: line 1: the file holds {what}, but .jsonl means one object in each line",
            hint=f"rename to .json: {path.with_suffix('.json').name}",
            details={"path": str(path), "line": 1},
        )


def _check_exists(path: Path, name: str) -> None:
    if path.is_file():
        return
    details = {"path": name}
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if set(file.suffixes) & set(KINDS))[:5]
        words = f"{path} is a directory, not a dataset file"
        hint = f"name one file in it, such as {', '.join(files)}" if files else "name a file"
    elif path.exists():
        words = f"{path} is a pipe or a device, not a file"
        hint = "it would have to be read twice: write it into a file first"
    elif is_hub_name(name):
        words = f"no file {name}, and a dataset of that name on the Hugging Face Hub was not fetched yet"
        hint = f"check the path; `backprop validate {name}` fetches the dataset, which needs the network"
        details["hub_name"] = name
    else:
        near = _similar(path)
        words = f"no file {path}" + (f" in {Path.cwd()}" if not path.is_absolute() else "")
        hint = f"did you mean {near}?" if near else "check the path and the spelling"
    raise DatasetNotFoundError(words, hint=hint, details=details)


def _similar(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.iterdir() if file.is_file()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return str(path.parent / close[0]) if close else ""


def _empty(path: Path) -> DatasetError:
    return DatasetError(
        f"{path}: dataset is empty", hint="write at least one row", code="DATASET_EMPTY", details={"path": str(path)}
    )
