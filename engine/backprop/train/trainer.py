"""What is optimised, and how the steps go: TRL's ``SFTTrainer`` on rows that are already tokens.

The trainer's loop, optimizer, clipping and callbacks are TRL's and transformers' own. Ours are the rows of a step
(``packing``), the loss (``loss``) and the learning-rate curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from backprop.core.settings import RunConfig
from backprop.train.lora_kernel import fuse
from backprop.train.loss import has_plain_head, keeps_rows_apart, summed_loss
from backprop.train.model import Loaded, evaluating
from backprop.train.out_of_memory import MOST_HALVINGS, Recovery
from backprop.train.packing import Pass, Row, Rows, Spread, StepSampler, capacity_for, trained_count
from backprop.train.resume import ExactResume

FLOOR = 0.1
"""The learning rate decays to this share of its peak, not to zero: the last steps still learn."""


MIXES_ROWS = "this model would mix rows that share a sequence: they are padded instead of packed, which is slower"


@dataclass
class Measured:
    """What the step in progress, or the last one, has counted."""

    loss: float = math.nan
    grad_norm: float = math.nan
    learning_rate: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0
    rows: int = 0
    passes: int = 0
    skipped: bool = False
    """The gradient was not finite, so the weights were left as they were."""


@dataclass
class Plan:
    """How long a run is: ``steps`` optimizer steps over ``rows`` rows, ``rows_per_step`` each."""

    rows: int
    rows_per_step: int
    steps: int
    warmup_steps: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.rows_per_step)


def plan(config: RunConfig, rows: int) -> Plan:
    """Steps and warm-up of a ``resolved`` configuration on ``rows`` usable rows."""
    assert config.batch_size != "auto"
    rows_per_step = config.batch_size * config.gradient_accumulation
    steps = config.steps or math.ceil(-(-rows // rows_per_step) * (config.epochs or 1.0))
    warmup = config.warmup_steps if config.warmup_steps is not None else min(100, round(0.05 * steps))
    return Plan(rows=rows, rows_per_step=rows_per_step, steps=steps, warmup_steps=min(warmup, steps - 1))


def rate_factor(step: int, steps: int, warmup: int, kind: Literal["cosine", "linear", "constant"]) -> float:
    """Share of the peak learning rate that optimizer step ``step`` (from 0) uses.

    Warm-up is linear and its first step already learns; decay goes down to ``FLOOR``.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, steps - warmup - 1))
    left = 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return FLOOR + (1.0 - FLOOR) * left


def trainer_arguments(config: RunConfig, schedule: Plan, loaded: Loaded, output: Path) -> SFTConfig:
    """TRL's settings. Those that would print, report, save or reach the network by themselves are off."""
    on_gpu = loaded.device.type == "cuda"
    return SFTConfig(
        output_dir=str(output),
        max_steps=schedule.steps,
        # One batch of the loader is one optimizer step; ``StepTrainer`` spreads it over forward passes.
        per_device_train_batch_size=schedule.rows_per_step,
        gradient_accumulation_steps=1,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        seed=config.seed,
        data_seed=config.seed,
        # The frozen weights' own precision is used, with autocast around the loss: see ``StepTrainer.compute_loss``.
        bf16=False,
        fp16=False,
        use_cpu=not on_gpu,
        gradient_checkpointing=bool(config.gradient_checkpointing),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=0,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
        logging_nan_inf_filter=False,
    )


@dataclass
class StepRows:
    """The rows of one optimizer step, and their number of supervised tokens."""

    rows: list[Row] = field(default_factory=list)
    trained: int = 0


class StepTrainer(ExactResume, SFTTrainer):
    """An ``SFTTrainer`` that takes whole optimizer steps.

    - The rows of a step are a pure function of seed, epoch and place in the epoch (``StepSampler``).
    - The loss is summed over the supervised tokens of the step and divided by their number: 8 x 1, 4 x 2 and 1 x 8
      rows give the same gradient, and the last step of an epoch, with fewer rows, is a step like the others.
    - A step that runs out of memory is taken again in smaller passes (``recovery``); ``on_halved`` is told.
    - ``measured`` has what the last step counted; ``between_passes`` is called before each forward pass.
    """

    def __init__(
        self,
        loaded: Loaded,
        config: RunConfig,
        rows: Rows,
        schedule: Plan,
        output: Path,
        *,
        between_passes: Callable[[], object] = lambda: None,
        on_halved: Callable[[BaseException], object] = lambda error: None,
    ) -> None:
        self.rows = rows
        self.schedule = schedule
        self.run_config = config
        self.loaded = loaded
        self.measured = Measured()
        self.between_passes = between_passes
        self.on_halved = on_halved
        self.recovery = Recovery(most=MOST_HALVINGS if config.oom_recovery else 0)
        with evaluating(loaded.model):
            self.plain_head = has_plain_head(loaded.model)
            apart = not config.packing or keeps_rows_apart(loaded.model)
        fuse(loaded.model)
        self.notes = [] if apart else [MIXES_ROWS]
        assert config.batch_size != "auto"
        self.spread = Spread(
            packing=config.packing and apart,
            batch_size=config.batch_size,
            capacity=capacity_for(loaded.device, int(rows.lengths.max()), config.batch_size, config.max_seq_length),
            pad_id=loaded.tokenizer.pad_token_id or 0,
        )
        super().__init__(
            model=loaded.model,
            args=trainer_arguments(config, schedule, loaded, output),
            train_dataset=Dataset.from_dict({"row": range(len(rows))}),
            data_collator=self._collate,
            processing_class=loaded.tokenizer,
        )
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        sampler = StepSampler(len(self.rows), self.schedule.rows_per_step, self.args.seed)
        return _EpochLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self._collate)

    def _collate(self, batch: list[dict[str, int]]) -> StepRows:
        rows = [self.rows.row(each["row"]) for each in batch]
        return StepRows(rows, sum(trained_count(row) for row in rows))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], int]:
        """The next step's rows, and the number of its supervised tokens."""
        step = next(epoch_iterator)
        return [step], step.trained

    def training_step(self, model: torch.nn.Module, inputs: StepRows, num_items_in_batch: int) -> torch.Tensor:
        """All forward and backward passes of one optimizer step; returns its loss."""
        model.train()
        taken: list[Pass] = []

        def work() -> torch.Tensor:
            taken[:] = self.spread.passes(inputs.rows)
            return self._all_passes(model, taken, num_items_in_batch)

        def halve(error: BaseException) -> bool:
            smaller = self.spread.halved(taken)
            if smaller is None:
                return False
            self.spread = smaller
            self.on_halved(error)
            return True

        total = self.recovery.attempt(work, lambda: model.zero_grad(set_to_none=True), halve)
        self.measured = Measured(
            loss=float(total),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            tokens=sum(one.tokens for one in taken),
            trained_tokens=num_items_in_batch,
            rows=len(inputs.rows),
            passes=len(taken),
        )
        return total

    def _all_passes(self, model: torch.nn.Module, passes: list[Pass], trained: int) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        for one in passes:
            self.between_passes()
            loss = self.compute_loss(model, one.to(self.args.device), num_items_in_batch=trained)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def compute_loss(
        self, model: torch.nn.Module, inputs: Pass, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> torch.Tensor:
        """Cross-entropy of a pass's trained tokens, divided by ``num_items_in_batch`` (default: their own number)."""
        mixed = self.loaded.dtype == torch.bfloat16
        with torch.autocast(self.loaded.device.type, dtype=torch.bfloat16, enabled=mixed):
            summed = summed_loss(model, inputs, plain_head=self.plain_head)
        return summed / max(1, num_items_in_batch or inputs.trained)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.measured.grad_norm = float(norm)
        if not math.isfinite(self.measured.grad_norm):
            # Without gradients the optimizer leaves weights and its own state alone.
            model.zero_grad(set_to_none=True)
            self.measured.skipped = True
        return norm

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        kind, warmup = self.run_config.scheduler, self.schedule.warmup_steps
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda step: rate_factor(step, num_training_steps, warmup, kind)
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers' estimate assumes padded batches of its own form."""
        return 0


class _EpochLoader(DataLoader[Any]):
    """A loader that tells its sampler the epoch, as the trainer's loop tells the loader."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
