"""What can be said of a run's rows before there is a run."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from backprop.core.datasets import data_files
from backprop.core.errors import DatasetError, DatasetFormatError, DatasetValidationError
from backprop.core.locate import held_out_file
from backprop.core.methods import METHODS, Rows
from backprop.core.settings import RunConfig
from backprop.data.example import Example, Format, RowError
from backprop.data.examples import read_row
from backprop.data.formats import file_format, other_method
from backprop.data.reader import SMALL, open_source

_OTHER_ROWS = ("no_pair", "no_label")


class _Rows(NamedTuple):
    """The rows of a small file, for a method."""

    fitting: int
    others: int
    first: tuple[int, RowError] | None
    """Of the others: its line, and why it is one."""
    format: Format | None
    unit: str


def require_rows(config: RunConfig) -> RunConfig:
    """``config``, located, if its files can be opened, have a row each, and rows that the method learns from, as far as
    that is known at once: large ones are not looked into.

    Raises:
        DatasetError: as ``open_source``, and where rows are made for another method or are of no format, with the line
            of the first; the setting that names the file is among the details.
    """
    for field, path in (("data", Path(config.data)), ("held_out", held_out_file(config.held_out))):
        stats = [file.stat() for file in data_files(path)] if path is not None and path.is_absolute() else []
        if stats and sum(each.st_size for each in stats) <= SMALL:
            stamps = tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in stats)
            try:
                rows = METHODS[config.method].rows
                found = _looked_at(str(path), stamps, rows, tuple(config.mapping.items()))
                _require_kind(str(path), found, config)
            except DatasetError as error:
                error.details["field"] = field
                raise
    return config


@lru_cache(maxsize=8)
def _looked_at(path: str, stamps: object, rows: Rows, mapping: tuple[tuple[str, str], ...]) -> _Rows:
    """Looked at once while a person fills in a form, as long as its files stay what they are (``stamps``)."""
    others, first, fitting = 0, None, 0
    with open_source(path) as source:
        file = file_format(source, dict(mapping) or None)
        for row in source:
            became = read_row(row, file).became
            fault = became.fault(rows) if isinstance(became, Example) else became
            if fault is not None and (fault.code in _OTHER_ROWS or (rows == "conversation" and file.format is None)):
                others, first = others + 1, first or (row.line, fault)
            else:
                fitting += 1
                if rows == "conversation":
                    break
        return _Rows(fitting, others, first, file.format, source.unit)


def _require_kind(path: str, found: _Rows, config: RunConfig) -> None:
    """Some rows are enough where the others may be left out, or where a run takes only some."""
    if found.first is None or (found.fitting and (config.skip_bad or config.samples is not None)):
        return
    line, fault = found.first
    details = {"path": path, "line": line, "rows": found.others, "problem": fault.code}
    if METHODS[config.method].rows == "conversation":
        way = "say which field is what, for instance: --map instruction=question --map output=answer"
        raise DatasetFormatError(
            f"{path}: no row has a known format ({found.unit} {line}: {fault.message})",
            hint=way if fault.code == "unknown_format" else "`backprop validate` lists what is wrong with each row",
            details=details,
        )
    skip = "train on the others with --skip-bad" if found.fitting else ""
    raise DatasetValidationError(
        f"{path}: {found.others} of {found.others + found.fitting} rows are not for {config.method}; "
        f"{found.unit} {line}: {fault.message}",
        code="DATASET_ROWS_UNUSABLE" if found.fitting else "DATASET_NOTHING_TO_TRAIN",
        hint="; or ".join(filter(None, [other_method(found.format, METHODS[config.method].rows), skip])),
        details=details,
    )
