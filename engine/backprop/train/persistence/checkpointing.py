"""When a run saves, and the thread that writes checkpoints beside training.

``Saver`` is called between two optimizer steps: weights, optimizer, scheduler and random generators then belong to the
same step, and the next step has drawn nothing yet.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch

from backprop.core.errors import BackpropError, CheckpointError
from backprop.core.events import CheckpointFailed, CheckpointPruned, CheckpointSaved, Event, SettingsChosen
from backprop.core.events import Warning as WarningEvent
from backprop.core.rules import SAVE_MINUTES, SAVING_SHARE
from backprop.core.settings import RunConfig
from backprop.hardware.estimate import STATE_BYTES
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.retention import Candidate, CheckpointPolicy, chosen
from backprop.train.checkpoint import Snapshot, trained_parameters


class Saver:
    """Save a run's checkpoints by time, by steps, by held-out loss and on request, one at a time.

    A save that comes due while an earlier one is still being written is put off to the first step after it, for each
    holds a copy of the state; one that was asked for waits. A save that fails is emitted, never raised: training goes
    on, and earlier checkpoints stand.

    Args:
        store: the run's checkpoints.
        emit: takes ``CheckpointSaved``, ``CheckpointFailed`` and ``CheckpointPruned``, also from the writing thread.
        snapshot: copies the state as it is (``trainer.StepLoop.snapshot``).
        identity: what the checkpoints depend on (``resume.identity``).
        every_steps, every_minutes: how often; ``None`` is never. ``auto`` begins with ten minutes, and an event says so
            when it grows, because saving took more than its share of the time (``core.rules.SAVING_SHARE``).
        policy: what is kept.
        in_use: steps that are never pruned, such as the one resumed from.
        clock: seconds that never go backwards.
    """

    def __init__(
        self,
        store: CheckpointStore,
        emit: Callable[[Event], None],
        snapshot: Callable[[], Snapshot],
        identity: dict[str, Any],
        *,
        every_steps: int | None = None,
        every_minutes: float | Literal["auto"] | None = None,
        policy: CheckpointPolicy,
        in_use: Iterable[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._emit = emit
        self._snapshot = snapshot
        self._identity = identity
        self._every_steps = every_steps
        self._by_rule = every_minutes == "auto"
        minutes = SAVE_MINUTES if every_minutes == "auto" else every_minutes
        self._every_seconds = minutes * 60 if minutes else None
        self._policy = policy
        self._in_use = frozenset(in_use)
        self._clock = clock
        self._last_time = clock()
        self._last_step: int | None = None
        self._saved_step: int | None = None
        self._due = ""
        self._losses = [checkpoint.val_loss for checkpoint in store.checkpoints() if checkpoint.val_loss is not None]
        self._thread: threading.Thread | None = None
        self._unreported: Exception | None = None

    def require_space(self, expected: int) -> None:
        """Before the first step: check that the disk has room for a checkpoint, and the result.

        Args:
            expected: bytes, where no earlier checkpoint tells (``expected_bytes``).

        Raises:
            CheckpointError: it has not (``RUNTIME_DISK_FULL``), or the directory cannot be written.
        """
        earlier = self._store.checkpoints()
        self._store.require_space(earlier[-1].bytes if earlier else expected, "--output can name another disk")

    def after_step(self, step: int) -> None:
        """Save if time or steps say so and nothing is being written."""
        if self._every_steps and step % self._every_steps == 0:
            self._due = "steps"
        elif self._every_seconds and self._clock() - self._last_time >= self._every_seconds:
            self._due = self._due or "time"
        if self._due and not self.writing:
            self.save(step, self._due)

    def after_evaluation(self, step: int, val_loss: float) -> None:
        """Save if the policy would keep a checkpoint for this held-out loss. Call it before ``after_step``."""
        best = CheckpointPolicy(keep_best_n=self._policy.keep_best_n, keep_final=False)
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
            snapshot = self._snapshot()
        except CheckpointError as error:
            self._failed(step, error)
        except (MemoryError, RuntimeError) as error:
            self._failed(step, CheckpointError(f"the state could not be copied: {error}", code="RUNTIME_IO_FAILED"))
        else:
            self.write(snapshot, reason, time.perf_counter() - began, val_loss)
            self._last_step = step
        # After a failure too: the next try comes after the usual time.
        self._last_time = self._clock()

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
        self._store.directory = directory

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
        except Exception as error:  # raised where the thread is waited for: here it would be lost
            self._unreported = error

    def _write(self, snapshot: Snapshot, reason: str, blocked: float, val_loss: float | None) -> None:
        began = self._clock()
        saved = self._store.save(
            snapshot.step,
            snapshot.write,
            needed=snapshot.bytes,
            reason=reason,
            identity=self._identity,
            val_loss=val_loss,
        )
        self._saved_step = saved.step
        seconds = blocked + self._clock() - began
        self._emit(
            CheckpointSaved(
                step=saved.step,
                path=str(saved.path),
                seconds_blocked=blocked,
                seconds=seconds,
                bytes=saved.bytes,
                reason=reason,
            )
        )
        self._keep_to_share(seconds)
        try:
            pruned = self._store.prune(self._policy, in_use=self._in_use)
        except CheckpointError as error:
            self._emit(WarningEvent(code=error.code, message=f"old checkpoints stay: {error.message}", hint=error.hint))
            return
        for gone in pruned:
            self._emit(CheckpointPruned(path=str(gone.path), step=gone.step))

    def _keep_to_share(self, seconds: float) -> None:
        """Save less often where the interval was left to the rule and a save takes more than its share of it."""
        if self._by_rule and self._every_seconds is not None and seconds > SAVING_SHARE * self._every_seconds:
            minutes = math.ceil(seconds / SAVING_SHARE / 60)
            self._every_seconds = 60 * minutes
            why = f"a save took {seconds:.0f} s, and saving takes at most {SAVING_SHARE:.0%} of the time"
            self._emit(SettingsChosen(values={"save_minutes": minutes}, reasons={"save_minutes": why}))

    def _failed(self, step: int, error: BackpropError) -> None:
        self._emit(CheckpointFailed(step=step, code=error.code, message=error.message, hint=error.hint))


def expected_bytes(model: torch.nn.Module, config: RunConfig) -> int:
    """What a run needs of the disk before it has saved: the trained weights with the optimizer's state for each.

    In full fine-tuning the result is as large as the weights once more.
    """
    copies = 2 if config.mode == "full" else 1
    each_state = STATE_BYTES[config.optim]
    return round(
        sum(each.numel() * (copies * each.element_size() + each_state) for each in trained_parameters(model).values())
    )
