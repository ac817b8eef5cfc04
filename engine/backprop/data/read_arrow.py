"""The rows of Parquet and Arrow files, as the same rows in JSON Lines would give them."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from backprop.core.errors import DatasetParseError
from backprop.data.example import RowError
from backprop.data.parse import Found, Note

if TYPE_CHECKING:
    import pyarrow

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
