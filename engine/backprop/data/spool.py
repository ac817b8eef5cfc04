"""Rows from memory as a file: the engine is another process, and reads files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from backprop.core.errors import DatasetError, DatasetFormatError
from backprop.data.parse import json_line, plain

_TABLES = {
    "to_dict('records')": ("iloc", "to_dict"),
    "to_dicts()": ("columns", "to_dicts"),
    "to_pylist()": ("schema", "to_pylist"),
}
"""How a table of pandas, polars and pyarrow gives its rows, and what it is known by."""


def spool(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Write rows as JSON Lines, one at a time; returns ``path``.

    Raises:
        DatasetFormatError: something is no row, or a value that JSON cannot hold.
        DatasetError: there is no row.
    """
    with path.open("wb") as file:
        for number, row in enumerate(_by_rows(rows), 1):
            if not isinstance(row, Mapping):
                kind = type(row).__name__
                raise DatasetFormatError(f"row {number} is a {kind}, not a mapping", hint="rows are dictionaries")
            try:
                file.write(json_line(dict(row), default=_plain))
            except (TypeError, ValueError, RecursionError) as error:
                raise DatasetFormatError(
                    f"row {number} cannot be written as JSON: {error}", hint="keep text, numbers and lists of them"
                ) from error
        if not file.tell():
            raise DatasetError("no row was given", hint="pass at least one row", code="DATASET_EMPTY")
    return path


def _by_rows(data: Any) -> Iterable[Any]:
    """Rows, also of a mapping of columns.

    Raises:
        DatasetFormatError: it is something else that holds rows; the hint says how to pass it.
    """
    for call, names in _TABLES.items():
        if all(hasattr(data, name) for name in names):
            raise DatasetFormatError("a table is not read row by row", hint=f"pass its rows: table.{call}")
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        hint = "pass the path of a file, or rows: an iterable of dictionaries"
        raise DatasetFormatError(f"{type(data).__name__} is no dataset", hint=hint)
    if not isinstance(data, Mapping):
        return data  # type: ignore[no-any-return]
    named = ", ".join(map(str, data))
    columns = list(data.values())
    if any(isinstance(column, str) or not hasattr(column, "__len__") for column in columns):
        raise DatasetFormatError(f"this is one row ({named}), not several", hint="put it into a list")
    if all(isinstance(next(iter(column), {}), Mapping) for column in columns):
        raise DatasetFormatError(f"this is several datasets ({named}), not one", hint="pass one of them: data['train']")
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in data.items())
        raise DatasetFormatError(f"the columns differ in length: {lengths}", hint="give each row one value in each")
    return (dict(zip(data, row, strict=True)) for row in zip(*columns, strict=True))


def _plain(value: Any) -> Any:
    """Text in bytes, decimal numbers, arrays and scalars of numerical libraries as plain values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    made = plain(value) if isinstance(value, bytes | Decimal) else None
    if isinstance(made, str):
        return made
    raise TypeError("bytes that are not UTF-8" if made else f"a value of type {type(value).__name__}")
