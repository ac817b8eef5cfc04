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
from typing import TypeVar

import msgspec

from backprop.core.datasets import find_fetched
from backprop.core.errors import BackpropError, CheckpointError, EngineCrashedError, RunError
from backprop.core.events import RunFailed
from backprop.core.extras import TRAINING, require_modules
from backprop.core.files import sweep_outputs
from backprop.core.jobs import Exported, ExportRequest, Fetched, FetchRequest, JobProgress, Message, decode_message
from backprop.core.paths import cache_dir
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_process import how_it_went
from backprop.runs.record import Replays

FETCH, EXPORT, SIZES = "backprop.fetch.datasets", "backprop.export", "backprop.export.sizes"
OLLAMA, PUSH, EVAL = "backprop.export.ollama.register", "backprop.export.push", "backprop.train.jobs.eval"
REPLAY = "backprop.train.jobs.replay"
_KEPT = 7 * 24 * 3600.0
"""Seconds that the log of a failed job is kept."""
T = TypeVar("T")


class ReplayRequest(msgspec.Struct, kw_only=True):
    """Compare what a run would repeat another one with, with what that was made from."""

    config: RunConfig
    replays: Replays
    forked_from: str = ""


class EngineJob:
    """A short piece of work in an engine process. It ends with whoever asked for it."""

    def __init__(self, process: subprocess.Popen[bytes], directory: RunDirectory) -> None:
        self._process = process
        self._directory = directory
        self.stopped = False
        """Whether somebody stopped it before its end."""

    @property
    def folder(self) -> Path:
        """Where its log lies; deleted when it ends well."""
        return self._directory.path

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
                f"the engine process is gone{how_it_went(self._process, self._directory)}",
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


@contextmanager
def engine_job(module: str, request: msgspec.Struct, *, stays: bool = False) -> Iterator[EngineJob]:
    """Start ``module`` as an engine process on ``request``; it ends with the block.

    Its log lies in the cache, and stays there for some days where the job failed.

    Args:
        stays: for a conversation: the Ctrl+C of a terminal is not for it.

    Raises:
        MissingDependencyError: this installation cannot do it.
        RunError: the log cannot be written.
    """
    if module == EXPORT or module.startswith("backprop.train"):
        require_modules("this", "train", *TRAINING)
    elif module.startswith(EXPORT):
        require_modules("this", "export", "gguf")
    root = cache_dir() / "jobs"
    directory = RunDirectory(root / f"{os.getpid()}-{secrets.token_hex(4)}")
    directory.path.mkdir(parents=True)
    _sweep(root)
    with directory.open_log() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(directory.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0 if stays else None,
        )
    job = EngineJob(process, directory)
    failed = False
    try:
        job.tell(request)
        yield job
    except BackpropError:
        failed = not job.stopped
        raise
    finally:
        job.end()
        if not failed:
            shutil.rmtree(directory.path, ignore_errors=True)


def ask_engine(
    module: str,
    request: msgspec.Struct,
    answer: type[T],
    report: Callable[[Message], object] = lambda message: None,
    started: Callable[[EngineJob], object] = lambda job: None,
) -> T:
    """Have an engine process do what is asked for; its last message.

    Args:
        module: what it runs: ``OLLAMA``, ``PUSH`` …
        answer: the kind of the last message.
        report: called with every other: how far it is, and what has to be said on the way.
        started: called with the job, for whoever may want to stop it.

    Raises:
        BackpropError: as the engine's.
        EngineCrashedError: it was stopped, or went without a word.
    """
    found: T | None = None
    with engine_job(module, request) as job:
        started(job)
        for message in job.messages():
            if isinstance(message, answer):
                found = message
            else:
                report(message)
    assert found is not None  # a job that ends without its last message has raised
    return found


def fetch_dataset(
    name: str,
    report: Callable[[Message], object] = lambda message: None,
    started: Callable[[EngineJob], object] = lambda job: None,
) -> Fetched:
    """The dataset ``name`` of the Hugging Face Hub as a file on this machine, fetched by an engine process if need be.

    The faces never speak to the hub themselves.

    Args:
        report, started: as of ``ask_engine``; neither is called where the file is here already.

    Raises:
        DatasetError: as the engine's: unknown, private, gated, offline, several configurations …
        EngineCrashedError: it was stopped, or went without a word.
    """
    return find_fetched(name) or ask_engine(FETCH, FetchRequest(name=name), Fetched, report, started)


def require_repeatable(
    config: RunConfig, replays: Replays, forked_from: str, report: Callable[[Message], object] = lambda message: None
) -> None:
    """Have an engine process compare what a replay would be made from with what the run was, before it is made.

    Raises:
        RunError: something is not as it was; the message lists it.
        BackpropError: as the run itself would.
    """
    try:
        request = ReplayRequest(config=config, replays=replays, forked_from=forked_from)
        ask_engine(REPLAY, request, JobProgress, report)
    except CheckpointError as error:
        raise RunError(error.message, code=error.code, hint=error.hint) from None


def export_model(
    request: ExportRequest,
    report: Callable[[Message], object],
    started: Callable[[EngineJob], object] = lambda job: None,
) -> Exported:
    """Have an engine process write a trained model in another format, and prove it.

    Args:
        report, started: as of ``ask_engine``; nothing of an export that is stopped is left.

    Raises:
        BackpropError: as the engine's: InputError, ExportError, CheckpointError, ModelLoadError …
        EngineCrashedError: it was stopped, or went without a word.
    """
    try:
        return ask_engine(EXPORT, request, Exported, report, started)
    finally:
        source = Path(request.source)
        places = [Path(request.output).absolute().parent] if request.output else [source / "exports", source.parent]
        for place in places:
            sweep_outputs(place)


def left_behind(name: str) -> list[Path]:
    """The files of that name of jobs whose asker is gone without an end, the oldest first."""
    found = [path for path in (cache_dir() / "jobs").glob(f"*/{name}") if not _runs(path.parent.name.partition("-")[0])]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def _sweep(root: Path) -> None:
    """Remove old logs."""
    for folder in root.iterdir():
        with suppress(FileNotFoundError):  # another process sweeps as well
            if time.time() - folder.stat().st_mtime > _KEPT:
                shutil.rmtree(folder, ignore_errors=True)
