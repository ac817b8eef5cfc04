"""What a person or a signal asks of a running engine, handed to the training loop between two steps."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable
from types import FrameType

from backprop.core.events import AnyCommand, Stop, decode_command
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_process import STOPPING

_LOOK = 0.5
"""Seconds: a signal that comes in the instant before a wait begins is obeyed when it ends: none is without one."""


class Control:
    """A queue of commands. The training loop takes from it between steps; nothing interrupts a step."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[AnyCommand] = queue.SimpleQueue()
        self._signals = 0
        self._stepping = False
        self.give_up: Callable[[BaseException], object] = lambda error: None
        """Ends the engine at once with an error, from any thread; set by the engine."""
        self._interrupted = False
        """A signal came outside the training loop. Whatever was at work may have swallowed the exception."""

    @property
    def stepping(self) -> bool:
        """True while the training loop looks here between steps, so that a signal can wait for the step to end."""
        return self._stepping

    @stepping.setter
    def stepping(self, now: bool) -> None:
        self._stepping = now
        if now and self._interrupted:
            self.put(Stop(by="signal"))

    def require_uninterrupted(self) -> None:
        """Called between two phases of a run.

        Raises:
            KeyboardInterrupt: a signal came, and a library went on in spite of it.
        """
        if self._interrupted and not self._stepping:
            raise KeyboardInterrupt

    def put(self, command: AnyCommand) -> None:
        """Hand over a command; safe from any thread and from a signal handler."""
        self._queue.put(command)

    def take(self) -> list[AnyCommand]:
        """Everything that was asked since the last look; does not wait."""
        taken = []
        while (command := self.wait(0)) is not None:
            taken.append(command)
        return taken

    def wait(self, timeout: float | None = None) -> AnyCommand | None:
        """The next command, waiting for it; ``None`` after ``timeout`` seconds without one."""
        while True:
            try:
                return self._queue.get(timeout=_LOOK if timeout is None else timeout)
            except queue.Empty:
                if timeout is not None:
                    return None

    def listen(self, directory: RunDirectory) -> None:
        """Read commands from the run's named pipe in a thread, from whoever writes to it."""
        directory.ensure_control()
        # Open for writing too: the pipe then never reaches its end when a sender leaves.
        descriptor = os.open(directory.control, os.O_RDWR | os.O_CLOEXEC)
        threading.Thread(target=self._read, args=(descriptor,), name="commands", daemon=True).start()

    def _read(self, descriptor: int) -> None:
        rest = b""
        while chunk := os.read(descriptor, 4096):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if (command := decode_command(line)) is not None:
                    self.put(command)

    def catch_signals(self) -> None:
        """SIGINT and SIGTERM end the run after the step in progress, a second one at once. A hang-up is nothing.

        The engine was started with these signals blocked, so one that came before this is obeyed now.
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def ignore_signals(self) -> None:
        """The run ends: nothing more can be asked of it."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1 or not self._stepping:
            self._interrupted = True
            raise KeyboardInterrupt
        self.put(Stop(by="signal"))
