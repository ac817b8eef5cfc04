"""When a run saves, and the joint between the training loop and the checkpoint writer.

``Saver`` is called between two optimizer steps, from a callback's ``on_step_end``: weights, optimizer, scheduler and
random generators then belong to the same step, and the next step has drawn nothing yet.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from backprop.core.errors import CheckpointError
from backprop.core.events import CheckpointSaved, Event
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.retention import Candidate, CheckpointPolicy, chosen
from backprop.train.checkpoint import Snapshot, capture, trained_parameters
from backprop.train.checkpoint_writer import CheckpointWriter, Save, failed

POLICY = CheckpointPolicy(keep_best_n=3, keep_last=2)
MINUTES = 10.0


class Saver:
    """Save a run's checkpoints by time, by steps, by held-out loss and on request.

    A save that comes due while an earlier one is still being written is put off to the first step after it; one that
    was asked for waits.

    Args:
        store: the run's checkpoints.
        emit: takes ``CheckpointSaved``, ``CheckpointFailed`` and ``CheckpointPruned``, also from the writer's thread.
        trainer: the training loop.
        identity: what the checkpoints depend on (``identity.identity``).
        progress: plain values to get back at a resume, such as tokens seen and the batch size in force.
        every_steps, every_minutes: how often; ``None`` is never.
        policy: what is kept.
        in_use: steps that are never pruned, such as the one resumed from.
        clock: seconds that never go backwards.
    """

    def __init__(
        self,
        store: CheckpointStore,
        emit: Callable[[Event], None],
        trainer: Trainer,
        identity: dict[str, Any],
        progress: Callable[[], dict[str, Any]] = dict,
        *,
        every_steps: int | None = None,
        every_minutes: float | None = MINUTES,
        policy: CheckpointPolicy = POLICY,
        in_use: Iterable[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._emit = emit
        self._trainer = trainer
        self._identity = identity
        self._progress = progress
        self._every_steps = every_steps
        self._every_seconds = every_minutes * 60 if every_minutes else None
        self._policy = policy
        self._clock = clock
        self._last_time = clock()
        self._last_step: int | None = None
        self._saved_step: int | None = None
        self._owed = ""
        self._losses = [checkpoint.val_loss for checkpoint in store.checkpoints() if checkpoint.val_loss is not None]
        self._writer = CheckpointWriter(store, self._note, policy, in_use)

    def require_space(self) -> None:
        """Before the first step: check that the disk has room for a checkpoint.

        Raises:
            CheckpointError: it has not (``RUNTIME_DISK_FULL``), or the directory cannot be written.
        """
        earlier = self._store.checkpoints()
        self._store.require_space(earlier[-1].bytes if earlier else expected_bytes(self._trainer))

    def after_step(self, step: int) -> None:
        """Save if time or steps say so and nothing is being written."""
        if self._every_steps and step % self._every_steps == 0:
            self._owed = "steps"
        elif self._every_seconds and self._clock() - self._last_time >= self._every_seconds:
            self._owed = self._owed or "time"
        if self._owed and not self._writer.busy:
            self.save(step, self._owed)

    def after_evaluation(self, step: int, val_loss: float) -> None:
        """Save if the policy would keep a checkpoint for this held-out loss. Call it before ``after_step``."""
        best = CheckpointPolicy(keep_best_n=self._policy.keep_best_n, keep_final=False)
        self._losses.append(val_loss)
        if len(self._losses) - 1 in chosen(best, [Candidate(loss) for loss in self._losses]):
            self.save(step, "evaluated", val_loss=val_loss)

    def save(self, step: int, reason: str, *, val_loss: float | None = None, boundary: bool = False) -> None:
        """Copy the state and hand it to the writer; nothing if this step was handed over already.

        A failure is emitted, never raised: training goes on.
        """
        if step == self._last_step and val_loss is None and not boundary:
            return
        self._owed = ""
        began = time.perf_counter()
        self._writer.wait()
        try:
            snapshot = snapshot_of(self._trainer, step, self._progress())
        except CheckpointError as error:
            self._emit(failed(step, error))
        except (MemoryError, RuntimeError) as error:
            self._emit(
                failed(step, CheckpointError(f"the state could not be copied: {error}", code="RUNTIME_IO_FAILED"))
            )
        else:
            blocked = time.perf_counter() - began
            self._writer.submit(Save(snapshot, reason, blocked, self._identity, val_loss, boundary))
            self._last_step = step
        # After a failure too: the next try comes after the usual time.
        self._last_time = self._clock()

    def finish(self, step: int, reason: str, *, boundary: bool = False) -> None:
        """The last save of a run: made unless this step is on disk already. Waits until it is."""
        self._writer.wait()
        if self._saved_step != step or boundary:
            self._last_step = None
            self.save(step, reason, boundary=boundary)
        self._writer.wait()

    def close(self) -> None:
        """Wait for the save in progress and end the writer."""
        self._writer.close()

    def _note(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            self._saved_step = event.step
        self._emit(event)


def snapshot_of(trainer: Trainer, step: int, progress: dict[str, Any]) -> Snapshot:
    """The complete state of a transformers trainer between two steps.

    Raises:
        CheckpointError: part of it cannot be saved.
    """
    return capture(
        trainer.model,
        trainer.optimizer,
        trainer.lr_scheduler,
        step=step,
        progress=progress,
        documents={TRAINER_STATE_NAME: _trainer_state(trainer.state)},
        scaler=trainer.accelerator.scaler,
    )


def expected_bytes(trainer: Trainer) -> int:
    """Size of a checkpoint before there is one: the trained weights, and two moments of float32 each."""
    return sum(each.numel() * (each.element_size() + 8) for each in trained_parameters(trainer.model).values())


def _trainer_state(state: TrainerState) -> bytes:
    """What the loop needs to find its place. Callbacks keep their own state: ours is in the checkpoint's progress."""
    return json.dumps({**dataclasses.asdict(state), "stateful_callbacks": {}}).encode()
