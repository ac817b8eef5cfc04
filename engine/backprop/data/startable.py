"""What can be said of a run's rows before there is a run."""

from __future__ import annotations

from pathlib import Path

from backprop.core.datasets import data_files
from backprop.core.errors import DatasetError, DatasetValidationError
from backprop.core.locate import held_out_file
from backprop.core.methods import METHODS
from backprop.core.settings import RunConfig
from backprop.data.example import Example
from backprop.data.examples import read_row
from backprop.data.formats import file_format, other_method
from backprop.data.reader import SMALL, Source, open_source

_OTHER_ROWS = ("no_pair", "no_label")


def require_rows(config: RunConfig) -> RunConfig:
    """``config``, located, if its files can be opened, have a row each, and rows that the method learns from, as far as
    that is known at once: large ones are not looked into.

    Raises:
        DatasetError: as ``open_source``, and where rows are made for another method, with the line of the first; the
            setting that names the file is among the details.
    """
    for field, path in (("data", Path(config.data)), ("held_out", held_out_file(config.held_out))):
        files = data_files(path) if path is not None and path.is_absolute() else []
        if files and sum(file.stat().st_size for file in files) <= SMALL:
            try:
                with open_source(str(path)) as source:
                    _require_kind(source, config)
            except DatasetError as error:
                error.details["field"] = field
                raise
    return config


def _require_kind(source: Source, config: RunConfig) -> None:
    """Some rows are enough where the others may be left out, or where a run takes only some."""
    rows = METHODS[config.method].rows
    if rows == "conversation":
        return
    file, fitting, others = file_format(source, config.mapping or None), 0, []
    for row in source:
        became = read_row(row, file).became
        fault = became.fault(rows) if isinstance(became, Example) else None
        if fault is not None and fault.code in _OTHER_ROWS:
            others.append((row.line, fault))
        else:
            fitting += 1
    if not others or (fitting and (config.skip_bad or config.samples is not None)):
        return
    line, fault = others[0]
    skip = "train on the others with --skip-bad" if fitting else ""
    raise DatasetValidationError(
        f"{source.path}: {len(others)} of {len(others) + fitting} rows are not for {config.method}; "
        f"{source.unit} {line}: {fault.message}",
        code="DATASET_ROWS_UNUSABLE" if fitting else "DATASET_NOTHING_TO_TRAIN",
        hint="; or ".join(filter(None, [other_method(file.format, rows), skip])),
        details={"path": str(source.path), "line": line, "rows": len(others), "problem": fault.code},
    )
