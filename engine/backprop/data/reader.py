"""Any dataset file as rows: opened at once, read at random, whatever is wrong with single rows.

    with open_source("data.jsonl") as source:
        source.start()                # optional: find all rows in a thread
        first = source.row(0)         # milliseconds, at any size of file
        for row in source: ...        # every row, broken ones with their error

A hub name such as ``user/dataset`` is not resolved here: the engine fetches it into a file first.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Self

from msgspec import Struct

from backprop.core.datasets import data_files, empty, is_hub_name, missing
from backprop.core.errors import DatasetError, DatasetNotFoundError, DatasetParseError, some
from backprop.data.example import RowError
from backprop.data.line_index import Cancelled, LineIndex, Place, Progress, watched
from backprop.data.parse import BOM, is_binary, json_line, parse_json, wide_encoding
from backprop.data.to_jsonl import (
    KINDS,
    ODD,
    PACKED,
    Kind,
    begin,
    begun,
    copy_of,
    held_kind,
    jsonl_copy,
    odd_row,
    packing,
    row_line,
    unpacked,
)

__all__ = ["KINDS", "PACKED", "Kind", "Row", "Source", "open_source"]

_HEAD = 65536
SMALL = 1024 * 1024
"""Bytes of a file all of whose rows are looked at by ``sample``."""
_LOOK_ROWS = 10_000
"""Rows that are put together between two looks whether somebody wants to stop."""
_SHOWN = 10
_PLACES = 64
_ROWS_PER_PLACE = 16


class Row(Struct, frozen=True):
    """One row as it was read.

    ``line`` is the line of the file (from 1) for ``jsonl``, ``txt`` and ``csv``, else the row's number (from 1).
    ``raw`` is the row as a line of JSON Lines; where it cannot be read, its own bytes. ``value`` is the parsed row,
    ``None`` where ``error`` says why there is none. ``warning`` says what was not read as it stands.
    """

    line: int
    raw: bytes
    value: object | None
    error: RowError | None
    warning: RowError | None = None


class Source(LineIndex):
    """A dataset file as rows. Reading never raises for a bad row: its ``error`` says what is wrong.

    Iterating gives every row from the first, each time; ``row`` reaches any row.

    Args:
        path: the file as the person named it.
        file: where its lines are: itself, or its copy as JSON Lines.
        start: offset of the first row in ``file``.
        notes: what is unusual about how the file as a whole is read.
    """

    def __init__(self, path: Path, kind: Kind, file: Path, start: int, *, has_bom: bool, notes: list[str]) -> None:
        super().__init__(file, start)
        self.path = path
        self.kind: Kind = kind
        self.has_bom = has_bom
        self.notes = notes

    @property
    def unit(self) -> str:
        """What ``Row.line`` counts, in a word."""
        return "line" if self.kind in ("jsonl", "csv", "txt") else "row"

    def row(self, index: int) -> Row:
        """Row ``index`` (from 0).

        Raises:
            IndexError: there is no such row.
        """
        return self.made(self.place(index))

    def sample(self) -> Iterator[object]:
        """Values of rows from all over the file: of every row of a small one, else of the first rows and of some at
        evenly spread places. The same ones each time."""
        for row in self if self.size <= SMALL else islice(self, _ROWS_PER_PLACE):
            if row.error is None:
                yield row.value
        for place in range(1, _PLACES if self.size > SMALL else 0):
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
        warning = None
        if self.kind != "jsonl" and raw.startswith(ODD):
            raw, warning = odd_row(raw)
            raw = raw.rstrip(b"\n")
            if warning.severity == "error":
                return Row(line, raw, None, warning)
        value, found = parse_json(raw, offset)
        if found is not None and found.severity == "error":
            return Row(line, raw, value, found)
        if found is not None and found.code == "nan_value":
            raw = json_line(value).rstrip(b"\n")
        return Row(line, raw, value, None, warning or found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(path: str | Path, *, progress: Progress | None = None, cancelled: Cancelled | None = None) -> Source:
    """Open a dataset file (``KINDS``, each also packed), a folder with its parts, or those that a pattern fits.

    Of a plain file of JSON Lines nothing but the beginning is read; anything else becomes one in the cache first.

    Args:
        progress: called while that is made, with bytes of the file read and their total.
        cancelled: asked meanwhile.

    Raises:
        DatasetNotFoundError: no such file, or it cannot be read.
        DatasetFormatError: the ending is none of the known ones.
        DatasetParseError: the file as a whole is not what its ending says (another encoding, an array in ``.jsonl``).
        DatasetError: it holds no row (``DATASET_EMPTY``), or it is not clear which are meant (``DATASET_AMBIGUOUS``).
        OperationCancelledError: ``cancelled`` said stop.
    """
    named = Path(path)
    try:
        files = data_files(named)
        if not files:
            raise _not_fetched(str(path)) if is_hub_name(str(path)) else missing(named)
        if len(files) == 1:
            source = _open_file(files[0], progress, cancelled)
        else:
            copy = copy_of(named, files, "shards", partial(_put_together, named, files, progress, cancelled))
            notes, start = begun(copy)
            source = Source(named, "shards", copy, start, has_bom=False, notes=notes)
    except OSError as error:
        raise DatasetNotFoundError(
            f"{named} cannot be read: {error.strerror or error}",
            hint="shorten the name" if error.errno == errno.ENAMETOOLONG else "check who may read it",
            details={"path": str(named)},
        ) from error
    try:
        source.row(0)
    except IndexError:
        source.close()
        raise empty(named) from None
    return source


def _open_file(path: Path, progress: Progress | None, cancelled: Cancelled | None) -> Source:
    kind, has_bom, notes = _look(path)
    file, start = path, 0
    if kind != "jsonl" or packing(path):
        file = jsonl_copy(path, kind, progress, cancelled)
        more, start = begun(file)
        notes += more
    if has_bom and kind == "jsonl":
        start += len(BOM)
    return Source(path, kind, file, start, has_bom=has_bom, notes=notes)


def _put_together(
    named: Path, files: list[Path], progress: Progress | None, cancelled: Cancelled | None, copy: IO[bytes]
) -> None:
    """Write the rows of several files as those of one."""
    watch = watched(named, sum(file.stat().st_size for file in files), progress, cancelled)

    def sources() -> Iterator[Source]:
        before = 0

        def show(done: int, _: int) -> None:
            watch(before + done)

        for file in files:
            try:
                source = open_source(file, progress=show)
            except DatasetError as error:
                if error.code != "DATASET_EMPTY":
                    raise
                continue
            finally:
                before += file.stat().st_size
            with source:
                yield source

    first, starts, notes = 1, [], Counter[str]()
    for source in sources():
        starts.append(f"{source.path.name} from row {first}")
        notes.update(source.notes)
        first += len(source)
    joined = f"{len(starts)} files are read as one: {some(starts, _SHOWN)}"
    begin(copy, [joined, *(f"{note} ({count} files)" for note, count in notes.items())])
    done = 0
    for source in sources():
        for count, row in enumerate(source):
            if count % _LOOK_ROWS == 0:
                watch(done)
            done += len(row.raw) + 1
            found = row.error or row.warning
            if found is not None:
                words = f"{found.message} ({source.unit} {row.line} of {source.path.name})"
                found = RowError(found.code, found.field, words, found.severity)
            copy.write(row_line(row.raw, row.value, found) if found else row.raw.removeprefix(BOM) + b"\n")
    watch(done)


def _look(path: Path) -> tuple[Kind, bool, list[str]]:
    """What a file really holds by its first bytes, whether it begins with a byte order mark, and what is unusual."""
    with path.open("rb") as file, unpacked(path, file) as plain:
        head = plain.read(_HEAD)
    if not head:
        raise empty(path)
    kind, notes = held_kind(path, head)
    if kind in ("parquet", "arrow"):
        return kind, False, notes
    wide = wide_encoding(head)
    if wide is not None:
        raise DatasetParseError(
            f"{path}: line 1, byte 1: the file is {wide}, not UTF-8",
            hint=f"save it as UTF-8, for instance with: iconv -f {wide} -t UTF-8 {path} > utf8-{path.name}",
            details={"path": str(path), "line": 1, "encoding": wide},
        )
    if is_binary(head):
        raise DatasetParseError(
            f"{path}: it holds no text but binary data, whatever its name says",
            hint="name the file that holds the rows: text, Parquet or Arrow",
            details={"path": str(path), "line": 1},
        )
    has_bom = head.startswith(BOM)
    head = head.removeprefix(BOM)
    if kind == "json" and _is_json_lines(head):
        kind = "jsonl"
    if kind == "jsonl":
        _refuse_array(path, head, whole=len(head) < _HEAD - len(BOM))
    return kind, has_bom, notes


def _is_json_lines(head: bytes) -> bool:
    """Whether a ``.json`` file holds one object a line, as many such files do: the first, or two of three."""
    lines = [line for line in head.split(b"\n", 64) if line.strip()][:3]
    objects = [line.lstrip().startswith(b"{") and parse_json(line)[0] is not None for line in lines]
    return len(lines) > 1 and (objects[0] or (lines[0].startswith(b"{") and sum(objects) > 1))


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
        what = "JSON objects written over many lines"
    if what:
        raise DatasetParseError(
            f"{path}: line 1: the file holds {what}, but .jsonl means one object in each line",
            hint=f"rename to .json: {path.with_suffix('.json').name}",
            details={"path": str(path), "line": 1},
        )


def _not_fetched(name: str) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"no file {name}, and a dataset of that name on the Hugging Face Hub was not fetched yet",
        hint=f"check the path; `backprop validate {name}` fetches the dataset, which needs the network",
        details={"path": name, "hub_name": name},
    )
