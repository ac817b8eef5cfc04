"""The rows of tables: CSV of any make, whose first line tells what separates cells and lines; Parquet and Arrow, read
as the same rows in JSON Lines would be."""

from __future__ import annotations

import csv
import io
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from backprop.core.errors import DatasetParseError
from backprop.data.example import RowError
from backprop.data.parse import BOM, Found, Note, not_utf8, parse_json

if TYPE_CHECKING:
    import pyarrow


_LARGEST_CELL = 64 * 1024 * 1024
"""What is longer is a quote that nobody closed."""
_DELIMITERS = ",;\t|"
_NESTED = ("messages", "conversations", "tools")
"""Columns whose cells are JSON where they look like it: a table has no other way to hold them."""
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_BACKSLASH_QUOTE = re.compile(r'(?<!\\)((?:\\\\)*)\\"')
_ODD = "its quotes stand behind a blank or a backslash: they are read as quotes"
_BROKEN = "not a CSV record: a quote that opens in it is not closed, or not where its cell ends"


def read_csv(path: Path, source: IO[bytes], note: Note) -> Iterator[Found]:
    """Records after the header; a quoted cell may hold line breaks. Lines are where records begin.

    Raises:
        DatasetParseError: the header cannot be read, or names a column twice.
    """
    csv.field_size_limit(_LARGEST_CELL)
    head = source.readline()
    line, offset = 1, len(BOM) if head.startswith(BOM) else 0
    lines = _Lines(head[offset:], source)
    delimiter = _delimiter(path, lines)
    ways = [
        csv.reader(read, delimiter=delimiter, strict=True, skipinitialspace=skips)
        for read, skips in ((lines, False), (lines, True), (map(_double_quotes, lines), False))
    ]
    columns: list[str] = []
    while True:
        cells, found = _record(lines, ways, len(columns))
        raw = "".join(lines.taken).encode("latin-1")
        if not raw:
            return
        if line == 1 and raw.lower().startswith(b"sep=") and cells[1:] in ([], [""]):
            note(f"cells are separated by {delimiter!r}, as the first line says")
        elif not columns:
            columns = _columns(path, line, cells, raw, found)
        elif cells:
            value, error = _row(columns, cells, raw, offset)
            yield line, raw.rstrip(b"\r\n"), value, error or found
        elif found is not None:
            yield line, raw.rstrip(b"\r\n"), None, found
        line, offset = line + len(lines.taken), offset + len(raw)
        lines.taken.clear()


class _Lines:
    """The lines of a file as Latin-1, which keeps every byte; they can be put back, also after the last one.

    Old Macintosh files end their lines with a carriage return alone.
    """

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self.head = head.splitlines(keepends=True)
        self._ahead = chain(self.head, rest)
        self._back: list[str] = []
        self.taken: list[str] = []
        """Those of the record in hand."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._back.pop() if self._back else next(self._ahead).decode("latin-1")
        self.taken.append(line)
        return line

    def again(self, count: int = 0) -> None:
        """Put the lines of the record back, all but the first ``count``."""
        self._back += reversed(self.taken[count:])
        del self.taken[count:]


def _double_quotes(line: str) -> str:
    r"""Quotes as CSV writes them, where ``\"`` stands for one."""
    return _BACKSLASH_QUOTE.sub(r'\1""', line)


def _delimiter(path: Path, lines: _Lines) -> str:
    if path.suffix.lower() == ".tsv" or path.suffixes[-2:-1] == [".tsv"]:
        return "\t"
    text = _QUOTED.sub("", lines.head[0].decode("latin-1")) if lines.head else ""
    if text.lower().startswith("sep=") and len(text.rstrip("\r\n")) == 5:
        return text[4]
    return max(_DELIMITERS, key=lambda mark: (text.count(mark), mark == ","))


def _record(lines: _Lines, ways: Sequence[Iterator[list[str]]], width: int) -> tuple[list[str], RowError | None]:
    """The cells of the next record and what is odd about it; none at the end, and of a record that cannot be read.

    Such a record costs its first line alone: the quote that nobody closed does not take the others with it.
    """
    plain, error = _read(ways[0])
    count = len(lines.taken)
    if not error and not any(cell.startswith(" ") and cell.lstrip(" ").startswith('"') for cell in plain):
        return plain, None
    for way in ways[1:]:
        lines.again()
        cells, failed = _read(way)
        if not failed and len(cells) == (width or len(cells)):
            return cells, None if cells == plain else RowError("csv_quotes", "", _ODD, "info")
    lines.again()
    for _ in range(1 if error else count):
        next(lines)
    if not error:
        return plain, None
    return [], RowError("broken_csv", "", f"{_BROKEN} ({error})")


def _read(way: Iterator[list[str]]) -> tuple[list[str], str]:
    try:
        return next(way, []), ""
    except csv.Error as wrong:
        return [], str(wrong)


def _columns(path: Path, line: int, cells: list[str], raw: bytes, error: RowError | None) -> list[str]:
    """The names in the header.

    Raises:
        DatasetParseError: it cannot be read, or names a column twice.
    """
    names, bad = _utf8(cells, raw, 0)
    error = bad if error is None or error.severity != "error" else error
    if error is not None:
        raise DatasetParseError(
            f"{path}: the header in line {line} cannot be read: {error.message}",
            hint="save the file as UTF-8 CSV with the column names in the first line",
            details={"path": str(path), "line": line},
        )
    names = [name.strip() for name in names]
    twice = sorted(name for name, count in Counter(names).items() if name and count > 1)
    if twice:
        raise DatasetParseError(
            f"{path}: line {line} names the column {twice[0]!r} twice",
            hint="give each column a name of its own",
            details={"path": str(path), "line": line, "field": twice[0]},
        )
    return names


def _row(columns: list[str], cells: list[str], raw: bytes, offset: int) -> tuple[object, RowError | None]:
    """The record as a dict by column; an empty cell is ``None``."""
    if not raw.isascii():
        cells, error = _utf8(cells, raw, offset)
        if error is not None:
            return None, error
    if len(cells) != len(columns):
        message = f"{len(cells)} cells where the header names {len(columns)} columns"
        return None, RowError("column_count", "", f"{message}: a cell with a comma or line break needs quotes")
    return {name: _cell(name, cell) for name, cell in zip(columns, cells, strict=True)}, None


def _utf8(cells: list[str], raw: bytes, offset: int) -> tuple[list[str], RowError | None]:
    """The cells of ``raw``, which begins at ``offset``, as the text they are; or what is wrong with its bytes."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return cells, not_utf8(raw, offset, error)
    return [cell.encode("latin-1").decode() for cell in cells], None


def _cell(name: str, cell: str) -> object:
    """A table holds text alone: labels and nested columns get their type back, nothing else is touched."""
    if not cell:
        return None
    if name == "label":
        return _TRUTH.get(cell.strip().lower(), cell)
    if name in _NESTED and cell.lstrip().startswith(("[", "{")):
        value, error = parse_json(cell.encode())
        return cell if error is not None and error.severity == "error" else value
    return cell


_BATCH = 1024
_TURN = 1
"""Depth of a turn in its row. Further in are calls and their arguments, which are trained as they are."""
_CALLABLE = ("tools", "functions")


def read_parquet(path: Path, source: IO[bytes], note: Note) -> Iterator[Found]:
    """Rows by row group, in small batches; a damaged group gives as many broken rows as it has."""
    from pyarrow import parquet

    with _seekable(source) as file:
        with _readable(path, "Parquet"):
            table = parquet.ParquetFile(file, pre_buffer=False)
        _note_nested(table.schema_arrow, note)
        number = 0
        for group in range(table.num_row_groups):
            end = number + table.metadata.row_group(group).num_rows
            try:
                for found in _rows(table.iter_batches(_BATCH, row_groups=[group]), number):
                    number = found[0]
                    yield found
            except _broken() as error:
                words = f"the row cannot be read: {str(error).splitlines()[0]}"
                while number < end:
                    number += 1
                    yield number, b"", None, RowError("broken_parquet", "", words)


def read_arrow(path: Path, source: IO[bytes], note: Note) -> Iterator[Found]:
    """Rows of an Arrow file or stream, as the library ``datasets`` keeps them."""
    from pyarrow import ipc

    with _seekable(source) as file, _readable(path, "Arrow"):
        at_random = file.read(6) == b"ARROW1"
        file.seek(0)
        opened = ipc.open_file(file) if at_random else ipc.open_stream(file)
        _note_nested(opened.schema, note)
        batches = map(opened.get_batch, range(opened.num_record_batches)) if at_random else opened
        pieces = (batch.slice(start, _BATCH) for batch in batches for start in range(0, batch.num_rows, _BATCH))
        yield from _rows(pieces, 0)


def _broken() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError)


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except _broken() as error:
        raise DatasetParseError(
            f"{path} cannot be read as {what}: {str(error).splitlines()[0]}",
            hint="fetch or write the file again",
            details={"path": str(path)},
        ) from error


@contextmanager
def _seekable(source: IO[bytes]) -> Iterator[IO[bytes]]:
    """The file itself, or what is unpacked of it in a temporary one."""
    if isinstance(source, io.BufferedReader) and isinstance(source.raw, io.FileIO):
        yield source
        return
    with tempfile.TemporaryFile() as spooled:
        shutil.copyfileobj(source, spooled)
        spooled.seek(0)
        yield spooled


def _rows(batches: Iterable[pyarrow.RecordBatch], number: int) -> Iterator[Found]:
    for batch in batches:
        for row in batch.to_pylist(maps_as_pydicts="strict"):
            number += 1
            value = {name: _written(cell, _TURN + (name in _CALLABLE)) for name, cell in row.items()}
            yield number, b"", value, None


def _written(value: Any, depth: int) -> Any:
    """A value without the nulls that the schema alone put there: each object has the fields of all the others."""
    if isinstance(value, list):
        return [_written(item, depth) for item in value]
    if isinstance(value, dict):
        kept = ((key, item) for key, item in value.items() if item is not None or depth <= _TURN)
        return {key: _written(item, depth + 1) for key, item in kept}
    return value


def _note_nested(schema: pyarrow.Schema, note: Note) -> None:
    deep = [field.name for field in schema if str(field.type).count("struct<") + (field.name in _CALLABLE) > _TURN]
    if deep:
        note(
            f"{', '.join(deep)}: inside calls and tools a null is read as a key that is not there, and keys are in the "
            "order of the file's schema: such files keep neither"
        )
