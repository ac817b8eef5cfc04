"""What can be said of a run's rows before there is a run."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

from backprop.core.datasets import data_files
from backprop.core.errors import DatasetError
from backprop.core.events import DatasetPrepared
from backprop.core.locate import held_out_file
from backprop.core.methods import METHODS, Rows
from backprop.core.settings import RunConfig
from backprop.data.example import Example, Findings
from backprop.data.examples import read_row
from backprop.data.formats import file_format
from backprop.data.reader import SMALL, open_source
from backprop.data.unusable import none_usable, some_unusable

_OTHER_ROWS = ("no_pair", "no_label")


def require_rows(config: RunConfig) -> RunConfig:
    """``config``, located, if its files can be opened, have a row each, and rows that the method learns from, as far as
    that is known at once: large ones are not looked into.

    Raises:
        DatasetError: as ``open_source``; and where rows are made for another method, or are of no format. The setting
            that names the file is among the details.
    """
    for field, path in (("data", Path(config.data)), ("held_out", held_out_file(config.held_out))):
        stats = [file.stat() for file in data_files(path)] if path is not None and path.is_absolute() else []
        if stats and sum(each.st_size for each in stats) <= SMALL:
            stamps = tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in stats)
            try:
                rows = METHODS[config.method].rows
                found = _looked_at(str(path), stamps, rows, tuple(config.mapping.items()))
                if not found.kept:
                    raise none_usable(found, Counter(found.problem_counts), rows)
                # Some are enough where the others may be left out, or where a run takes only some.
                if found.dropped and not config.skip_bad and config.samples is None:
                    raise some_unusable(found, config.method)
            except DatasetError as error:
                error.details["field"] = field
                raise
    return config


@lru_cache(maxsize=8)
def _looked_at(path: str, stamps: object, rows: Rows, mapping: tuple[tuple[str, str], ...]) -> DatasetPrepared:
    """The rows of a small file by their kinds: looked at once while a person fills in a form, as long as its files stay
    what they are (``stamps``)."""
    findings, seen = Findings(most=3), 0
    with open_source(path) as source:
        file, unit = file_format(source, dict(mapping) or None), source.unit
        for seen, row in enumerate(source, 1):  # noqa: B007  (how many there were)
            became = read_row(row, file).became
            fault = became.fault(rows) if isinstance(became, Example) else became
            if fault is not None and (fault.code in _OTHER_ROWS or file.format is None):
                findings.add(row.line, row.raw, fault)
            elif rows == "conversation":
                break  # one is enough
    bad = findings.counts.total()
    found = DatasetPrepared(path, file.format or "", rows=seen, kept=seen - bad, unit=unit, dropped=bad)
    found.problems, found.problem_counts = findings.problems, findings.counts
    return found
