"""The process of an engine: started for one run, or ahead of it, so that its imports are done when a run is started."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO

import msgspec

from backprop.core.log import variables
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory

ENGINE = "backprop.train"
WAIT = "wait"
"""Stands for the run's directory in the command line of an engine that is told its run later."""
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that an engine answers; it starts with them blocked (``worker.commands.Control``)."""


def start_engine(
    words: tuple[str, ...], log: IO[bytes] | int, stdin: int = subprocess.DEVNULL, holding: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start an engine in a session of its own; it takes ``log`` as its standard error.

    Args:
        holding: descriptors that it keeps open as long as it lives, and with them the locks on them.
    """
    # A Ctrl+C waits until the engine can obey, however soon it comes: it inherits the blocked signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        return subprocess.Popen(
            # -P keeps a file of the person's working directory from shadowing a module.
            [sys.executable, "-P", "-m", ENGINE, *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env=variables(),
            pass_fds=holding,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_it_went(process: subprocess.Popen[bytes] | None, log: RunDirectory) -> str:
    """What an engine that is gone left to say: how it ended, where that is known, and the last lines of its log."""
    code, last = process.poll() if process is not None else None, log.last_lines()
    how = ""
    if code is not None:
        how = f" (killed by {signal.Signals(-code).name})" if code < 0 else f" (exit status {code})"
    return how + (f"; its last lines:\n{last}" if last else "")


class WarmEngine:
    """An engine that imports its libraries, gets ready for what it is hinted at, and waits for a run.

    It ends with whoever started it.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None
        self._process = start_engine((WAIT,), log=subprocess.DEVNULL, stdin=subprocess.PIPE)
        self.pid = self._process.pid

    def hint(self, config: RunConfig) -> None:
        """Have it get ready for a run with this located configuration. Of several hints the newest counts."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it has ended: ``take`` says so
                self._process.stdin.write(msgspec.json.encode(config) + b"\n")
                self._process.stdin.flush()

    def take(self, words: tuple[str, ...]) -> subprocess.Popen[bytes] | None:
        """Give it its run, once: the command line of an engine. ``None`` where it is gone or was taken."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return None
        try:
            with process.stdin:
                process.stdin.write(msgspec.json.encode(words))
        except BrokenPipeError:
            process.wait()
            return None
        return process

    def end(self) -> None:
        """End it where it still waits, in the middle of its imports too."""
        if self._process is not None:
            with suppress(BrokenPipeError), self._process as process:  # a hint that it did not read is still held
                process.kill()
            self._process = None
