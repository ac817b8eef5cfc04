"""What a person asks of a run while it works: done between two steps, or at once where it is to abort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from backprop.core.errors import TrainingAbortedError
from backprop.core.events import Abort, AnyCommand, Checkpoint, Event, Pause, Paused, Resume, Resumed, SampleNow, Stop


class Commands(Protocol):
    """Where commands come from (``control.Control``)."""

    stepping: bool

    def take(self) -> list[AnyCommand]: ...

    def wait(self, timeout: float | None = None) -> AnyCommand | None: ...


class Steering:
    """Carries out commands.

    Args:
        commands: their source.
        emit: takes the events that answer.

    Attributes:
        on_checkpoint, on_sample: what saving and sampling mean, with the number of the last step; set once they can.
    """

    def __init__(self, commands: Commands, emit: Callable[[Event], None]) -> None:
        self._commands = commands
        self._emit = emit
        self.on_checkpoint: Callable[[int], None] | None = None
        self.on_sample: Callable[[int], None] | None = None
        self._waiting: list[AnyCommand] = []
        self.stop: Stop | None = None
        """The wish to end early, once there was one."""

    def look(self) -> bool:
        """Take in what was asked meanwhile; whether the run is to end early.

        Raises:
            TrainingAbortedError: it is to end now.
        """
        for command in self._commands.take():
            if isinstance(command, Abort):
                raise _aborted()
            if isinstance(command, Stop):
                self.stop = self.stop or command
            else:
                self._waiting.append(command)
        return self.stop is not None

    def settle(self, step: int) -> bool:
        """Between two steps: do all that was asked, holding while paused. Whether the run is to end early.

        Raises:
            TrainingAbortedError: it is to end now.
        """
        self.look()
        paused = False
        while self._waiting or (paused and not self.stop):
            command = self._waiting.pop(0) if self._waiting else self._next()
            if isinstance(command, Pause) and not paused:
                paused = True
                self._emit(Paused(step=step))
            elif isinstance(command, Resume) and paused:
                paused = False
                self._emit(Resumed(step=step))
            elif isinstance(command, Checkpoint) and self.on_checkpoint:
                self.on_checkpoint(step)
            elif isinstance(command, SampleNow) and self.on_sample:
                self.on_sample(step)
            self.look()
        return self.stop is not None

    def _next(self) -> AnyCommand | None:
        command = self._commands.wait()
        if isinstance(command, Abort):
            raise _aborted()
        if isinstance(command, Stop):
            self.stop = command
            return None
        return command


def _aborted() -> TrainingAbortedError:
    return TrainingAbortedError(
        "the run was aborted on request: nothing was saved since the last checkpoint",
        hint="`stop` instead of `abort` ends a run after the step in progress and keeps its adapter",
    )
