"""Where a run's result goes: its directory still is where it was, and a full disk is waited for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial

from transformers import PreTrainedModel

from backprop.core import events
from backprop.core.errors import RunError, TrainingError
from backprop.core.settings import RunConfig
from backprop.runs.checkpoints import Checkpoint
from backprop.runs.directory import RunDirectory
from backprop.train.checkpoint import load_weights
from backprop.train.persistence.checkpointing import Saver
from backprop.train.steering import Steering


class Output:
    """The directory of a run while it works; made before anything else, so that a move is noticed from the start."""

    def __init__(self, directory: RunDirectory, config: RunConfig, steering: Steering) -> None:
        self._directory = directory
        self._kind = "model" if config.mode == "full" else "adapter"
        self._steering = steering
        self._folder = os.open(directory.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def require_place(self, step: int, saver: Saver) -> None:
        """See that the run's directory still is where it was: else what is saved would be in a folder nobody knows.

        Raises:
            RunError: it was deleted, or moved; then the state after ``step`` was saved where it is now.
        """
        now = self._directory.whereabouts(self._folder)
        if now == self._directory.path:
            return
        if now is None:
            what, hint = f"{self._directory.path} was deleted", "nothing can be saved there any more: start a new run"
        else:
            saver.move(RunDirectory(now).checkpoints)
            saver.finish(step, "moved")
            what, hint = f"{self._directory.path} was moved to {now}", f"`backprop resume {now}` goes on"
        raise RunError(f"while the run was working its directory {what}", code="RUN_DAMAGED", hint=hint)

    def save(
        self,
        last: int,
        best: Checkpoint | None,
        write: Callable[..., None],
        finish: Callable[[], None],
        model: PreTrainedModel,
    ) -> int:
        """Save the result of step ``last``, or that of ``best`` with the last one beside it; its step.

        Args:
            write: ``save_result`` of ``model``, given the folder and ``steps``.
            finish: saves the last checkpoint, if it is not on the disk; for where there was no room at first.

        Raises:
            TrainingError: it cannot be written.
        """
        best = None if best and best.step == last else best
        target = self._directory.path / self._kind
        beside = target.with_name(f"{self._kind}-last")
        if self._save(partial(write, target if best is None else beside), last):
            finish()
        if best is None:
            shutil.rmtree(beside, ignore_errors=True)
            return last
        load_weights(best.path, model)
        self._save(partial(write, target), best.step)
        message = f"the result is the {self._kind} of step {best.step}, the checkpoint with the lowest held-out loss "
        message += f"({best.val_loss:.4f}): {target}"
        hint = f"that of the last step, {last}, is kept in {beside}"
        self._steering.emit(events.Warning(code="RESULT_IS_BEST", message=message, hint=hint))
        return best.step

    def _save(self, write: Callable[..., None], step: int) -> bool:
        """Save the result; on a full disk the run is paused until there is room. Whether it had to wait."""
        emit, waited = self._steering.emit, False
        while True:
            try:
                write(steps=step)
            except TrainingError as error:
                if error.code != "RUNTIME_DISK_FULL":
                    raise
                if not waited:
                    emit(events.Paused(step=step, reason=f"waiting for room on the disk: {error.message}"))
                waited = True
                if not self._steering.await_room():
                    raise
            else:
                if waited:
                    emit(events.Resumed(step=step, reason="there is room again"))
                return waited
