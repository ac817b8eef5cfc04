"""A resumed run continues as if it had never stopped: every loss and every weight, to the last bit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from backprop.core.errors import CheckpointError
from backprop.core.events import CheckpointFailed, CheckpointSaved, Event, SettingsChosen
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.retention import CheckpointPolicy
from backprop.train import model as models
from backprop.train import trainer
from backprop.train.checkpoint import difference, trained_parameters
from backprop.train.methods.sft import SFT
from backprop.train.persistence.checkpointing import Saver, expected_bytes
from backprop.train.persistence.resume import as_resolved, identity, require_same_identity
from backprop.train.trainer import StepLoop

STEPS = 12
RUN = "run-a"


class Watch:
    """Collects what the steps came to; saves and stops when told."""

    def __init__(self, loop: StepLoop) -> None:
        self.loop = loop
        self.values: dict[int, Any] = {}
        self.saver: Saver | None = None
        self.save_at: set[int] = set()
        self.stop_at = 0

    def __call__(self, step: int) -> bool:
        metrics = self.loop.metrics
        self.values[step] = (metrics.loss, metrics.grad_norm, metrics.learning_rate)
        if self.saver and step in self.save_at:
            self.saver.save(step, "test")
        return step == self.stop_at


@pytest.fixture
def config(tiny_config: RunConfig) -> RunConfig:
    # 22 rows at 4 a step: epochs of 6 steps, the last of them short. Saved at 5 and resumed, the run crosses an epoch.
    return models.resolved(msgspec.structs.replace(tiny_config, steps=STEPS, lora_dropout=0.1, warmup_steps=3))


def weights_of(loop: StepLoop) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trained_parameters(loop.loaded.model).items()}


def made(config: RunConfig, rows: Any) -> tuple[StepLoop, Watch]:
    loaded = models.load(config, Path(config.model), lambda event: None)
    loop = StepLoop(loaded, SFT(), config, rows, Schedule.of(config, len(rows)))
    return loop, Watch(loop)


KEPT = CheckpointPolicy(keep_best_n=3, keep_last=2)


def saver_for(loop: StepLoop, store: CheckpointStore, events: list[Event], **options: Any) -> Saver:
    return Saver(
        store, events.append, lambda: loop.snapshot({"tokens_seen": 7}), {"config": {}}, policy=KEPT, **options
    )


@pytest.mark.parametrize("stop_at", [5, 6, 7])
def test_every_loss_and_weight_after_a_resume_is_that_of_the_uninterrupted_run(
    stop_at: int, config: RunConfig, ragged: Any, tmp_path: Path
) -> None:
    events: list[Event] = []
    rows = ragged([9 + 3 * (i % 5) for i in range(22)])
    whole, watched = made(config, rows)
    assert whole.run(watched) == STEPS
    assert list(watched.values) == list(range(1, STEPS + 1))

    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    first, first_watch = made(config, rows)
    first_watch.saver = saver_for(first, store, events)
    first_watch.save_at, first_watch.stop_at = {2, stop_at}, stop_at
    assert first.run(first_watch) == stop_at
    first_watch.saver.close()
    assert [type(event) for event in events] == [CheckpointSaved, CheckpointSaved]
    assert first_watch.values == {step: watched.values[step] for step in range(1, stop_at + 1)}

    checkpoint, broken = store.require_valid()
    assert (checkpoint.step, broken) == (stop_at, [])
    torch.manual_seed(999)
    second, second_watch = made(config, rows)
    assert second.restore(checkpoint.path) == {"tokens_seen": 7}
    torch.manual_seed(998)
    second.run(second_watch)
    assert second_watch.values == {step: watched.values[step] for step in range(stop_at + 1, STEPS + 1)}
    assert difference(weights_of(second), weights_of(whole)) == ""
    assert difference(second.optimizer.state_dict(), whole.optimizer.state_dict()) == ""


def test_dropout_is_on_in_these_runs_so_random_states_matter(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ragged([12] * 22)
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    first, watch = made(config, rows)
    watch.saver, watch.save_at = saver_for(first, store, events), {5}
    first.run(watch)
    watch.saver.close()
    monkeypatch.setattr(trainer, "restore_random", lambda state: None)
    second, other = made(config, rows)
    second.restore(store.directory / "step-00000005")
    second.run(other)
    assert other.values[6] != watch.values[6]


def test_with_a_new_end_the_learning_rate_goes_on_along_the_new_curve(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    rows = ragged([12] * 22)
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    first, watch = made(config, rows)
    watch.saver, watch.save_at, watch.stop_at = saver_for(first, store, events), {8}, 8
    first.run(watch)
    watch.saver.close()
    longer, other = made(msgspec.structs.replace(config, steps=40), rows)

    longer.restore(store.directory / "step-00000008", new_end=True)
    other.stop_at = 20
    longer.run(other)

    rates = [rate for _, _, rate in other.values.values()]
    assert rates == [pytest.approx(config.learning_rate * longer.schedule.factor(step)) for step in range(8, 20)]


def test_what_was_drawn_before_the_steps_has_no_part_in_them(config: RunConfig, ragged: Any) -> None:
    curves = []
    for draws in (0, 7):
        loaded = models.load(config, Path(config.model), lambda event: None)
        torch.rand(draws)
        rows = ragged([12] * 22)
        loop = StepLoop(loaded, SFT(), config, rows, Schedule.of(config, len(rows)))
        watch = Watch(loop)
        watch.stop_at = 4
        loop.run(watch)
        curves.append(watch.values)
    assert curves[0] == curves[1]


def after_one_step(config: RunConfig, ragged: Any) -> StepLoop:
    loop, watch = made(config, ragged([12] * 22))
    watch.stop_at = 1
    loop.run(watch)
    return loop


def test_saves_come_by_steps_and_by_time_and_on_request(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    loop = after_one_step(config, ragged)
    now = 0.0
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    saver = saver_for(loop, store, events, every_steps=10, every_minutes=2.0, clock=lambda: now)

    def saved_after(step: int) -> list[tuple[int, str]]:
        before = len(events)
        loop.step = step
        saver.after_step(step)
        saver.wait()
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
    loop.step = 12
    saver.save(12, "asked for")
    saver.save(12, "again")
    loop.step = 13
    saver.after_evaluation(13, 0.5)
    saver.finish(13, "end")
    loop.step = 14
    saver.finish(14, "end")
    saver.close()
    told = [(event.step, event.reason) for event in events if isinstance(event, CheckpointSaved)]
    assert told == [(3, "time"), (10, "steps"), (12, "asked for"), (13, "evaluated"), (14, "end")]
    assert all(event.seconds_blocked > 0 for event in events if isinstance(event, CheckpointSaved))


@pytest.mark.parametrize(("minutes", "then"), [("auto", 1950), (8.0, 600)])
def test_saving_takes_a_twentieth_of_the_time_at_most(
    minutes: Any, then: int, config: RunConfig, ragged: Any, tmp_path: Path
) -> None:
    loop, events, now = after_one_step(config, ragged), list[Event](), [0.0]

    class SlowDisk(CheckpointStore):
        def save(self, *words: Any, **rest: Any) -> Any:
            now[0] += 90
            return super().save(*words, **rest)

    store = SlowDisk(tmp_path / "checkpoints", RUN)
    saver = saver_for(loop, store, events, every_minutes=minutes, clock=lambda: now[0])
    for loop.step in range(150, 6000, 150):
        now[0] = float(loop.step)
        saver.after_step(loop.step)
        saver.wait()
    saver.close()
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert saved[0] == 600
    assert {after - before for before, after in pairwise(saved)} == {then}
    told = [event for event in events if isinstance(event, SettingsChosen)]
    assert [event.values for event in told] == [{"save_minutes": 31}] * (minutes == "auto")
    assert all("90 s" in event.reasons["save_minutes"] for event in told)


def test_only_evaluations_among_the_best_are_saved(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    loop = after_one_step(config, ragged)
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    saver = saver_for(loop, store, events)
    for step, loss in enumerate([0.5, 0.4, 0.6, 0.7, float("nan"), 0.3], start=1):
        loop.step = step
        saver.after_evaluation(step, loss)
    saver.close()
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [1, 2, 3, 6]
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [1, 2, 3, 6]


def test_a_run_goes_on_when_its_checkpoints_cannot_be_written(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    loop, watch = made(config, ragged([12] * 22))
    store = CheckpointStore(tmp_path / "elsewhere", RUN)
    watch.saver, watch.save_at = saver_for(loop, store, events), {3, 6}
    store.directory = tmp_path / "checkpoints"
    loop.run(watch)
    watch.saver.close()
    assert list(watch.values) == list(range(1, STEPS + 1))
    assert [(type(event), event.step) for event in events] == [(CheckpointFailed, 3), (CheckpointFailed, 6)]


def test_a_run_is_not_continued_with_other_settings_or_data(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    path = Path(config.model)
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    loop = after_one_step(config, ragged)
    saver = Saver(store, events.append, lambda: loop.snapshot({}), identity(config, path, "rows"), policy=KEPT)
    saver.finish(1, "stop")
    saver.close()
    checkpoint, _ = store.require_valid()
    nowhere: Any = (None, RunDirectory(tmp_path))
    assert require_same_identity(checkpoint, identity(config, path, "rows"), *nowhere) == []
    other = msgspec.structs.replace(config, learning_rate=0.5)
    with pytest.raises(CheckpointError) as caught:
        require_same_identity(checkpoint, identity(other, path, "edited rows"), *nowhere)
    assert caught.value.code == "STATE_IDENTITY_MISMATCH"
    assert caught.value.details["differences"] == [
        "the data, or how it becomes tokens, was changed",
        "learning_rate was 0.01 and is 0.5",
    ]


def test_what_was_left_open_is_chosen_as_before(
    config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    loop = after_one_step(config, ragged)
    saver = Saver(
        store, events.append, lambda: loop.snapshot({}), identity(config, Path(config.model), ""), policy=KEPT
    )
    saver.finish(1, "stop")
    saver.close()
    asked = msgspec.structs.replace(config, batch_size="auto", lora_alpha=None, learning_rate=0.3)
    again = as_resolved(asked, store.require_valid()[0])
    assert (again.batch_size, again.lora_alpha, again.learning_rate) == (config.batch_size, config.lora_alpha, 0.3)


def test_the_expected_size_holds(config: RunConfig, ragged: Any, tmp_path: Path, events: list[Event]) -> None:
    loop, watch = made(config, ragged([12] * 22))
    store = CheckpointStore(tmp_path / "checkpoints", RUN)
    watch.saver, watch.save_at = saver_for(loop, store, events), {3}
    watch.saver.require_space(expected_bytes(loop.loaded.model, config))
    loop.run(watch)
    watch.saver.close()
    checkpoint, _ = store.require_valid()
    expected = expected_bytes(loop.loaded.model, config)
    assert expected <= checkpoint.bytes < expected + 2**17
