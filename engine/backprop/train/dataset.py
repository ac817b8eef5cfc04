"""The rows of a run: tokenised once, counted aloud, and divided into those trained on and those held out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import structs

from backprop.core import events, rules
from backprop.core.datasets import data_files
from backprop.core.errors import DatasetNotFoundError
from backprop.core.events import Event, PhaseChanged
from backprop.core.locate import held_out_file
from backprop.core.methods import METHODS
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.data import preprocess
from backprop.data import split as split_rows
from backprop.data.split import Split
from backprop.data.unusable import some_unusable
from backprop.fetch import datasets
from backprop.train import model as models
from backprop.train.packing import Row

Emit = Callable[[Event], None]
PROGRESS_SECONDS = 0.5


def prepare(
    config: RunConfig,
    model_path: Path,
    emit: Emit,
    look: Callable[[], bool],
    *,
    split: Split | None = None,
    now: datetime | None = None,
) -> tuple[preprocess.Prepared, Subset, Subset]:
    """The tokenised rows, and which of them are trained and which are held out (``divide``).

    Args:
        split: chooses those held out; open, the run's own seed does.
        now: the time that a chat template with a date in it writes; the present by default.

    ``dataset_prepared`` says what was kept, what was not, and how many are held out.

    Raises:
        DatasetValidationError: some rows would train nothing and ``skip_bad`` is off; it names the first of them.
        InvalidSettingError, DatasetNotFoundError: as ``divide``.
        DatasetError, ModelLoadError: as ``preprocess.prepare``.
    """
    read = partial(tokenise, model_path=model_path, emit=emit, look=look, now=now)
    rows = read(config, config.data, samples=config.samples)
    summary = rows.summary
    if summary.unusable and not config.skip_bad:
        emit(summary)
        raise some_unusable(summary, config.method)
    if config.max_seq_length == "auto":
        config = structs.replace(config, max_seq_length=summary.max_length)
    trained, held_out = divide(rows, config, read, emit, split or Split(seed=config.seed))
    summary.held_out = len(held_out)
    emit(summary)
    for problem in summary.problems:
        if problem.code == "one_label":
            emit(events.Warning(code="ONE_LABEL", message=problem.message))
    return rows, trained, held_out


class RunRows(NamedTuple):
    """The rows of a run, and its configuration with all that they decide about."""

    config: RunConfig
    rows: preprocess.Prepared
    trained: Subset
    held_out: Subset
    evaluated: Subset
    """Those of ``held_out`` that evaluations take."""
    schedule: Schedule


def prepare_run(
    config: RunConfig,
    path: Path,
    emit: Callable[[Event], None],
    look: Callable[[], bool],
    *,
    asked: RunConfig,
    prepared: RunConfig | None = None,
    split: Split | None = None,
    now: datetime | None = None,
) -> RunRows:
    """Prepare the rows of a ``resolved`` configuration for the model in ``path``, and choose what was left to them.

    Args:
        asked: the configuration with what nobody has said still open.
        prepared: what the rows were prepared with, where another process did that.

    The rest, and what it raises, is as for ``prepare``. Emits ``settings_chosen`` after that.
    """
    rows, trained, held_out = prepare(prepared or config, path, emit, look, split=split, now=now)
    config, reasons = models.for_lengths(config, asked, rows.summary)
    schedule = Schedule.of(config, len(trained))
    config, others = rules.for_rows(
        config,
        path,
        rows=len(trained),
        held_out=len(held_out),
        rows_per_step=schedule.rows_per_step,
        steps=schedule.steps,
    )
    if reasons := models.by_memory(asked) | reasons | others:
        values = msgspec.to_builtins(config)
        emit(events.SettingsChosen(values={name: values[name] for name in reasons}, reasons=reasons))
    return RunRows(config, rows, trained, held_out, in_proportion(held_out, trained, schedule), schedule)


def tokenise(
    config: RunConfig,
    path: str,
    *,
    model_path: Path,
    emit: Emit,
    look: Callable[[], bool],
    samples: int | None = None,
    now: datetime | None = None,
) -> preprocess.Prepared:
    """The rows of ``path`` as tokens, with its progress in ``phase_changed`` events.

    ``path`` may name a dataset on the Hugging Face Hub, which is fetched first.
    """
    show = now_and_then(
        lambda done, total: emit(PhaseChanged(phase="preparing_data", detail=f"{100 * done // max(1, total)} %"))
    )

    def progress(done: int, total: int) -> None:
        look()
        show(done, total)

    rows = preprocess.prepare(
        datasets.find(path, emit, look),
        model_path,
        rows=METHODS[config.method].rows,
        max_length=config.max_seq_length,
        most=models.longest_rows(config),
        train_on_responses=config.train_on_responses,
        traces=config.reasoning_trace,
        mapping=config.mapping or None,
        samples=samples,
        now=now,
        progress=progress,
    )
    fits = rows.summary.max_length
    if config.max_seq_length != "auto" and fits < config.max_seq_length:
        emit(events.Warning(code="CONTEXT_SHORTER", message=f"the model reads at most {fits} tokens of a row"))
    return rows


def now_and_then(report: Callable[[int, int], object], seconds: float = PROGRESS_SECONDS) -> Callable[[int, int], None]:
    """``report``, called at most once in so many ``seconds`` with how much is done, of how much."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            report(done, total)

    return progress


class Referenced(NamedTuple):
    """A row with what the untouched model makes of it (``train.reference``)."""

    row: Any
    """A ``Pair``, or a ``Judged`` row."""
    reference: npt.NDArray[np.float64]
    """Log-probabilities, each summed over supervised tokens ([2]): of both sides, or of the row and ``other``."""
    other: Row | None = None
    """Of a judged row: its prompt with the answer of another row."""


class Subset:
    """Some rows of a prepared dataset, renumbered from 0; ``places`` are their numbers there."""

    def __init__(self, rows: preprocess.Prepared, places: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self.rows = rows
        self.places = np.asarray(places, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.places)

    def row(self, index: int) -> Any:
        """As ``Prepared.row``; of a run that compares with the untouched model it is ``Referenced``."""
        return self.rows.row(int(self.places[index]))

    def sequences(self, index: int) -> list[Row]:
        """As ``Prepared.sequences``."""
        return self.rows.sequences(int(self.places[index]))

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        """Which of these judged rows are good."""
        labels: npt.NDArray[np.bool_] = self.rows.labels[self.places]
        return labels

    @property
    def lines(self) -> npt.NDArray[np.int64]:
        """The line of the file that each sample is from."""
        return self.rows.lines[self.places]

    def names(self) -> list[tuple[int, int]]:
        """Line and hash of the content of the row that each sample is from."""
        return list(zip(self.lines.tolist(), self.rows.contents[self.places].tolist(), strict=True))

    @property
    def fingerprint(self) -> str:
        """Hash of these rows' tokens, trained flags and labels, in order; empty where there are none."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            for ids, trained in self.sequences(index):
                digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + trained.tobytes())
        if self.rows.rows == "feedback":
            digest.update(self.rows.labels[self.places].tobytes())
        return digest.hexdigest() if len(self) else ""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return self.rows.lengths[self.places]


def in_proportion(held_out: Subset, trained: Subset, schedule: Schedule) -> Subset:
    """Held-out rows, from the first, that have no more tokens than the whole run trains.

    Going through a row once takes a third of what training it does, so a run never evaluates for longer than it trains.
    """
    if not len(held_out):
        return held_out
    tokens = schedule.steps * schedule.rows_per_step * float(trained.lengths.mean())
    return Subset(held_out.rows, held_out.places[: max(1, int((held_out.lengths.cumsum() <= tokens).sum()))])


def divide(
    rows: preprocess.Prepared,
    config: RunConfig,
    read: Callable[[RunConfig, str], preprocess.Prepared],
    emit: Emit,
    split: Split,
) -> tuple[Subset, Subset]:
    """Rows to train on and rows to evaluate on, as ``config.held_out`` says.

    Rows of the same file are held out by the hash of what they say, before anything is cut, so that equal rows and the
    pieces of a long text stay on one side, under each model and limit, and adding rows moves none of the others. A fork
    is given its parent's split, so that it is not evaluated on rows that its parent was trained on. A file of its own
    is held out whole; rows that are in both files are warned about.

    Raises:
        InvalidSettingError: ``held_out`` is neither a known word, nor a share, nor a file.
        DatasetNotFoundError: there is no such file.
        DatasetValidationError: some rows of that file cannot be used, and ``skip_bad`` is off.
    """
    held_out = config.held_out
    if (file := held_out_file(held_out)) is not None:
        others = _held_out_rows_of(file, config, read, emit)
        both = set(_token_keys(rows)) & set(_token_keys(others))
        if both:
            message = f"{len(both)} rows of {held_out} are trained on as well: its loss is too good by that"
            hint = "`backprop validate --held-out` lists them"
            emit(events.Warning(code="HELD_OUT_OVERLAP", message=message, hint=hint))
        return Subset(rows, range(len(rows))), Subset(others, range(len(others)))
    keys = _token_keys(rows) if split.by_tokens else [content.tobytes() for content in rows.contents]
    chosen = split_rows.held_out(split_rows.places(keys, split.seed), held_out)
    return Subset(rows, np.flatnonzero(~chosen)), Subset(rows, np.flatnonzero(chosen))


def _held_out_rows_of(
    file: Path, config: RunConfig, read: Callable[[RunConfig, str], preprocess.Prepared], emit: Emit
) -> preprocess.Prepared:
    """The rows of a file of its own; those that cannot be used count as among the rows that are trained."""
    if not data_files(file):
        raise DatasetNotFoundError(
            f"there is no file of held-out rows {file}",
            hint="put it back, or start a new run with --held-out",
            details={"field": "held_out", "path": str(file)},
        )
    rows = read(config, str(file))
    summary = rows.summary
    if summary.unusable:
        error = some_unusable(summary, config.method)
        if not config.skip_bad:
            raise error
        emit(events.Warning(code="HELD_OUT_ROWS_LEFT_OUT", message=f"not evaluated: {error.message}"))
    return rows


def _token_keys(rows: preprocess.Prepared) -> list[bytes]:
    keys = (b"".join(ids.tobytes() for ids, _ in rows.sequences(i)) for i in range(len(rows)))
    return [hashlib.blake2b(key, digest_size=16).digest() for key in keys]
