"""What a person asks of a run while it works: done between two steps, or at once where it is to abort."""

from __future__ import annotations

from collections.abc import Callable

from backprop.core.errors import TrainingAbortedError
from backprop.core.events import (
    Abort,
    AnyCommand,
    CheckpointNow,
    Event,
    Pause,
    Paused,
    Resume,
    Resumed,
    SampleNow,
    Stop,
)
from backprop.hardware.thermal import Decision
from backprop.train.gpu_guard import Guard
from backprop.worker.commands import Control

ROOM_SECONDS = 5.0
"""Seconds between two looks for room on a full disk."""
HEAT_SECONDS = 0.5
"""Seconds between two looks at the temperature while a run is held."""


class Steering:
    """Carries out commands.

    Args:
        commands: their source.
        emit: takes the events that answer.

    Attributes:
        guard: says what the heat of the cards asks for; set once it watches.
        on_checkpoint, on_sample: what saving and sampling mean, with the number of the last step; set once they can.
    """

    def __init__(self, commands: Control, emit: Callable[[Event], None]) -> None:
        self._commands = commands
        self.emit = emit
        self.on_checkpoint: Callable[[int], None] | None = None
        self.on_sample: Callable[[int], object] | None = None
        self._waiting: list[AnyCommand] = []
        self.guard: Guard | None = None
        self._paused = False
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
        """Between two steps: do all that was asked, and rest or hold for a hot card. Whether the run is to end early.

        Raises:
            TrainingAbortedError: it is to end now.
            GPUTemperatureError: a card stays too hot; the state was saved.
        """
        self.look()
        self._paused = False
        while not self.stop:
            while self._waiting and not self.stop:
                self._obey(self._waiting.pop(0), step)
                self.look()
            heat = self._heat(step)
            if not self._paused and not heat.paused:
                if heat.rest > 0:
                    self._await(heat.rest)  # a command ends the rest, and is carried out after the next step
                break
            self._await(HEAT_SECONDS if self.guard else None)
        return self.stop is not None

    def await_room(self) -> bool:
        """Wait a little while the disk is full; whether to try again: who wants the run to end wants no more of it.

        Raises:
            TrainingAbortedError: it is to end now.
        """
        command = self._commands.wait(ROOM_SECONDS)
        if isinstance(command, Abort):
            raise _aborted()
        return not isinstance(command, Stop)

    def _obey(self, command: AnyCommand, step: int) -> None:
        if isinstance(command, Pause) and not self._paused:
            self._paused = True
            self.emit(Paused(step=step))
        elif isinstance(command, Resume) and self._paused:
            self._paused = False
            self.emit(Resumed(step=step))
        elif isinstance(command, Resume) and self.guard:
            self.guard.release(step)
        elif isinstance(command, CheckpointNow) and self.on_checkpoint:
            self.on_checkpoint(step)
        elif isinstance(command, SampleNow) and self.on_sample:
            self.on_sample(step)

    def _heat(self, step: int) -> Decision:
        if self.guard is None:
            return _COOL
        decision = self.guard.decide(step)
        if decision.abort is not None:
            if self.on_checkpoint:
                self.on_checkpoint(step)
            raise decision.abort
        return decision

    def _await(self, seconds: float | None) -> None:
        """Wait for the next command, at most ``seconds``."""
        command = self._commands.wait(seconds)
        if isinstance(command, Abort):
            raise _aborted()
        if isinstance(command, Stop):
            self.stop = command
        elif command is not None:
            self._waiting.append(command)


_COOL = Decision(rest=0.0, paused=False, events=[])


def _aborted() -> TrainingAbortedError:
    return TrainingAbortedError(
        "the run was aborted on request: nothing was saved since the last checkpoint",
        hint="`stop` instead of `abort` ends a run after the step in progress and keeps its adapter",
    )
