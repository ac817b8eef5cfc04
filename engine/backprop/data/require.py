"""What is refused of a run's data before a run is made: files that cannot be opened, without a row, or with none that
the method learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from backprop.core.datasets import data_files
from backprop.core.errors import DatasetError, DatasetFormatError
from backprop.core.events import DatasetPrepared, Problem
from backprop.core.locate import held_out_file
from backprop.core.methods import METHODS, Rows
from backprop.core.settings import RunConfig
from backprop.data.example import Example, Fields
from backprop.data.examples import read_row
from backprop.data.formats import detect_fields, file_format, other_method, rows_of
from backprop.data.reader import SMALL, Source, open_source

_FIRST = 16
"""Rows that are looked at first: where one of them is of the right kind, no others are."""


def require_rows(config: RunConfig) -> RunConfig:
    """``config``, located, if its files can be opened and hold a row of the kind that its method learns from, as far as
    that is known at once: large ones are not looked into.

    Raises:
        DatasetError: as ``open_source`` and ``nothing_to_train``, with the setting that names the file.
    """
    for field, path in (("data", Path(config.data)), ("held_out", held_out_file(config.held_out))):
        files = data_files(path) if path is not None and path.is_absolute() else []
        if files and sum(file.stat().st_size for file in files) <= SMALL:
            try:
                with open_source(str(path)) as source:
                    _require_kind(source, METHODS[config.method].rows, config.mapping)
            except DatasetError as error:
                error.details["field"] = field
                raise
    return config


def _require_kind(source: Source, wanted: Rows, mapping: Mapping[str, str]) -> None:
    """Refuse a small file in which no row is of the kind that is wanted, by its fields alone."""

    def fits(format: str | None) -> bool:
        return format is not None and format != "unknown" and wanted in ("conversation", rows_of(format))

    names = Fields(mapping)
    if any(fits(detect_fields(value, names)) for value in islice(source.sample(), _FIRST)):
        return
    file = file_format(source, mapping)
    if any(map(fits, file.counts)):
        return
    summary = DatasetPrepared(str(source.path), file.format or "", rows=0, kept=0, unit=source.unit)
    counts = Counter[str]()
    for row in source:
        became = read_row(row, file).became
        fault = became.fault(wanted) if isinstance(became, Example) else became
        if fault is None:  # of no format by its fields, and read as what most rows are
            return
        summary.rows += 1
        counts[fault.code] += 1
        summary.problems = summary.problems or [Problem(line=row.line, code=fault.code, message=fault.message)]
    raise nothing_to_train(summary, counts, wanted)


def nothing_to_train(summary: DatasetPrepared, counts: Counter[str], wanted: Rows) -> DatasetError:
    """The error of data of which no row is trained; ``counts``: its rows by what is wrong with them."""
    path, first = summary.path, min(summary.problems, key=lambda problem: problem.line)
    why = f"{summary.unit} {first.line}: {first.message}"
    if set(counts) == {"unknown_format"}:
        return DatasetFormatError(
            f"{path}: no row has a known format ({why})",
            hint="say which field is what, for instance: --map instruction=question --map output=answer",
            details={"path": path, "line": first.line},
        )
    most = ", ".join(f"{count} {code}" for code, count in counts.most_common(4))
    hint = "`backprop validate` lists every problem"
    if counts["answer_lost"]:
        hint += "; a larger --max-seq-length keeps longer answers"
    if counts["trace_too_short"] + counts["trace_too_long"] + counts["trace_unbalanced"] == summary.rows:
        hint = "no row has a reasoning trace that --reasoning-trace could use: leave it out to train the answers alone"
    return DatasetError(
        f"{path}: none of {summary.rows} rows can be trained ({most}); {why}",
        code="DATASET_NOTHING_TO_TRAIN",
        hint=other_method(summary.format, wanted) or hint,
        details={"path": path, "problems": dict(counts)},
    )
