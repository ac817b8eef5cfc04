"""The step loop: whole optimizer steps, the same for every training method and mode.

Order of the rows, micro-batches, weighting, clipping, steps that are not finite, running out of memory and exact resume
are here; what a micro-batch's loss is belongs to the method (``methods``), which weights there are to the mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from backprop.core.methods import METHODS
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.train.checkpoint import Snapshot, capture, restore, restore_random, seed_random, trained_parameters
from backprop.train.dataset import Subset
from backprop.train.lora_kernel import fuse
from backprop.train.loss import Loss, Metrics
from backprop.train.methods import Method
from backprop.train.model import Loaded
from backprop.train.optimizers import optimizer_for
from backprop.train.out_of_memory import Recovery
from backprop.train.packing import Batching, MicroBatch, Row, step_rows, token_budget
from backprop.train.ranks import Ranks
from backprop.train.sharding import Sharding

MIXES_ROWS = "this model would mix rows that share a sequence: they are padded instead of packed, which is slower"


@dataclass
class StepMetrics:
    """What the step in progress, or the last one, has counted."""

    loss: float = math.nan
    grad_norm: float = math.nan
    learning_rate: float = 0.0
    tokens: int = 0
    supervised: int = 0
    rows: int = 0
    micro_batches: int = 0
    skipped: bool = False
    """The gradient was not finite, so the weights were left as they were."""
    by_name: dict[str, float] = field(default_factory=dict)
    """The method's own, as means over the step."""


def first_batching(loaded: Loaded, config: RunConfig, rows: Subset) -> Batching:
    """How ``rows`` become micro-batches at first: packed, where that was asked for and the model keeps them apart."""
    assert config.batch_size != "auto"
    packing = config.packing and loaded.traits.keeps_rows_apart
    return Batching(packing, config.batch_size, budget_for(loaded, config, rows, config.batch_size))


def budget_for(loaded: Loaded, config: RunConfig, rows: Subset, batch_size: int) -> int:
    """Tokens of a packed micro-batch of ``batch_size`` rows, of which a pair is two sequences."""
    sequences = METHODS[config.method].width * batch_size
    return token_budget(loaded.device, int(rows.lengths.max()), sequences, config.max_seq_length)


def batch_loss(loaded: Loaded, method: Method, batch: MicroBatch) -> Loss:
    """A micro-batch's loss in the precision that the model computes in, on its device."""
    with loaded.autocast():
        return method.loss(loaded, batch.to(loaded.device))


class StepLoop:
    """Takes the optimizer steps of a run.

    - The rows of a step are a pure function of seed and step number (``packing.step_rows``).
    - The loss is summed over what the whole step weighs (for SFT its supervised tokens) and divided by that: 8 x 1,
      4 x 2 and 1 x 8 rows give the same gradient, and an epoch's last step, with fewer rows, is a step like the others.
    - A step whose gradient is not finite changes nothing.
    - A step that runs out of memory is taken again in smaller micro-batches (``recovery``).

    Args:
        config: as resolved.
        between: called before each micro-batch.
        on_halved: called with the error when micro-batches became smaller.
        ranks: the processes that share the micro-batches of each step, and the optimizer's state; ``None`` for one.

    Attributes:
        step: optimizer steps taken.
        metrics: of the last step.
        batching: how rows become micro-batches at present.
        sharding: which rank updates which weights; ``None`` in one process.
        notes: what has to be said about choices made here.
    """

    def __init__(
        self,
        loaded: Loaded,
        method: Method,
        config: RunConfig,
        rows: Subset,
        schedule: Schedule,
        *,
        between: Callable[[], object] = lambda: None,
        on_halved: Callable[[BaseException], object] = lambda error: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.loaded = loaded
        self.method = method
        self.config = config
        self.rows = rows
        self.schedule = schedule
        self.step = 0
        self.metrics = StepMetrics()
        self.recovery = Recovery(config)
        self._between = between
        self._on_halved = on_halved
        self.batching = first_batching(loaded, config, rows)
        self.notes = [MIXES_ROWS] if config.packing and not self.batching.packing else []
        fuse(loaded.model)
        if config.gradient_checkpointing:
            # Activations are computed again in the backward pass. The second name is that of earlier transformers.
            model = loaded.model
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.optimizer = optimizer_for(loaded.model, config, loaded.device)
        self.sharding = Sharding(ranks, trained_parameters(loaded.model).values()) if ranks is not None else None
        # A plain function: the scheduler would save the state of any other callable.
        self.scheduler = LambdaLR(self.optimizer, lambda step: schedule.factor(step))  # noqa: PLW0108
        self._random: dict[str, Any] | None = None
        seed_random(config.seed)

    def run(self, after_step: Callable[[int], bool]) -> int:
        """Take the steps that are left, and return how many were taken in all. Ranks other than 0 stay until they end.

        Args:
            after_step: called with the number of each step; the run ends where it says yes.
        """
        if self._random is not None:
            restore_random(self._random)
            self._random = None
        follows = self.sharding is not None and self.sharding.ranks.rank > 0
        while self.step < self.schedule.steps or follows:
            if self.step % self.schedule.steps_per_epoch == 0:
                # The one number that a ``DataLoader`` draws when an epoch begins. Earlier versions used one, so runs
                # that they began, and runs with their seed, see the same dropout.
                torch.empty((), dtype=torch.int64).random_()
            if self.sharding is not None:
                self._begin_with_all(self.sharding)
            chosen = step_rows(len(self.rows), self.schedule.rows_per_step, self.config.seed, self.step)
            self.take([self.rows.row(index) for index in chosen])
            if after_step(self.step):
                break
        return self.step

    def _begin_with_all(self, sharding: Sharding) -> None:
        """Begin a step when rank 0 does, and as it does."""
        batching, recovery = self.batching, self.recovery
        facts = (self.step, batching.batch_size, batching.token_budget, recovery.halvings)
        self.step, size, budget, recovery.halvings = sharding.ranks.begin_step(
            self.config.seed, facts, lambda: sharding.hand_over(self.optimizer)
        )
        self.batching = batching.resized(size, budget)

    def take(self, rows: list[Row]) -> None:
        """One optimizer step on ``rows``: forward and backward passes, clipping, new weights, next learning rate."""
        self.loaded.model.train()
        self.metrics = StepMetrics(learning_rate=self.optimizer.param_groups[0]["lr"], rows=len(rows))
        self.gradient(rows)
        most = self.config.max_grad_norm
        if self.sharding is None:
            norm = float(clip_grad_norm_(self.loaded.model.parameters(), most))
        else:
            norm = self.sharding.clip(most)
        self.metrics.grad_norm = norm
        if not math.isfinite(norm):
            # Without gradients the optimizer leaves weights and its own state alone.
            self.optimizer.zero_grad()
            self.metrics.skipped = True
        self.optimizer.step()
        if self.sharding is not None:
            self.sharding.spread()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1

    def gradient(self, rows: list[Row]) -> None:
        """Gradients of the mean loss over ``rows``, added to the weights' own; counted in ``metrics``."""
        batches: list[MicroBatch] = []

        def work() -> dict[str, float]:
            batches[:] = self.method.collate(rows, self.batching)
            return (
                self._backward(batches, batches)
                if self.sharding is None
                else self._shared(self.sharding, rows, batches)
            )

        def take(smaller: Batching, error: BaseException) -> None:
            self.batching = smaller
            self._on_halved(error)

        clear = self.optimizer.zero_grad
        sums = self.recovery.attempt(work, clear, lambda: self.batching.halved(batches), take)
        self.metrics.loss = sums.pop("")
        self.metrics.by_name = Metrics.of(sums).means()
        self.metrics.tokens = sum(batch.tokens for batch in batches)
        self.metrics.supervised = sum(batch.supervised for batch in batches)
        self.metrics.micro_batches = len(batches)

    def _shared(self, sharding: Sharding, rows: list[Row], batches: list[MicroBatch]) -> dict[str, float]:
        """The same as ``_backward``, shared with the other ranks: each has the sums of all afterwards."""
        batching = self.batching

        def smaller(batches: list[MicroBatch]) -> list[MicroBatch] | None:
            nonlocal batching
            if (halved := batching.halved(batches)) is None:
                return None
            batching = halved
            return self.method.collate(rows, batching)

        sharding.ranks.deal(batches, smaller)
        return sharding.add_up(lambda: self._backward(sharding.ranks.share(batches), batches))

    def _backward(self, mine: list[MicroBatch], batches: list[MicroBatch]) -> dict[str, float]:
        """What ``mine`` are of the mean loss of ``batches`` (``""``), and their metrics; gradients are added up."""
        weight = max(1, sum(batch.weight for batch in batches))
        total = torch.zeros((), device=self.loaded.device)
        metrics = Metrics()
        for batch in mine:
            self._between()
            found = batch_loss(self.loaded, self.method, batch)
            loss = found.sum / weight
            loss.backward()
            total += loss.detach()
            metrics.add(found, batch.weight)
        return {"": float(total), **metrics.numbers()}

    def snapshot(self, progress: dict[str, Any]) -> Snapshot:
        """The complete state between two steps.

        Raises:
            CheckpointError: part of it cannot be saved.
        """
        snapshot = capture(self.loaded.model, self.optimizer, self.scheduler, step=self.step, progress=progress)
        if self.sharding is not None:
            self.sharding.collect(snapshot)
        return snapshot

    def restore(self, checkpoint: Path, *, new_end: bool = False) -> dict[str, Any]:
        """Go on exactly where ``checkpoint`` was made; returns the progress that was saved with it.

        Args:
            new_end: the schedule is another one: the next step takes its learning rate from it.

        Raises:
            CheckpointError: it does not fit this run.
        """
        owned = (lambda weight: True) if self.sharding is None else self.sharding.owns
        restored = restore(checkpoint, self.loaded.model, self.optimizer, self.scheduler, owned=owned)
        self.step, self._random = restored["step"], restored["random"]
        if new_end:
            # The factors are functions and were not saved with the scheduler: they are the new curve's.
            for group, base in zip(self.optimizer.param_groups, self.scheduler.base_lrs, strict=True):
                group["lr"] = base * self.schedule.factor(self.step)
        progress: dict[str, Any] = restored["progress"]
        return progress
