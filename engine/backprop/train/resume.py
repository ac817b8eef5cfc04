"""Where a run starts: at step 0, exactly where it stopped, beyond its old end, or from another run's weights.

``begin`` decides before anything heavy is loaded. ``require_same_identity`` compares once model and rows are known.
``ExactResume`` puts a checkpoint into the training loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from backprop.core import events
from backprop.core.errors import CheckpointError
from backprop.core.settings import RunConfig
from backprop.runs.checkpoints import BrokenCheckpoint, Checkpoint, CheckpointStore
from backprop.runs.directory import RunDirectory, RunRecord
from backprop.train.checkpoint import RestoredState, load_weights, restore_optimizer
from backprop.train.identity import identity_differences, library_differences


def library_notes(checkpoint: Checkpoint, now: dict[str, Any]) -> list[events.Event]:
    """A warning where libraries have other versions than when the checkpoint was made."""
    changed = library_differences(checkpoint.manifest.identity, now)
    if not changed:
        return []
    message = "libraries changed, so results may differ in the last bits: " + "; ".join(changed)
    return [events.Warning(code="LIBRARIES_CHANGED", message=message)]


@dataclass
class Beginning:
    """What a stretch of a run begins with.

    ``checkpoint`` is ``None`` at step 0. ``extended`` is set where the run gets a new end: its schedule is then
    computed anew. ``weights`` is a folder with an adapter whose weights a fork starts from.
    """

    config: RunConfig
    checkpoint: Checkpoint | None = None
    continued: bool = False
    extended: bool = False
    weights: Path | None = None
    notes: list[events.Event] = field(default_factory=list)
    """To be told once the run has started: broken checkpoints, a changed end."""

    @property
    def resumed_from(self) -> int | None:
        """The step that a continued run goes on after."""
        if not self.continued:
            return None
        return self.checkpoint.step if self.checkpoint else 0


def begin(
    directory: RunDirectory, record: RunRecord, verb: str, steps: int | None, resolve: Callable[[RunConfig], RunConfig]
) -> Beginning:
    """How the run in ``directory`` begins. The run's lock must be held.

    Args:
        verb: ``start``, ``resume`` or ``extend``.
        steps: the new end, for ``extend``.
        resolve: fills what a configuration leaves open, for this machine (``model.resolved``).

    Raises:
        CheckpointError: checkpoints exist and none verifies; the message says of each why not.
    """
    config = record.config
    if verb == "start":
        weights = Path(record.forked_from) if record.forked_from else None
        return Beginning(resolve(config), weights=weights)
    if verb == "extend":
        config = msgspec.structs.replace(config, steps=steps, epochs=None)
        directory.update_record(config=config)
    store = CheckpointStore(directory.checkpoints, record.run_id)
    if not _has_checkpoints(store):
        note = events.Warning(code="NO_CHECKPOINT", message="the run had no checkpoint yet: it starts again at step 1")
        return Beginning(resolve(config), continued=True, extended=verb == "extend", notes=[note])
    checkpoint, broken = open_checkpoint(store)
    notes: list[events.Event] = [
        events.Warning(
            code="STATE_CHECKPOINT_INVALID",
            message=f"checkpoint {each.path.name} is not used: {'; '.join(each.problems)}",
            hint=f"going on from step {checkpoint.step}",
        )
        for each in broken
    ]
    return Beginning(
        resolve(as_resolved(config, checkpoint)), checkpoint, continued=True, extended=verb == "extend", notes=notes
    )


def _has_checkpoints(store: CheckpointStore) -> bool:
    store.remove_leftovers()
    return store.directory.is_dir() and any(store.directory.glob("step-*"))


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


def require_same_identity(checkpoint: Checkpoint, now: dict[str, Any], *, extended: bool = False) -> None:
    """Refuse to continue with another model, data or configuration. An extended run may have another end.

    Raises:
        CheckpointError: ``STATE_IDENTITY_MISMATCH`` with the list of differences.
    """
    saved = checkpoint.manifest.identity
    if extended:
        end = {name: now["config"].get(name) for name in ("steps", "epochs", "warmup_steps")}
        saved = {**saved, "config": {**saved.get("config", {}), **end}}
    differences = identity_differences(saved, now)
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
    recompute_schedule = False
    """The run has a new end: the next step takes its learning rate from the new curve, not from the checkpoint."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(Path(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.restored = restore_optimizer(
                Path(checkpoint), self.model, self.optimizer, self.lr_scheduler, scaler=self.accelerator.scaler
            )
            if self.recompute_schedule:
                self._rate_from_new_curve()

    def _rate_from_new_curve(self) -> None:
        # The factors are functions and were not saved with the scheduler: they are the new curve's.
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        for group, base, factor in zip(
            self.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(scheduler.last_epoch)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """The loss scale came with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.restored is not None
            self.restored.restore_random()
