"""The only door between the faces and the work: start an engine process, read its events, send it commands.

The engine is started in a session of its own, so that a hang-up of the terminal does not reach it. Its pipe is the fast
path and may lose lines when nobody reads; the journal has them all, and a reader that sees a gap in ``seq`` fills it
from there. Attaching to a run that somebody else started follows the journal alone.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from backprop.core.errors import EngineCrashedError, RunError, error_for
from backprop.core.events import AnyEvent, Command, RunFailed, RunFinished, decode_event, encode
from backprop.core.jobs import Message, decode_message
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.journal import Follower
from backprop.runs.state import read_run

ENGINE = "backprop.train"
_CHUNK = 1 << 20
_POLL = 0.2
"""Seconds between two looks at a journal that is followed without a pipe."""
_LAST_LINES = 8


class Link:
    """One run, watched. ``read`` gives every event once and in order, from the first."""

    def __init__(self, directory: RunDirectory, process: subprocess.Popen[bytes] | None = None) -> None:
        self.directory = directory
        self._process = process
        self.launched_at = time.time() if process is not None else 0.0
        """When this link started the engine, in seconds since the epoch; 0 where somebody else did."""
        self._pipe: int | None = None
        if process is not None and process.stdout is not None:
            self._pipe = process.stdout.fileno()
            os.set_blocking(self._pipe, False)
        self._follower = Follower(directory.journal)
        self._rest = b""
        self._last_seq = 0
        self._ended = False

    @property
    def run_id(self) -> str:
        return self.directory.run_id

    def alive(self) -> bool:
        """Whether the engine lives."""
        if self._process is not None:
            return self._process.poll() is None
        return self.directory.is_alive()

    @property
    def over(self) -> bool:
        """Whether no event can follow: the end was read, or the engine is gone and everything it wrote was read."""
        return self._ended

    def read(self, timeout: float) -> list[AnyEvent]:
        """New events, waiting up to ``timeout`` seconds for the first. Empty when none came or the run is over."""
        deadline = time.monotonic() + timeout
        while True:
            was_alive = self.alive()
            left = max(0.0, deadline - time.monotonic())
            found = self._read_pipe(left) if self._pipe is not None else self._follower.poll()
            if found:
                self._last_seq = found[-1].seq
                self._follower.skip_to(self._last_seq)
                # An end may be followed by another stretch of the same run: only a dead engine makes it final.
                if isinstance(found[-1], RunFinished | RunFailed) and not self.alive():
                    self._ended = True
                return found
            if self._pipe is None and not was_alive:
                self._ended = True
                return []
            if time.monotonic() >= deadline:
                return []
            if self._pipe is None:
                time.sleep(min(_POLL, max(0.0, deadline - time.monotonic())))

    def _read_pipe(self, timeout: float) -> list[AnyEvent]:
        assert self._pipe is not None
        if not select.select([self._pipe], [], [], timeout)[0]:
            return []
        chunk = os.read(self._pipe, _CHUNK)
        if not chunk:
            self._close_pipe()
            return self._follower.poll()
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        found = [event for line in lines if (event := decode_event(line)) is not None and event.seq > self._last_seq]
        if found and found[-1].seq - self._last_seq != len(found):
            return self._follower.poll()
        return found

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._pipe = None

    def send(self, command: Command) -> None:
        """Give the engine a command; what comes of it is an event.

        Raises:
            RunError: no engine listens (code ``RUN_NOT_ACTIVE``).
        """
        try:
            descriptor = os.open(self.directory.control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                raise RunError(
                    f"no engine is working on run {self.run_id}",
                    code="RUN_NOT_ACTIVE",
                    hint=f"`backprop show-run {self.run_id}` says how it ended",
                    retryable=self.alive(),
                ) from None
            raise
        try:
            # One write of less than PIPE_BUF bytes: commands of several senders never mix.
            os.write(descriptor, encode(command))
        finally:
            os.close(descriptor)

    def kill(self) -> None:
        """End the engine at once, losing what came after its last checkpoint."""
        pid = self._pid()
        if pid > 0 and self.alive():
            os.killpg(pid, signal.SIGKILL)

    def interrupt(self) -> None:
        """Pass a Ctrl+C on to the engine: it finishes the step and saves; the second time it ends at once."""
        pid = self._pid()
        if pid > 0 and self.alive():
            os.kill(pid, signal.SIGINT)

    def _pid(self) -> int:
        """Process id of the living engine, 0 where there is none."""
        if self._process is not None:
            return self._process.pid
        return int(self.directory.lock_holder().get("pid", 0)) if self.directory.is_locked() else 0

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for an engine that this link started; its exit status, ``None`` for one that was attached to."""
        return None if self._process is None else self._process.wait(timeout)

    def detach(self) -> None:
        """Stop watching; the engine goes on."""
        self._close_pipe()

    def crash(self) -> EngineCrashedError:
        """What is known about an engine that went without a word."""
        code = self._process.poll() if self._process is not None else None
        how = ""
        if code is not None:
            how = f" (killed by {signal.Signals(-code).name})" if code < 0 else f" (exit status {code})"
        last = last_words(self.directory)
        return EngineCrashedError(
            f"the engine of run {self.run_id} is gone{how}" + (f"; its last lines:\n{last}" if last else ""),
            hint=f"`backprop resume {self.run_id}` goes on from its last checkpoint; the log is {self.directory.log}",
            retryable=True,
            details={"run_id": self.run_id, "path": str(self.directory.path)},
        )


def last_words(directory: RunDirectory) -> str:
    """The last lines that the engine or its libraries printed."""
    try:
        with directory.log.open("rb") as file:
            file.seek(max(0, directory.log.stat().st_size - 4096))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-_LAST_LINES:])


class Job:
    """A short piece of work in an engine process. It ends with whoever asked for it."""

    def __init__(self, process: subprocess.Popen[bytes], directory: RunDirectory) -> None:
        self._process = process
        self._directory = directory
        self.stopped = False
        """Whether somebody stopped it before its end."""

    def messages(self) -> Iterator[Message]:
        """What the job says, as it says it; waits for each message.

        Raises:
            BackpropError: the job failed, as the error's own class.
            EngineCrashedError: the process went without a word.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = decode_message(line)
            if isinstance(message, RunFailed):
                error = error_for(message.code, message.message, message.hint, message.retryable)
                raise error from RuntimeError(message.traceback)
            yield message
        status = self._process.wait()
        if status != 0:
            raise EngineCrashedError(
                f"the engine process is gone (exit status {status}); its last lines:\n{last_words(self._directory)}",
                hint=f"the whole log is {self._directory.log}",
                retryable=True,
            )

    def stop(self) -> None:
        """Stop the job from another thread than the one that reads its messages: that one sees it end."""
        self.stopped = True
        self._process.kill()

    def end(self) -> None:
        """Stop the job if it still works."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def job(module: str, directory: RunDirectory, request: msgspec.Struct) -> Job:
    """Start ``module`` as an engine process on ``request``; what it prints goes to the run's log."""
    with directory.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(directory.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(msgspec.json.encode(request))
    return Job(process, directory)


def start(config: RunConfig, kind: str = "train", forked_from: str = "") -> Link:
    """Make a run directory and start its engine.

    Args:
        forked_from: a folder with an adapter to start from, instead of a fresh one.

    Raises:
        ConfigurationError: the output directory cannot be written.
    """
    return launch(RunDirectory.create(config, kind, forked_from), "start")


def resume(path: Path) -> Link:
    """Continue the run in ``path`` exactly where its newest good checkpoint stands.

    Raises:
        RunError: it is being worked on, or it is done.
    """
    _require_over(path)
    if read_run(path).status == "done":
        raise RunError(
            f"run {path.name} is done: there is nothing left to resume",
            code="RUN_NOT_ACTIVE",
            hint=f"`backprop extend {path.name} --steps N` gives it a new end",
        )
    return launch(RunDirectory(path), "resume")


def extend(path: Path, steps: int) -> Link:
    """Continue the run in ``path`` to a new end of ``steps`` steps; its learning-rate curve is computed anew.

    Raises:
        RunError: it is being worked on, or it is beyond that step already.
    """
    _require_over(path)
    taken = read_run(path).step
    if steps <= taken:
        raise RunError(
            f"run {path.name} has taken {taken} steps already", code="INPUT_VALIDATION_FAILED", hint="give more --steps"
        )
    return launch(RunDirectory(path), "extend", str(steps))


def _require_over(path: Path) -> None:
    if RunDirectory(path).is_alive():
        raise RunError(
            f"run {path.name} is being worked on",
            code="RUN_ALREADY_ACTIVE",
            hint=f"watch it: backprop-tui --attach {path.name}",
        )


def launch(directory: RunDirectory, *how: str) -> Link:
    """Start an engine on an existing run directory: from step 0 where ``how`` is empty."""
    with directory.log.open("ab") as log:
        process = subprocess.Popen(
            # -P keeps a file of the person's working directory from shadowing a module.
            [sys.executable, "-P", "-m", ENGINE, str(directory.path), *how],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    return Link(directory, process)


def attach(path: Path) -> Link:
    """Watch the run in ``path``, running or not."""
    return Link(RunDirectory(path))
