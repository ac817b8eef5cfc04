"""An engine process that works on a run, told by its caller what the work is.

It takes over its descriptors, holds the run's lock and listens to commands before the work imports anything heavy. It
ends with ``run_finished`` or ``run_failed`` in the journal, whatever happens short of being killed.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn, TypeAlias

import msgspec

from backprop.core import events, log
from backprop.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUNTIME, BackpropError, RunError, TrainingAbortedError
from backprop.core.events import (
    EndStatus,
    Event,
    Paused,
    PhaseChanged,
    Resumed,
    RunFailed,
    RunFinished,
    RunStarted,
    Step,
    encode,
)
from backprop.core.settings import RunConfig
from backprop.runs.describe import log_event
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_process import WAIT
from backprop.runs.state import read_run
from backprop.worker.commands import Control
from backprop.worker.event_stream import EventPipe, EventWriter, take_stdout
from backprop.worker.setup import end_process, failure, quiet_libraries

Emit: TypeAlias = Callable[[Event], None]
Work: TypeAlias = Callable[[RunDirectory, Emit, Control], EndStatus]
"""Emits everything from ``run_started`` to ``run_finished`` and returns how the run ended; raises where it failed."""
GetReady: TypeAlias = Callable[[RunConfig, Callable[[], bool]], object]
"""Does ahead what a run with this configuration will need. Its second argument is called meanwhile, and may raise."""


class _Reporter:
    """Emits events, and remembers what an interrupted run must report at its end.

    Args:
        directory: the run's, whose lock is held; its journal is gone on with.
        pipe: gets what the journal gets.
        notes: events for after ``run_started``.
        logs: whether the log has them too: not of a run of a session, which logs what both tell.

    Raises:
        RunError: the journal cannot be written, or is another run's.
    """

    def __init__(
        self, directory: RunDirectory, control: Control, pipe: EventPipe, notes: Sequence[Event] = (), *, logs: bool
    ) -> None:
        self.run_id = directory.read_record().run_id
        journal = directory.open_journal(self.run_id)
        # Seconds that earlier engines worked on the run: its duration is the time worked, without the gaps.
        self._earlier = read_run(directory.path).duration_seconds if journal.seq else 0.0
        self.writer = EventWriter(journal, pipe, self.run_id)
        self._directory, self._control, self._notes, self._logs = directory, control, notes, logs
        self._started = time.monotonic()
        """Later by every pause that is over."""
        self._paused: float | None = None
        self._resumed_from = 0
        self._last: Step | None = None
        self.finished = False
        self._began = False

    def emit(self, event: Event) -> None:
        if isinstance(event, RunStarted | PhaseChanged):
            self._control.require_uninterrupted()
        if isinstance(event, RunFinished | RunFailed):
            event.began = self._began
        match event:
            case Step():
                self._last = event
            case RunFinished():
                self.finished = True
                event.duration_seconds = self._earlier + (self._paused or time.monotonic()) - self._started
            case Paused():
                self._paused = self._paused or time.monotonic()
            case Resumed() if self._paused is not None:
                self._started += time.monotonic() - self._paused
                self._paused = None
            case RunStarted():
                self._began = True
                self._started = time.monotonic()
                self._resumed_from = event.resumed_from or 0
        self._emit(event)
        if isinstance(event, RunStarted):
            for note in self._notes:
                self._emit(note)

    def _emit(self, event: Event) -> None:
        self.writer.emit(event)
        if self._logs:
            log_event(event)

    def interrupted(self) -> RunFinished:
        return RunFinished(
            status="interrupted",
            steps=self._last.step if self._last else self._resumed_from,
            final_loss=self._last.loss if self._last else None,
            output_path=self._directory.result,
            duration_seconds=0.0,
            samples_seen=self._last.samples_seen if self._last else 0,
            tokens_seen=self._last.tokens_seen if self._last else 0,
        )


def run_engine(work: Work, warm_up: Callable[[], GetReady] | None = None) -> NoReturn:
    """Do ``work`` on the run directory that the first argument names, and end the process.

    An engine that was started ahead imports what the work needs in ``warm_up``, then is told its arguments.
    """
    if sys.argv[1] == WAIT:
        quiet_libraries()
        sys.argv[1:] = _wait(warm_up)
    end_process(_run(RunDirectory(Path(sys.argv[1])), work))


def _wait(warm_up: Callable[[], GetReady] | None) -> list[str]:
    """The arguments that come on standard input. Until then the newest configuration from there is got ready for.

    What is wrong with it is not said here: the run that it is started as will say it.
    """
    told: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(told,), name="hints", daemon=True).start()
    get_ready = warm_up() if warm_up is not None else None

    def look() -> bool:
        if not told.empty():
            raise TrainingAbortedError("something else is asked for")
        return False

    while not (line := told.get()).startswith(b"["):
        # Whatever is wrong is said by the run itself. Nothing but events may reach standard output.
        with suppress(Exception), redirect_stdout(sys.stderr):
            look()
            if get_ready is not None:
                get_ready(msgspec.json.decode(line, type=RunConfig), look)
    return msgspec.json.decode(line, type=list[str])


def _listen(told: SimpleQueue[bytes]) -> None:
    """Hand over what comes on standard input; without its arguments the process ends with whoever started it."""
    for line in sys.stdin.buffer:
        told.put(line)
        if line.startswith(b"["):
            return
    end_process(EXIT_OK)


def _run(directory: RunDirectory, work: Work) -> int:
    pipe = EventPipe(take_stdout(directory.log))
    control = Control()
    try:
        with directory.hold_lock():
            notes: list[Event] = []
            if directory.restore_record():
                message = "run.json was missing: it was made again from the journal"
                notes.append(events.Warning(code="RECORD_RESTORED", message=message))
            reporter = _Reporter(directory, control, pipe, notes, logs=True)
            control.listen(directory)
            log.open_log(log.from_variables(), reporter.run_id)
            control.give_up = partial(_give_up, reporter)
            status = _report(directory, control, reporter, work)
            reporter.writer.close()
    except RunError as error:
        # It may not touch the journal: whoever started it is told, with a number that no event of the run has.
        print(f"[{error.code}] {error.message}", file=sys.stderr)
        pipe.offer(encode(failure(error)))
        return error.exit_code
    return status


@contextmanager
def inner_run(directory: RunDirectory, control: Control) -> Iterator[Emit]:
    """Work on one of the runs of the session that this engine works on: its lock and its journal.

    What is raised inside is in that journal as the run's end, and goes on.

    Raises:
        RunError: another process works on it, or its journal cannot be written.
    """
    with directory.hold_lock():
        reporter = _Reporter(directory, control, EventPipe(-1), logs=False)  # the session's pipe and log have the same
        try:
            yield reporter.emit
        except KeyboardInterrupt:
            if not reporter.finished:
                reporter.emit(reporter.interrupted())
            raise
        except BaseException as error:  # however it ended, its journal says so
            reporter.emit(failure(error))
            raise
        finally:
            reporter.writer.close()


def _give_up(reporter: _Reporter, error: BaseException) -> NoReturn:
    """End the engine from another thread than the one that works, which may never come back."""
    reporter.emit(failure(error))
    reporter.writer.close()
    end_process(error.exit_code if isinstance(error, BackpropError) else EXIT_RUNTIME)


def _report(directory: RunDirectory, control: Control, reporter: _Reporter, work: Work) -> int:
    """Do the work and emit how it ended; the process's exit status."""
    try:
        control.catch_signals()
        quiet_libraries()
        ended = work(directory, reporter.emit, control)
        return EXIT_INTERRUPTED if ended == "interrupted" else EXIT_OK
    except KeyboardInterrupt:
        control.ignore_signals()
        if not reporter.finished:
            reporter.emit(reporter.interrupted())
        return EXIT_INTERRUPTED
    except BaseException as error:  # the edge of the process: whatever it is, the journal has it, and never no end
        control.ignore_signals()
        log.LOGGER.error("the engine failed", exc_info=True)
        failed = failure(error)
        reporter.emit(failed)
        return failed.error().exit_code
