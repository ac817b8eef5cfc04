"""Continue a run exactly: which checkpoint, whether it may be used, and putting it into the training loop.

In order: ``open_checkpoint``, ``as_resolved``, ``require_same_identity``, then train with
``trainer.train(resume_from_checkpoint=str(checkpoint.path))`` on a trainer that has ``ExactResume``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from backprop.core.errors import CheckpointError
from backprop.core.settings import RunConfig
from backprop.runs.checkpoints import BrokenCheckpoint, Checkpoint, CheckpointStore
from backprop.train.checkpoint import RestoredState, load_weights, restore_optimizer
from backprop.train.identity import identity_differences


def open_checkpoint(store: CheckpointStore) -> tuple[Checkpoint, list[BrokenCheckpoint]]:
    """The newest checkpoint that verifies, and the broken ones passed over, to be named.

    Leftovers of a crash are removed: the run's lock must be held.

    Raises:
        CheckpointError: there is none; the message says of each why not.
    """
    store.remove_leftovers()
    return store.require_valid()


def as_resolved(config: RunConfig, checkpoint: Checkpoint) -> RunConfig:
    """``config`` with what was left open chosen as it was when the checkpoint was made.

    A batch size that free memory decides, for example, must not be decided again.
    """
    saved = checkpoint.manifest.identity.get("config", {})
    open_fields = [name for name in config.__struct_fields__ if getattr(config, name) in (None, "auto")]
    chosen = {name: saved[name] for name in open_fields if name in saved}
    return msgspec.convert({**msgspec.to_builtins(config), **chosen}, RunConfig)


def require_same_identity(checkpoint: Checkpoint, now: dict[str, Any]) -> None:
    """Refuse to continue with another model, data or configuration.

    Raises:
        CheckpointError: ``STATE_IDENTITY_MISMATCH`` with the list of differences.
    """
    differences = identity_differences(checkpoint.manifest.identity, now)
    if differences:
        raise CheckpointError(
            "the run cannot be continued exactly: " + "; ".join(differences),
            code="STATE_IDENTITY_MISMATCH",
            hint="put these back as they were, or start a new run",
            details={"differences": differences, "checkpoint": str(checkpoint.path)},
        )


class ExactResume:
    """Makes a transformers ``Trainer`` resume from our checkpoints; name it before the trainer class among the bases.

    The loop of transformers finds its place by the step number and calls these at the right moments: random generators
    last, when the batches already taken have been skipped.
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    restored: RestoredState | None = None
    """What the checkpoint held besides, once it is loaded."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(Path(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.restored = restore_optimizer(
                Path(checkpoint), self.model, self.optimizer, self.lr_scheduler, scaler=self.accelerator.scaler
            )

    def _load_scaler(self, checkpoint: str | None) -> None:
        """The loss scale came with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.restored is not None
            self.restored.restore_random()
