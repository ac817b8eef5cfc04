"""What a run's model scored on rows of the open file that it did not train on."""

from __future__ import annotations

import math
from pathlib import Path

from backprop.core.errors import InputError
from backprop.core.jobs import Evaluation
from backprop.core.locate import held_out_file
from backprop.runs import evaluations
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex

from backprop_tui.keys import press
from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.row_text import format_of, summarise

_READ = 300
"""Rows whose text is shown: the hardest."""


def data_of(run: RunDirectory) -> str:
    """The file, or the name on the hub, that holds the rows which a run held out.

    Raises:
        RunError: the run's settings cannot be read.
    """
    config = run.find_record().config
    return str(held_out_file(config.held_out) or config.data)


def run_scores(opened: OpenFile, path: str) -> tuple[Evaluation, dict[int, str]]:
    """What the run in ``path`` scored, or the newest on the open file where it is empty, the hardest rows first; and
    the beginning of the hardest ones' text by line.

    Raises:
        InputError: none were kept.
    """
    names = (opened.path, opened.fetched)
    with RunIndex() as index:
        paths = [path] if path else [run.path for run in index.each() if run.dataset in names]
    for run in map(RunDirectory, map(Path, paths)):
        if data_of(run) in names and (found := evaluations.newest(run)) is not None:
            found.rows.sort(key=lambda row: -math.inf if row.loss is None else -row.loss)
            return found, {row.line: _text(opened, row.line, row.content) for row in found.rows[:_READ]}
    hint = f"{press('data.hardest')} has every row scored by the model"
    raise InputError("no run kept what it scored on rows of this file", hint=hint)


def _text(opened: OpenFile, line: int, content: int) -> str:
    """The beginning of a row; that it is another one, where the file was changed since."""
    from backprop.data.dedup import content_number

    index = opened.source.find(line)
    row = opened.row(index)
    format = None if row.error else format_of(row.value, opened.file)
    if row.line != line or row.error or content_number(row.value, format, opened.file.names) != content:
        return "! another row than was scored: the file was changed since"
    return summarise(opened, index).preview
