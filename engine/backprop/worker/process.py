"""An engine process that works on a run, told by its caller what the work is.

It takes over its descriptors, holds the run's lock and listens to commands before the work imports anything heavy. It
ends with ``run_finished`` or ``run_failed`` in the journal, whatever happens short of being killed.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

from backprop.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUNTIME, BackpropError, RunError
from backprop.core.events import EndStatus, Event, RunFinished, RunStarted, Step
from backprop.runs.directory import RunDirectory
from backprop.runs.journal import JournalWriter
from backprop.worker.commands import Control
from backprop.worker.event_stream import EventPipe, EventWriter, take_stdout
from backprop.worker.setup import end_process, failure, quiet_libraries

Emit: TypeAlias = Callable[[Event], None]
Work: TypeAlias = Callable[[RunDirectory, Emit, Control], EndStatus]
"""Emits everything from ``run_started`` to ``run_finished`` and returns how the run ended; raises where it failed."""


class _Reporter:
    """Emits events, and remembers what an interrupted run must report at its end."""

    def __init__(self, writer: EventWriter, directory: RunDirectory) -> None:
        self._writer = writer
        self._directory = directory
        self._started = time.monotonic()
        self._resumed_from = 0
        self._last: Step | None = None
        self.finished = False

    def emit(self, event: Event) -> None:
        if isinstance(event, Step):
            self._last = event
        if isinstance(event, RunStarted):
            self._resumed_from = event.resumed_from or 0
        self.finished = self.finished or isinstance(event, RunFinished)
        self._writer.emit(event)

    def interrupted(self) -> RunFinished:
        return RunFinished(
            status="interrupted",
            steps=self._last.step if self._last else self._resumed_from,
            final_loss=self._last.loss if self._last else None,
            output_path=self._directory.result,
            duration_seconds=time.monotonic() - self._started,
            samples_seen=self._last.samples_seen if self._last else 0,
            tokens_seen=self._last.tokens_seen if self._last else 0,
        )


def run_engine(work: Work) -> NoReturn:
    """Do ``work`` on the run directory that the first argument names, and end the process."""
    end_process(_run(RunDirectory(Path(sys.argv[1])), work))


def _run(directory: RunDirectory, work: Work) -> int:
    pipe = EventPipe(take_stdout(directory.log))
    control = Control()
    control.catch_signals()
    try:
        record = directory.read_record()
        with directory.hold_lock():
            writer = EventWriter(JournalWriter(directory.journal), pipe, record.run_id)
            control.listen(directory)
            status = _report(directory, control, _Reporter(writer, directory), work)
            writer.close()
    except RunError as error:
        print(f"[{error.code}] {error.message}", file=sys.stderr)
        return error.exit_code
    return status


def _report(directory: RunDirectory, control: Control, reporter: _Reporter, work: Work) -> int:
    """Do the work and emit how it ended; the process's exit status."""
    try:
        quiet_libraries()
        ended = work(directory, reporter.emit, control)
        return EXIT_INTERRUPTED if ended == "interrupted" else EXIT_OK
    except KeyboardInterrupt:
        if not reporter.finished:
            reporter.emit(reporter.interrupted())
        return EXIT_INTERRUPTED
    except BaseException as error:
        traceback.print_exc()
        reporter.emit(failure(error))
        return error.exit_code if isinstance(error, BackpropError) else EXIT_RUNTIME
