"""The step loop beside TRL's ``SFTTrainer``: on the same rows it takes the same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.train import model as models
from backprop.train.methods.sft import SFT
from backprop.train.packing import step_rows
from backprop.train.trainer import StepLoop
from datasets import Dataset
from msgspec.structs import replace
from pinned_machine import within
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

STEPS = 6


def with_trl(config: RunConfig, rows: Any, schedule: Schedule, out: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, with the rows in our order, and our learning rates."""
    loaded = models.load(config, Path(config.model), lambda event: None)
    order = [
        index for step in range(STEPS) for index in step_rows(len(rows), schedule.rows_per_step, config.seed, step)
    ]
    data = [
        {"input_ids": ids.tolist(), "labels": [int(i) if used else -100 for i, used in zip(ids, mask, strict=True)]}
        for ids, mask in (rows.row(index) for index in order)
    ]

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: schedule.factor(step))  # noqa: PLW0108
            self._created_lr_scheduler = True
            return self.lr_scheduler

    arguments = SFTConfig(
        output_dir=str(out),
        max_steps=STEPS,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=loaded.dtype.itemsize == 2,
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=config.seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=loaded.chat.tokenizer, pad_token="<pad>")
    made = InOrder(
        model=loaded.model, args=arguments, train_dataset=Dataset.from_list(data), processing_class=tokenizer
    )
    made.train()
    return [(each["loss"], each["grad_norm"]) for each in made.state.log_history if "grad_norm" in each]


@pytest.mark.parametrize("packing", [True, False])
def test_losses_and_gradient_norms_are_those_of_trl(
    packing: bool, tiny_config: RunConfig, ragged: Any, tmp_path: Path
) -> None:
    config = models.resolved(
        replace(tiny_config, steps=STEPS, lora_dropout=0.0, weight_decay=0.1, max_grad_norm=0.5, packing=packing)
    )
    rows = ragged([9 + 5 * (i % 7) for i in range(24)])
    schedule = Schedule.of(config, len(rows))
    loaded = models.load(config, Path(config.model), lambda event: None)
    loop = StepLoop(loaded, SFT(), config, rows, schedule)
    ours: list[tuple[float, float]] = []

    def note(step: int) -> bool:
        ours.append((loop.metrics.loss, loop.metrics.grad_norm))
        return False

    loop.run(note)

    theirs = with_trl(config, rows, schedule, tmp_path)
    assert len(ours) == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=within(1e-4, bf16=3e-2))
