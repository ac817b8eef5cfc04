"""A resumed run continues as if it had never stopped: every loss and every weight, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from backprop.core.errors import CheckpointError
from backprop.core.events import CheckpointFailed, CheckpointSaved, Event
from backprop.core.settings import RunConfig
from backprop.runs.checkpoints import CheckpointStore
from backprop.train import model as models
from backprop.train.checkpoint import trained_parameters
from backprop.train.checkpointing import Saver, expected_bytes
from backprop.train.identity import identity
from backprop.train.resume import ExactResume, as_resolved, open_checkpoint, require_same_identity
from backprop.train.tensor_tree import difference
from backprop.train.trainer import StepTrainer, plan
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

STEPS = 12
RUN = "run-a"


class ResumableTrainer(ExactResume, Trainer):
    """Transformers' own trainer, with its own accumulation, sampler and scheduler."""

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **named)
        self.passes.append(float(loss))
        return loss


class Watch(TrainerCallback):
    """Collects the losses; saves and stops when told."""

    def __init__(self, loss: Callable[[], Any]) -> None:
        self.loss = loss
        self.losses: dict[int, Any] = {}
        self.saver: Saver | None = None
        self.save_at: set[int] = set()
        self.stop_at = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.losses[state.global_step] = self.loss()
        if self.saver and state.global_step in self.save_at:
            self.saver.save(state.global_step, "test")
        if state.global_step == self.stop_at:
            control.should_training_stop = True
        return control


@pytest.fixture
def config(tiny_config: RunConfig) -> RunConfig:
    # 22 rows at 4 a step: epochs of 6 steps, the last of them short. Saved at 5 and resumed, the run crosses an epoch.
    return models.resolved(msgspec.structs.replace(tiny_config, steps=STEPS, lora_dropout=0.1, warmup_steps=3))


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trained_parameters(trainer.model).items()}


def step_trainer(config: RunConfig, rows: Any, out: Path) -> tuple[Trainer, Watch]:
    loaded = models.load(config, Path(config.model), lambda event: None)
    set_seed(config.seed)
    trainer = StepTrainer(loaded, config, rows, plan(config, len(rows)), out)
    watch = Watch(lambda: (trainer.measured.loss, trainer.measured.grad_norm, trainer.measured.learning_rate))
    trainer.add_callback(watch)
    return trainer, watch


def plain_trainer(config: RunConfig, rows: Any, out: Path) -> tuple[Trainer, Watch]:
    loaded = models.load(config, Path(config.model), lambda event: None)
    set_seed(config.seed)
    data = [{"input_ids": rows.row(i)[0].tolist(), "labels": rows.row(i)[0].tolist()} for i in range(len(rows))]
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        learning_rate=1e-2,
        warmup_steps=3,
        lr_scheduler_type="cosine",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=config.seed,
    )
    collate = lambda batch: {name: torch.tensor([row[name] for row in batch]) for name in batch[0]}  # noqa: E731
    trainer = ResumableTrainer(model=loaded.model, args=arguments, train_dataset=data, data_collator=collate)
    trainer.passes = []
    watch = Watch(lambda: [trainer.passes.pop(0) for _ in range(len(trainer.passes))])
    trainer.add_callback(watch)
    return trainer, watch


def saver_for(trainer: Trainer, store: CheckpointStore, events: list[Event], **options: Any) -> Saver:
    return Saver(store, events.append, trainer, {"config": {}}, lambda: {"tokens_seen": 7}, **options)


@pytest.mark.parametrize("make", [step_trainer, plain_trainer])
@pytest.mark.parametrize("stop_at", [5, 6, 7])
def test_every_loss_and_weight_after_a_resume_is_that_of_the_uninterrupted_run(
    make: Any, stop_at: int, config: RunConfig, ragged: Any, tmp_path: Path
) -> None:
    events: list[Event] = []
    rows = ragged([9 + 3 * (i % 5) for i in range(22)])
    whole, watched = make(config, rows, tmp_path)
    whole.train()
    assert list(watched.losses) == list(range(1, STEPS + 1))

    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    first, first_watch = make(config, rows, tmp_path)
    first_watch.saver = saver_for(first, store, events)
    first_watch.save_at, first_watch.stop_at = {2, stop_at}, stop_at
    first.train()
    first_watch.saver.close()
    assert [type(event) for event in events] == [CheckpointSaved, CheckpointSaved]
    assert first_watch.losses == {step: watched.losses[step] for step in range(1, stop_at + 1)}

    checkpoint, broken = open_checkpoint(store)
    assert (checkpoint.step, broken) == (stop_at, [])
    torch.manual_seed(999)
    second, second_watch = make(config, rows, tmp_path)
    second.train(resume_from_checkpoint=str(checkpoint.path))
    assert second.restored.progress == {"tokens_seen": 7}
    assert second_watch.losses == {step: watched.losses[step] for step in range(stop_at + 1, STEPS + 1)}
    assert difference(weights_of(second), weights_of(whole)) == ""
    assert difference(second.optimizer.state_dict(), whole.optimizer.state_dict()) == ""


def test_dropout_is_on_in_these_runs_so_random_states_matter(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ragged([12] * 22)
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    first, watch = step_trainer(config, rows, tmp_path)
    watch.saver, watch.save_at = saver_for(first, store, events), {5}
    first.train()
    watch.saver.close()
    monkeypatch.setattr(ExactResume, "_load_rng_state", lambda self, checkpoint: None)
    second, other = step_trainer(config, rows, tmp_path)
    second.train(resume_from_checkpoint=str(store.directory / "step-00000005"))
    assert other.losses[6] != watch.losses[6]


def test_saves_come_by_steps_and_by_time_and_on_request(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    trainer, watch = step_trainer(config, ragged([12] * 22), tmp_path)
    watch.stop_at = 1
    trainer.train()
    now = 0.0
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    saver = saver_for(trainer, store, events, every_steps=10, every_minutes=2.0, clock=lambda: now)

    def saved_after(step: int) -> list[tuple[int, str]]:
        before = len(events)
        saver.after_step(step)
        saver._writer.wait()
        return [(event.step, event.reason) for event in events[before:] if isinstance(event, CheckpointSaved)]

    assert saved_after(1) == []
    now = 119.0
    assert saved_after(2) == []
    now = 120.0
    assert saved_after(3) == [(3, "time")]
    now = 180.0
    assert saved_after(4) == []
    assert saved_after(10) == [(10, "steps")]
    now = 299.0
    assert saved_after(11) == []
    saver.save(12, "asked for")
    saver.save(12, "again")
    saver.after_evaluation(13, 0.5)
    saver.finish(13, "end")
    saver.finish(14, "end")
    saver.close()
    told = [(event.step, event.reason) for event in events if isinstance(event, CheckpointSaved)]
    assert told == [(3, "time"), (10, "steps"), (12, "asked for"), (13, "evaluated"), (14, "end")]
    assert all(event.seconds_blocked > 0 for event in events if isinstance(event, CheckpointSaved))


def test_only_evaluations_among_the_best_are_saved(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    trainer, watch = step_trainer(config, ragged([12] * 22), tmp_path)
    watch.stop_at = 1
    trainer.train()
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    saver = saver_for(trainer, store, events)
    for step, loss in enumerate([0.5, 0.4, 0.6, 0.7, float("nan"), 0.3], start=1):
        saver.after_evaluation(step, loss)
    saver.close()
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [1, 2, 3, 6]
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [1, 2, 3, 6]


def test_a_run_goes_on_when_its_checkpoints_cannot_be_written(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    trainer, watch = step_trainer(config, ragged([12] * 22), tmp_path)
    store = CheckpointStore(tmp_path / "elsewhere", RUN)
    watch.saver, watch.save_at = saver_for(trainer, store, events), {3, 6}
    store.directory = tmp_path / "checkpoints"
    trainer.train()
    watch.saver.close()
    assert list(watch.losses) == list(range(1, STEPS + 1))
    assert [(type(event), event.step) for event in events] == [(CheckpointFailed, 3), (CheckpointFailed, 6)]


def test_a_run_is_not_continued_with_other_settings_or_data(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    trainer, watch = step_trainer(config, ragged([12] * 22), tmp_path)
    watch.stop_at = 1
    trainer.train()
    path = Path(config.model)
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    saver = Saver(store, events.append, trainer, identity(config, path, "template", "rows"))
    saver.finish(1, "stop")
    saver.close()
    checkpoint, _ = open_checkpoint(store)
    require_same_identity(checkpoint, identity(config, path, "template", "rows"))
    other = msgspec.structs.replace(config, learning_rate=0.5)
    with pytest.raises(CheckpointError) as caught:
        require_same_identity(checkpoint, identity(other, path, "template", "edited rows"))
    assert caught.value.code == "STATE_IDENTITY_MISMATCH"
    assert caught.value.details["differences"] == [
        "the data, or how it becomes tokens, was changed",
        "learning_rate was 0.01 and is 0.5",
    ]


def test_what_was_left_open_is_chosen_as_before(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    trainer, watch = step_trainer(config, ragged([12] * 22), tmp_path)
    watch.stop_at = 1
    trainer.train()
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    saver = Saver(store, events.append, trainer, identity(config, Path(config.model), "", ""))
    saver.finish(1, "stop")
    saver.close()
    asked = msgspec.structs.replace(config, batch_size="auto", lora_alpha=None, learning_rate=0.3)
    again = as_resolved(asked, open_checkpoint(store)[0])
    assert (again.batch_size, again.lora_alpha, again.learning_rate) == (config.batch_size, config.lora_alpha, 0.3)


def test_the_loops_state_is_plain_json_and_the_expected_size_holds(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    trainer, watch = step_trainer(config, ragged([12] * 22), tmp_path)
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    watch.saver, watch.save_at = saver_for(trainer, store, events), {3}
    watch.saver.require_space()
    trainer.train()
    watch.saver.close()
    checkpoint, _ = open_checkpoint(store)
    assert json.loads((checkpoint.path / "trainer_state.json").read_text())["global_step"] == 3
    assert expected_bytes(trainer) <= checkpoint.bytes < expected_bytes(trainer) + 2**17
