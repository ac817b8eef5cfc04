"""What models scored on each of a run's held-out rows: ``evaluations/step-00000000.json`` is the base model's,
``step-N.json`` that of the result of step N, ``eval-….json`` what ``backprop eval`` found.

Each is one JSON document (``core.jobs.Evaluation``), put in place whole. ``step`` files hold no text of the rows: of
each its ``line`` in the file, a hash of its ``content``, its mean ``loss`` in nats and the supervised ``tokens`` behind
that. A long text that was split is one row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import msgspec

from backprop.core.files import read_json, write_file
from backprop.core.jobs import EvaluatedRow, Evaluation
from backprop.runs.directory import RunDirectory


def step_file(run: RunDirectory, step: int) -> Path:
    """Where the scores of ``step`` are."""
    return run.evaluations / f"step-{step:08d}.json"


def write(file: Path, evaluation: Evaluation) -> None:
    """Keep ``evaluation`` in ``file``.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    file.parent.mkdir(exist_ok=True)
    write_file(file, msgspec.json.encode(evaluation) + b"\n")


def read(run: RunDirectory, step: int) -> Evaluation | None:
    """The scores of ``step``; ``None`` where there are none that can be read."""
    try:
        return read_json(step_file(run, step), Evaluation)
    except (OSError, ValueError):
        return None


def newest(run: RunDirectory) -> Evaluation | None:
    """The scores of the latest step that was taken; ``None`` where none were kept."""
    steps = sorted((int(file.stem[5:]) for file in run.evaluations.glob("step-*.json")), reverse=True)
    return next((found for step in steps if step and (found := read(run, step))), None)


def by_row(samples: Iterable[tuple[int, int, float, int]]) -> list[EvaluatedRow]:
    """One score a row, of samples that are its pieces: line, content, summed loss and what that weighs."""
    found: dict[tuple[int, int], tuple[float, int]] = {}
    for line, content, loss, weight in samples:
        before = found.get((line, content), (0.0, 0))
        found[line, content] = before[0] + loss, before[1] + weight
    return [
        EvaluatedRow(line=line, content=content, loss=loss / weight if math.isfinite(loss) else None, tokens=weight)
        for (line, content), (loss, weight) in found.items()
        if weight
    ]
