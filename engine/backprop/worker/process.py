"""The engine process: ``python -P -m backprop.worker.process RUN_DIRECTORY [start | resume | extend STEPS]``.

It takes over its descriptors, holds the run's lock, imports the heavy libraries and says ``run_started`` with the
configuration as resolved on this machine. It ends with ``run_finished`` or ``run_failed`` in the journal, whatever
happens short of being killed.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from backprop.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUNTIME, BackpropError, RunError
from backprop.core.events import Event, RunFailed, RunFinished, RunStarted, Step
from backprop.core.paths import cache_dir
from backprop.core.redaction import redact
from backprop.runs.directory import RunDirectory
from backprop.runs.journal import JournalWriter
from backprop.worker.commands import Control
from backprop.worker.event_stream import EventPipe, EventWriter, take_stdout

_LIBRARIES = ("backprop-tui", "torch", "transformers", "peft", "trl", "accelerate", "tokenizers", "safetensors")


def environment() -> dict[str, Any]:
    """What the result depends on beside data and configuration: versions and the machine."""
    facts: dict[str, Any] = {"python": sys.version.split()[0], "platform": sys.platform, "host": os.uname().nodename}
    for name in _LIBRARIES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = None
    return facts


def quiet_libraries() -> None:
    """Nothing is sent anywhere, no progress bars, no news for the libraries' own callers: set before they are imported.

    The last lines of the log are what a person reads when an engine has gone.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Importing torch makes this folder, by default beside everybody's temporary files.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "torchinductor"))


class Progress:
    """Remembers what an interrupted run must say at its end."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self.started = time.monotonic()
        self.last: Step | None = None
        self.finished = False

    def emit(self, event: Event) -> None:
        if isinstance(event, Step):
            self.last = event
        self.finished = self.finished or isinstance(event, RunFinished)
        self._writer.emit(event)

    def interrupted(self) -> RunFinished:
        return RunFinished(
            status="interrupted",
            steps=self.last.step if self.last else 0,
            final_loss=self.last.loss if self.last else None,
            output_path="",
            duration_seconds=time.monotonic() - self.started,
            samples_seen=self.last.samples_seen if self.last else 0,
            tokens_seen=self.last.tokens_seen if self.last else 0,
        )


def failure(error: BaseException) -> RunFailed:
    """The event for ``error``; secrets in it are blacked out."""
    trace = redact("".join(traceback.format_exception(error)))
    if isinstance(error, BackpropError):
        return RunFailed(
            code=error.code,
            message=redact(error.message),
            hint=redact(error.hint),
            retryable=error.retryable,
            traceback=trace,
        )
    text = redact(f"{type(error).__name__}: {error}")
    if isinstance(error, OSError):
        hint = "look at the disk and the permissions of the path"
        return RunFailed(code="RUNTIME_IO_FAILED", message=text, hint=hint, retryable=True, traceback=trace)
    hint = "--verbose shows the traceback; the run's engine.log has the rest"
    return RunFailed(code="RUNTIME_TRAINING_FAILED", message=text, hint=hint, retryable=False, traceback=trace)


def work(directory: RunDirectory, control: Control, progress: Progress, verb: str, steps: int | None) -> int:
    """Do the run and say how it ended; the process's exit status."""
    record = directory.read_record()
    try:
        quiet_libraries()
        # Five seconds of imports. The lock is held and commands are listened to before them.
        from backprop.train import session
        from backprop.train.model import resolved
        from backprop.train.resume import begin

        start = begin(directory, record, verb, steps, resolved)
        progress.emit(
            RunStarted(
                config=msgspec.to_builtins(start.config),
                output_dir=str(directory.path),
                pid=os.getpid(),
                kind=record.kind,
                resumed_from=start.resumed_from,
                environment=environment(),
            )
        )
        for note in start.notes:
            progress.emit(note)
        ended = session.run(start, directory, progress.emit, control)
        return EXIT_INTERRUPTED if ended == "interrupted" else EXIT_OK
    except KeyboardInterrupt:
        if not progress.finished:
            progress.emit(progress.interrupted())
        return EXIT_INTERRUPTED
    except BaseException as error:
        traceback.print_exc()
        progress.emit(failure(error))
        return error.exit_code if isinstance(error, BackpropError) else EXIT_RUNTIME


def main() -> int:
    directory = RunDirectory(Path(sys.argv[1]))
    verb = sys.argv[2] if len(sys.argv) > 2 else "start"
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else None
    pipe = EventPipe(take_stdout(directory.log))
    control = Control()
    control.catch_signals()
    try:
        record = directory.read_record()
        with directory.hold_lock():
            writer = EventWriter(JournalWriter(directory.journal), pipe, record.run_id)
            control.listen(directory)
            status = work(directory, control, Progress(writer), verb, steps)
            writer.close()
    except RunError as error:
        print(f"[{error.code}] {error.message}", file=sys.stderr)
        return error.exit_code
    return status


if __name__ == "__main__":
    # Libraries leave threads and at-exit hooks behind that can hang or crash an engine whose work is done.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
