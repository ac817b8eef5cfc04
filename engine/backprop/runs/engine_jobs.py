"""Short jobs of engine processes: starting one, reading its messages, a place for the log of one that has no run."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from backprop.core.datasets import find_fetched
from backprop.core.errors import BackpropError, EngineCrashedError
from backprop.core.events import RunFailed, Warning  # noqa: A004
from backprop.core.files import sweep_outputs
from backprop.core.jobs import Exported, ExportRequest, Fetched, FetchRequest, JobProgress, Message, decode_message
from backprop.core.paths import cache_dir
from backprop.runs.directory import RunDirectory

FETCH, EXPORT = "backprop.fetch.datasets", "backprop.export"
_KEPT = 7 * 24 * 3600.0
"""Seconds that the log of a failed job is kept."""


class EngineJob:
    """A short piece of work in an engine process. It ends with whoever asked for it."""

    def __init__(self, process: subprocess.Popen[bytes], directory: RunDirectory) -> None:
        self._process = process
        self._directory = directory
        self.stopped = False
        """Whether somebody stopped it before its end."""

    def messages(self) -> Iterator[Message]:
        """Its messages as they come; waits for each.

        Raises:
            BackpropError: the job failed, as the error's own class.
            EngineCrashedError: the process is gone without an end.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = decode_message(line)
            if isinstance(message, RunFailed):
                raise message.error() from RuntimeError(message.traceback)
            yield message
        status = self._process.wait()
        if status != 0:
            raise EngineCrashedError(
                f"the engine process is gone (exit status {status}); its last lines:\n{self._directory.last_lines()}",
                hint=f"the whole log is {self._directory.log}",
                retryable=True,
            )

    def tell(self, line: msgspec.Struct) -> None:
        """Tell a job that stays one thing more. One that is gone does not hear it: ``messages`` says why."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ValueError):  # closed at its end, or here
            self._process.stdin.write(msgspec.json.encode(line) + b"\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """Stop the job from another thread than the one that reads its messages: that one sees it end."""
        self.stopped = True
        self._process.kill()

    def end(self) -> None:
        """Stop the job if it still works."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def start_job(module: str, directory: RunDirectory, request: msgspec.Struct, *, stays: bool = False) -> EngineJob:
    """Start ``module`` as an engine process on ``request``; what it prints goes to the run's log.

    Args:
        stays: it can be told more (``EngineJob.tell``), and the Ctrl+C of a terminal is not for it.

    Raises:
        RunError: the log cannot be written.
    """
    with directory.open_log() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(directory.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0 if stays else None,
        )
    job = EngineJob(process, directory)
    job.tell(request)
    if not stays:
        assert process.stdin is not None
        process.stdin.close()
    return job


@contextmanager
def engine_job(module: str, request: msgspec.Struct, *, stays: bool = False) -> Iterator[EngineJob]:
    """Start ``module`` as an engine process on ``request``; it ends with the block. ``stays`` as in ``start_job``.

    Its log lies in the cache, and stays there for some days where the job failed.
    """
    root = cache_dir() / "jobs"
    directory = RunDirectory(root / f"{os.getpid()}-{secrets.token_hex(4)}")
    directory.path.mkdir(parents=True)
    _sweep(root)
    job = start_job(module, directory, request, stays=stays)
    failed = False
    try:
        yield job
    except BackpropError:
        failed = not job.stopped
        raise
    finally:
        job.end()
        if not failed:
            shutil.rmtree(directory.path, ignore_errors=True)


def fetch_dataset(
    name: str,
    progress: Callable[[int, int], object] | None = None,
    started: Callable[[EngineJob], object] | None = None,
) -> Fetched:
    """The dataset ``name`` of the Hugging Face Hub as a file on this machine, fetched by an engine process if need be.

    The faces never speak to the hub themselves.

    Args:
        progress: called with bytes fetched and their total (0 while it is not known).
        started: called with the job, for whoever may want to stop it; not called where the file is here already.

    Raises:
        DatasetError: as the engine's: unknown, private, gated, offline, several configurations …
        EngineCrashedError: it was stopped, or went without a word.
    """
    found = find_fetched(name)
    if found is not None:
        return found
    with engine_job(FETCH, FetchRequest(name=name)) as job:
        if started is not None:
            started(job)
        for message in job.messages():
            if isinstance(message, JobProgress) and progress is not None:
                progress(message.done, message.total)
            elif isinstance(message, Fetched):
                found = message
    assert found is not None  # a job that ends without its last message has raised
    return found


def export_model(
    request: ExportRequest,
    report: Callable[[JobProgress | Warning], object],
    started: Callable[[EngineJob], object] = lambda job: None,
) -> Exported:
    """Have an engine process write a trained model in another format, and prove it.

    Args:
        report: called with how far it is, and with what has to be said on the way.
        started: called with the job, for whoever may want to stop it; nothing of the export is left then.

    Raises:
        BackpropError: as the engine's: InputError, ExportError, CheckpointError, ModelLoadError …
        EngineCrashedError: it was stopped, or went without a word.
    """
    done = None
    try:
        with engine_job(EXPORT, request) as job:
            started(job)
            for message in job.messages():
                if isinstance(message, Exported):
                    done = message
                elif isinstance(message, JobProgress | Warning):
                    report(message)
    finally:
        source = Path(request.source)
        places = [Path(request.output).absolute().parent] if request.output else [source / "exports", source.parent]
        for place in places:
            sweep_outputs(place)
    assert done is not None  # a job that ends without its last message has raised
    return done


def _sweep(root: Path) -> None:
    """Remove old logs."""
    for folder in root.iterdir():
        with suppress(FileNotFoundError):  # another process sweeps as well
            if time.time() - folder.stat().st_mtime > _KEPT:
                shutil.rmtree(folder, ignore_errors=True)
