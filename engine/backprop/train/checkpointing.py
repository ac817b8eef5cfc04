"""When a run saves, and the thread that writes checkpoints beside training.

``Saver`` is called between two optimizer steps: weights, optimizer, scheduler and random generators then belong to the
same step, and the next step has drawn nothing yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from backprop.core.errors import BackpropError, CheckpointError
from backprop.core.events import CheckpointFailed, CheckpointPruned, CheckpointSaved, Event, Warning  # noqa: A004
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.retention import Candidate, CheckpointPolicy, chosen
from backprop.train.checkpoint import Snapshot, trained_parameters


@dataclass(eq=False)
class Saver:
    """Save a run's checkpoints by time, by steps, by held-out loss and on request, one at a time.

    A save that comes due while an earlier one is still being written is put off to the first step after it, for each
    holds a copy of the state; one that was asked for waits. A save that fails is emitted, never raised: training goes
    on, and earlier checkpoints stand.
    """

    store: CheckpointStore
    emit: Callable[[Event], None]
    """Takes ``CheckpointSaved``, ``CheckpointFailed`` and ``CheckpointPruned``, also from the writing thread."""
    snapshot: Callable[[], Snapshot]
    """Copies the state as it is (``trainer.StepLoop.snapshot``)."""
    identity: dict[str, Any]
    """What the checkpoints depend on (``resume.identity``)."""
    every_steps: int | None = None
    every_minutes: float | None = None
    policy: CheckpointPolicy = field(kw_only=True)
    in_use: Iterable[int] = ()
    """Steps that are never pruned, such as the one resumed from."""
    clock: Callable[[], float] = time.monotonic
    """Seconds that never go backwards."""
    _last_step: int | None = None
    _saved_step: int | None = None
    _due: str = ""
    _thread: threading.Thread | None = None
    _unreported: Exception | None = None

    def __post_init__(self) -> None:
        self._last_time = self.clock()
        self._losses = [each.val_loss for each in self.store.checkpoints() if each.val_loss is not None]

    def require_space(self, model: torch.nn.Module) -> None:
        """Before the first step: check that the disk has room for a checkpoint of ``model``.

        Raises:
            CheckpointError: it has not (``RUNTIME_DISK_FULL``), or the directory cannot be written.
        """
        earlier = self.store.checkpoints()
        self.store.require_space(earlier[-1].bytes if earlier else expected_bytes(model))

    def after_step(self, step: int) -> None:
        """Save if time or steps say so and nothing is being written."""
        if self.every_steps and step % self.every_steps == 0:
            self._due = "steps"
        elif self.every_minutes and self.clock() - self._last_time >= 60 * self.every_minutes:
            self._due = self._due or "time"
        if self._due and not self.writing:
            self.save(step, self._due)

    def after_evaluation(self, step: int, val_loss: float) -> None:
        """Save if the policy would keep a checkpoint for this held-out loss. Call it before ``after_step``."""
        best = CheckpointPolicy(keep_best_n=self.policy.keep_best_n, keep_final=False)
        self._losses.append(val_loss)
        if len(self._losses) - 1 in chosen(best, [Candidate(loss) for loss in self._losses]):
            self.save(step, "evaluated", val_loss=val_loss)

    def save(self, step: int, reason: str, *, val_loss: float | None = None) -> None:
        """Copy the state and have it written; nothing if this step was handed over already."""
        if step == self._last_step and val_loss is None:
            return
        self._due = ""
        began = time.perf_counter()
        self.wait()
        try:
            snapshot = self.snapshot()
        except CheckpointError as error:
            self._failed(step, error)
        except (MemoryError, RuntimeError) as error:
            self._failed(step, CheckpointError(f"the state could not be copied: {error}", code="RUNTIME_IO_FAILED"))
        else:
            self.write(snapshot, reason, time.perf_counter() - began, val_loss)
            self._last_step = step
        # After a failure too: the next try comes after the usual time.
        self._last_time = self.clock()

    def finish(self, step: int, reason: str) -> None:
        """The last save of a run: made unless this step is on disk already. Waits until it is."""
        self.wait()
        if self._saved_step != step:
            self._last_step = None
            self.save(step, reason)
        self.wait()

    def move(self, directory: Path) -> None:
        """Save in ``directory`` from here on: the run's was moved."""
        self.wait()
        self.store.directory = directory

    def write(self, snapshot: Snapshot, reason: str, blocked: float = 0.0, val_loss: float | None = None) -> None:
        """Write ``snapshot`` in a thread; waits while an earlier one is being written.

        Args:
            blocked: seconds that training stood still for it.
        """
        self.wait()
        # A daemon: a person who wants out now is not held by a slow disk; an unfinished save leaves only leftovers.
        self._thread = threading.Thread(
            target=self._work, args=(snapshot, reason, blocked, val_loss), name="checkpoint", daemon=True
        )
        self._thread.start()

    @property
    def writing(self) -> bool:
        """Whether a save is going on."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Return when the save going on, if any, is done."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Finish the save going on.

        Raises:
            Exception: what ``emit`` raised when a failure could not even be reported.
        """
        self.wait()
        if self._unreported is not None:
            raise self._unreported

    def _work(self, snapshot: Snapshot, reason: str, blocked: float, val_loss: float | None) -> None:
        try:
            try:
                self._write(snapshot, reason, blocked, val_loss)
            except BackpropError as error:
                self._failed(snapshot.step, error)
            except Exception as error:  # a defect here must not end the training, and must be seen
                wrapped = CheckpointError(f"{type(error).__name__}: {error}", code="RUNTIME_INTERNAL")
                self._failed(snapshot.step, wrapped)
        except Exception as error:
            self._unreported = error

    def _write(self, snapshot: Snapshot, reason: str, blocked: float, val_loss: float | None) -> None:
        began = time.monotonic()
        saved = self.store.save(
            snapshot.step,
            snapshot.write,
            needed=snapshot.bytes,
            reason=reason,
            identity=self.identity,
            val_loss=val_loss,
        )
        self._saved_step = saved.step
        self.emit(
            CheckpointSaved(
                step=saved.step,
                path=str(saved.path),
                seconds_blocked=blocked,
                seconds=blocked + time.monotonic() - began,
                bytes=saved.bytes,
                reason=reason,
            )
        )
        try:
            pruned = self.store.prune(self.policy, in_use=self.in_use)
        except CheckpointError as error:
            self.emit(Warning(code=error.code, message=f"old checkpoints stay: {error.message}", hint=error.hint))
            return
        for gone in pruned:
            self.emit(CheckpointPruned(path=str(gone.path), step=gone.step))

    def _failed(self, step: int, error: BackpropError) -> None:
        self.emit(CheckpointFailed(step=step, code=error.code, message=error.message, hint=error.hint))


def expected_bytes(model: torch.nn.Module) -> int:
    """Size of a checkpoint before there is one: the trained weights, and two moments of float32 each."""
    return sum(each.numel() * (each.element_size() + 8) for each in trained_parameters(model).values())
