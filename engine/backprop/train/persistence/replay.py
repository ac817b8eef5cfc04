"""A run that repeats another one: from the same model and rows, and whether its curve was the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import isnan, nan
from pathlib import Path
from typing import Any

import msgspec

from backprop.core import events
from backprop.core.errors import BackpropError, CheckpointError
from backprop.core.files import write_file
from backprop.data.token_cache import Prepared
from backprop.runs.compare import HELD_OUT, NAMED, describe_change, read_identity, read_rows, row_changes
from backprop.runs.directory import RunDirectory, keep_files
from backprop.runs.model_files import changes, model_differences
from backprop.runs.record import Replays
from backprop.runs.state import Curves, read_run
from backprop.train.persistence.resume import DATA_CHANGED, library_differences

_ROWS = {"data", "model", "samples", "mapping", "skip_bad", "max_seq_length", "train_on_responses", "reasoning_trace"}
"""Settings that decide which rows are trained: where one is meant to be another, so are the rows."""
_ALSO = {"steps": "epochs", "epochs": "steps"}


def keep_source(directory: RunDirectory, identity: dict[str, Any], rows: Prepared, held_out: Prepared) -> None:
    """Write down in a run's directory what it is made from, for whoever compares or repeats it.

    Args:
        held_out: the rows that some are held out of: ``rows`` themselves, or those of a file of their own.
    """
    for each, place in ((rows, directory.source), (held_out, directory.source / HELD_OUT)):
        if each is rows or held_out is not rows:
            keep_files(each.folder, place, ("lines.bin", "contents.bin"))
    write_file(directory.source / "identity.json", msgspec.json.encode(identity))


def require_same_source(replays: Replays, now: dict[str, Any], rows: Prepared) -> list[events.Warning]:
    """Refuse to repeat a run with another base model or other rows, unless those are meant to be others.

    Args:
        now: the identity of the run that is to begin.
        rows: all of its tokenised rows.

    Returns:
        What has to be said all the same: other versions, other code, settings that this machine chose otherwise, and a
        schedule that no single run has.

    Raises:
        CheckpointError: ``STATE_IDENTITY_MISMATCH`` with the list of differences.
    """
    parent, meant = RunDirectory(Path(replays.path)), set(replays.overrides)
    meant |= {_ALSO[name] for name in meant if name in _ALSO}
    saved, before = read_identity(parent), read_rows(parent)
    if not saved or before is None:
        raise CheckpointError(
            f"what run {replays.run_id} was made from is not written down in {parent.source}",
            code="STATE_IDENTITY_MISMATCH",
            hint="its files were deleted, or it ended before its data was prepared: `backprop train` starts a new run",
        )
    differences = [] if "model" in meant else model_differences(saved, now["model"])
    if not meant & _ROWS:
        found = row_changes(before, dict(zip(rows.lines.tolist(), rows.contents.tolist(), strict=True)))
        differences += [f"{rows.summary.path}: {describe_change(each, rows.summary.unit)}" for each in found[:NAMED]]
        differences += [f"{len(found) - NAMED} more rows"] if len(found) > NAMED else []
        if not found and saved["tokens"] != now["tokens"]:
            differences.append(DATA_CHANGED)
    if not meant & {*_ROWS, "held_out", "seed"} and not differences and saved["held_out"] != now["held_out"]:
        differences.append("the held-out rows were changed")
    if differences:
        raise CheckpointError(
            f"run {replays.run_id} cannot be repeated: " + "; ".join(differences),
            code="STATE_IDENTITY_MISMATCH",
            hint="put these back as they were; if it is meant, name it: `backprop replay RUN --data FILE` or --model M",
            details={"differences": differences},
        )
    others = [f"{name} was {was!r} and is {is_now!r}" for name, was, is_now in changes(saved["config"], now["config"])]
    told = {
        "SETTINGS_CHANGED": [text for text in others if text.split()[0] not in meant],
        "LIBRARIES_CHANGED": library_differences(saved, now),
        "CODE_CHANGED": [] if saved["code"] == now["code"] else [f"it was {saved['code']} and is {now['code']}"],
    }
    notes = [
        events.Warning(code=code, message=f"{code.split('_')[0].lower()} changed since: {'; '.join(texts)}")
        for code, texts in told.items()
        if texts
    ]
    if parent.read_record().extended:
        message = (
            f"run {replays.run_id} was extended on its way: its learning rate came down to the end that it had then"
        )
        message += ", here it comes down once, so that the curves part"
        notes.append(events.Warning(code="SCHEDULE_CHANGED", message=message))
    return notes


class CurveCheck:
    """Compares each step with the same step of the run that is repeated, and says at the end what came of it.

    Args:
        emit: where events go on to.
        taken: the steps of earlier stretches.
    """

    def __init__(self, replays: Replays, emit: Callable[[events.Event], None], taken: Curves) -> None:
        self._emit, self._parent = emit, replays.run_id
        self._before: dict[int, float] = {}
        with suppress(BackpropError):  # it was deleted meanwhile
            curves = read_run(Path(replays.path)).curves
            self._before = dict(zip(curves.step, curves.loss, strict=True))
        self._steps = 0
        self._parted: tuple[int, float, float] | None = None
        for step, loss in zip(taken.step, taken.loss, strict=True):
            self._compare(step, loss)

    def emit(self, event: events.Event) -> None:
        """Take in an event and hand it on."""
        if isinstance(event, events.Step):
            self._compare(event.step, nan if event.loss is None else event.loss)
        elif isinstance(event, events.RunFinished):
            step, loss, before = self._parted or (None, nan, nan)
            self._emit(
                events.ReplayCompared(
                    replayed=self._parent,
                    steps=self._steps,
                    parted_at=step,
                    loss=None if isnan(loss) else loss,
                    replayed_loss=None if isnan(before) else before,
                )
            )
        self._emit(event)

    def _compare(self, step: int, loss: float) -> None:
        if step in self._before:
            self._steps += 1
            before = self._before[step]
            same = loss == before or (isnan(loss) and isnan(before))
            self._parted = self._parted or (None if same else (step, loss, before))
