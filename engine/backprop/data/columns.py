"""Files of columns: CSV with an index of its records, Parquet by row groups."""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from backprop.core.errors import DatasetParseError
from backprop.data.example import RowError
from backprop.data.line_index import LONG_ROW, ROWS_PER_ENTRY, Place, RowIndex
from backprop.data.parse import not_utf8

_RECORDS_PER_SCAN = 4096
_LARGEST_FIELD = 2**31 - 1
_NESTED = ("messages", "conversations", "tools")
"""Columns whose cells are JSON where they look like it: a table has no other way to hold them."""
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


class CsvIndex(RowIndex):
    """Rows are the records after the header; a quoted cell may hold line breaks. Lines are where records begin."""

    def __init__(self, path: Path, start: int = 0) -> None:
        super().__init__(path, start)
        csv.field_size_limit(_LARGEST_FIELD)
        self._buffered = path.open("rb")
        self._buffered.seek(start)
        self._position = start
        self._line = 1
        self._last_row = start
        head = self.read_at(start, 65536).split(b"\n", 1)[0]
        self.delimiter = max(",;\t", key=lambda mark: (head.count(mark.encode()), mark == ","))
        self._reader = csv.reader(self._lines_of_file(), delimiter=self.delimiter)
        self.columns = self._read_header(path)

    def _lines_of_file(self) -> Iterator[str]:
        while line := self._buffered.readline():
            self._position += len(line)
            self._line += 1
            yield line.decode("latin-1")

    def _read_header(self, path: Path) -> list[str]:
        names: list[str] = []
        try:
            while not names and (record := next(self._reader, None)) is not None:
                names = record
            names = [name.encode("latin-1").decode().strip() for name in names]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DatasetParseError(
                f"{path}: the header in line 1 cannot be read: {error}",
                hint="save the file as UTF-8 CSV with the column names in the first line",
                details={"path": str(path), "line": 1},
            ) from error
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise DatasetParseError(
                f"{path}: line 1 names the column {twice[0]!r} twice",
                hint="give each column a name of its own",
                details={"path": str(path), "line": 1, "field": twice[0]},
            )
        self._scanned = self._position
        return names

    def _advance(self) -> None:
        found = 0
        for _ in range(_RECORDS_PER_SCAN):
            start, line = self._position, self._line
            try:
                record = next(self._reader, None)
            except csv.Error:
                record = [""]
            if record is None:
                self.complete = True
                break
            if not record:
                continue
            row = self.known + found
            if row % ROWS_PER_ENTRY == 0 or start - self._last_row > LONG_ROW:
                self._add_entry(row, line, start)
            self._last_row = start
            found += 1
        self._scanned = self._position
        self.known += found

    def split(self, block: bytes, line: int, offset: int, count: int = 0) -> list[Place]:
        places: list[Place] = []
        position, number = 0, line

        def lines() -> Iterator[str]:
            nonlocal position, number
            for text in _newline_split(block):
                position += len(text)
                number += 1
                yield text.decode("latin-1")

        reader = csv.reader(lines(), delimiter=self.delimiter)
        while True:
            start, first = position, number
            try:
                record = next(reader, None)
            except csv.Error:
                record = [""]
            if record is None:
                return places
            if record:
                places.append((first, offset + start, block[start:position].rstrip(b"\r\n")))

    def close(self) -> None:
        super().close()
        self._buffered.close()

    def parse(self, raw: bytes, offset: int) -> tuple[object | None, RowError | None]:
        """The record as a dict by column; an empty cell is ``None``."""
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            return None, not_utf8(raw, offset, error)
        try:
            cells = next(csv.reader(_lines(text), delimiter=self.delimiter), [])
        except csv.Error as error:
            return None, RowError("broken_csv", "", f"not a CSV record: {error}")
        if len(cells) != len(self.columns):
            message = f"{len(cells)} cells where the header names {len(self.columns)} columns"
            return None, RowError("column_count", "", f"{message}: a cell with a comma or line break needs quotes")
        return {name: _cell(name, cell) for name, cell in zip(self.columns, cells, strict=True)}, None


def _newline_split(block: bytes) -> Iterator[bytes]:
    """Lines by ``\\n`` alone, ends kept: what a file's own ``readline`` gives."""
    start = 0
    while start < len(block):
        end = block.find(b"\n", start) + 1 or len(block)
        yield block[start:end]
        start = end


def _lines(text: str) -> list[str]:
    """As ``_newline_split``: the other characters that ``str.splitlines`` knows are text."""
    return [line + "\n" for line in text.split("\n")]


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


class ParquetRows:
    """Rows of a Parquet file, read row group by row group in small batches.

    Args:
        path: the file.

    Raises:
        DatasetParseError: it is no Parquet file, or is damaged.
    """

    BATCH = 1024

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._broken = (pyarrow.ArrowException, OSError, ValueError)
        self.path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=False, pre_buffer=False)
        except self._broken as error:
            raise self._damaged(error) from error
        self._starts = [0]
        for group in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
        self.known = self._starts[-1]
        self._group = -1
        self._batches: Iterator[Any] = iter(())
        self._batch: list[dict[str, object]] = []
        self._batch_start = self._batch_end = 0

    def _damaged(self, error: Exception) -> DatasetParseError:
        return DatasetParseError(
            f"{self.path} cannot be read as Parquet: {str(error).splitlines()[0]}",
            hint="fetch or write the file again",
            details={"path": str(self.path)},
        )

    def value(self, row: int) -> dict[str, object]:
        """Row ``row`` (from 0) as a dict by column. Going forward is cheap; going back starts the row group again.

        Raises:
            IndexError: there is no such row.
            DatasetParseError: the row's pages are damaged.
        """
        if not 0 <= row < self.known:
            raise IndexError(row)
        group = bisect_right(self._starts, row) - 1
        try:
            if group != self._group or row < self._batch_start:
                self._group = group
                self._batches = self._file.iter_batches(self.BATCH, row_groups=[group])
                self._batch_start = self._batch_end = self._starts[group]
            while row >= self._batch_end:
                batch = next(self._batches)
                self._batch_start, self._batch_end = self._batch_end, self._batch_end + batch.num_rows
                if row < self._batch_end:
                    self._batch = batch.to_pylist()
        except self._broken as error:
            self._group = -1
            raise self._damaged(error) from error
        return self._batch[row - self._batch_start]

    def close(self) -> None:
        self._file.close()
