"""Write checkpoints beside training: a thread takes snapshots from the loop and reports what came of them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from backprop.core.errors import BackpropError, CheckpointError
from backprop.core.events import CheckpointFailed, CheckpointPruned, CheckpointSaved, Event, Warning  # noqa: A004
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.retention import CheckpointPolicy
from backprop.train.checkpoint import Snapshot


@dataclass(frozen=True)
class Save:
    """A snapshot and what its manifest will say."""

    snapshot: Snapshot
    reason: str
    seconds_blocked: float
    identity: dict[str, Any] = field(default_factory=dict)
    val_loss: float | None = None
    boundary: bool = False


class CheckpointWriter:
    """One save at a time. A save that fails is reported and training goes on; earlier checkpoints stand.

    Args:
        store: where checkpoints go.
        report: called from the writer's thread with ``CheckpointSaved``, ``CheckpointFailed``, ``CheckpointPruned``.
        policy: what is kept after each save.
        in_use: steps that are never pruned, such as the one resumed from.
    """

    def __init__(
        self,
        store: CheckpointStore,
        report: Callable[[Event], None],
        policy: CheckpointPolicy,
        in_use: Iterable[int] = (),
    ) -> None:
        self._store = store
        self._report = report
        self._policy = policy
        self._in_use = frozenset(in_use)
        self._waiting: queue.Queue[Save | None] = queue.Queue(maxsize=1)
        self._unfinished = threading.Semaphore(1)
        self._untold: Exception | None = None
        # A daemon: a person who wants out now is not held by a slow disk; an unfinished save leaves only leftovers.
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a save is going on: an optional one had better wait, for each holds a copy of the state."""
        if self._unfinished.acquire(blocking=False):
            self._unfinished.release()
            return False
        return True

    def wait(self) -> None:
        """Return when the save going on, if any, is done."""
        self._unfinished.acquire()
        self._unfinished.release()

    def submit(self, save: Save) -> None:
        """Hand over a snapshot; waits while an earlier one is being written."""
        self._unfinished.acquire()
        self._waiting.put(save)

    def close(self) -> None:
        """Finish what was handed over, and end the thread.

        Raises:
            Exception: what ``report`` raised when a failure could not even be told.
        """
        self._waiting.put(None)
        self._thread.join()
        if self._untold is not None:
            raise self._untold

    def _work(self) -> None:
        while (save := self._waiting.get()) is not None:
            try:
                self._save(save)
            except BackpropError as error:
                self._tell_failure(save.snapshot.step, error)
            except Exception as error:  # a defect here must not end the training, and must be seen
                wrapped = CheckpointError(f"{type(error).__name__}: {error}", code="RUNTIME_INTERNAL")
                self._tell_failure(save.snapshot.step, wrapped)
            finally:
                del save
                self._unfinished.release()

    def _tell_failure(self, step: int, error: BackpropError) -> None:
        try:
            self._report(failed(step, error))
        except Exception as untold:  # kept for ``close``: without this thread the next save would wait for ever
            self._untold = untold

    def _save(self, save: Save) -> None:
        began = time.monotonic()
        saved = self._store.save(
            save.snapshot.step,
            save.snapshot.write,
            needed=save.snapshot.bytes,
            reason=save.reason,
            identity=save.identity,
            val_loss=save.val_loss,
            boundary=save.boundary,
        )
        self._report(
            CheckpointSaved(
                step=saved.step,
                path=str(saved.path),
                seconds_blocked=save.seconds_blocked,
                seconds=save.seconds_blocked + time.monotonic() - began,
                bytes=saved.bytes,
                reason=save.reason,
            )
        )
        try:
            pruned = self._store.prune(self._policy, in_use=self._in_use)
        except CheckpointError as error:
            self._report(Warning(code=error.code, message=f"old checkpoints stay: {error.message}", hint=error.hint))
            return
        for gone in pruned:
            self._report(CheckpointPruned(path=str(gone.path), step=gone.step))


def failed(step: int, error: BackpropError) -> CheckpointFailed:
    """The event that tells people of a save that did not succeed."""
    return CheckpointFailed(step=step, code=error.code, message=error.message, hint=error.hint)
