"""Whole runs of the tiny model in this process, from configuration to adapter."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs_in_process
import torch
from backprop.core import files
from backprop.core.errors import (
    BackpropError,
    CheckpointError,
    DatasetValidationError,
    RunError,
    TrainingAbortedError,
    TrainingError,
)
from backprop.core.events import (
    Abort,
    DatasetPrepared,
    Evaluated,
    Event,
    ModelLoaded,
    Pause,
    Paused,
    PhaseChanged,
    Resume,
    Resumed,
    RunFinished,
    Sample,
    SampleNow,
    Step,
    StepSkipped,
    Stop,
    Warning,  # noqa: A004
)
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.runs.checkpoints import SPARE_BYTES, CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.train.evaluate import Evaluator
from backprop.train.methods import sft
from backprop.train.model import resolved
from backprop.train.modes import lora
from backprop.train.persistence.resume import Beginning
from backprop.train.run import Run
from msgspec.structs import replace
from safetensors import SafetensorError
from safetensors.torch import load_file


def do(config: RunConfig, control: Any) -> tuple[list[Event], RunDirectory]:
    events: list[Event] = []
    directory = RunDirectory.create(config)
    Run(Beginning(resolved(config)), directory, events.append, control).run()
    return events, directory


def of(events: list[Event], kind: type[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_a_run_goes_from_configuration_to_an_adapter_that_says_what_it_is(tiny_config: RunConfig, played: Any) -> None:
    events, directory = do(tiny_config, played())

    steps = of(events, Step)
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert steps[-1].loss < steps[0].loss
    assert all(step.total_steps == 4 and step.grad_norm > 0 and step.tokens_per_second > 0 for step in steps)
    assert steps[-1].samples_seen == 16
    assert steps[-1].tokens_seen > sum(step.trained_tokens for step in steps) > 0
    finished = events[-1]
    assert isinstance(finished, RunFinished)
    assert (finished.status, finished.steps, finished.final_loss) == ("done", 4, steps[-1].loss)
    assert finished.output_path == str(directory.adapter)

    loaded = of(events, ModelLoaded)[0]
    weights = load_file(directory.adapter / "adapter_model.safetensors")
    assert loaded.trainable_parameters == sum(tensor.numel() for tensor in weights.values())
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    identity = json.loads((directory.adapter / "backprop.json").read_text())
    assert identity["run_id"] == directory.run_id
    assert identity["model"] == tiny_config.model
    assert (directory.adapter / "tokenizer.json").is_file()
    assert [path.name for path in directory.path.iterdir() if "partial" in path.name] == []


def test_the_phases_come_in_the_order_of_the_story(tiny_config: RunConfig, played: Any) -> None:
    events, _ = do(replace(tiny_config, sample_prompts=["Who waits?"], sample_tokens=4), played())

    phases = [event.phase for event in of(events, PhaseChanged) if not event.detail.endswith("%")]
    assert phases == [
        "loading_model",
        "preparing_data",
        "loading_model",
        "sampling",
        "training",
        "saving",
        "sampling",
    ]
    assert [(sample.step, sample.tuned) for sample in of(events, Sample)] == [(0, False), (4, True)]


def test_the_same_seed_gives_the_same_loss_at_every_step(tiny_config: RunConfig, played: Any) -> None:
    runs = [do(tiny_config, played())[0] for _ in range(2)]
    other = do(replace(tiny_config, seed=7), played())[0]

    losses = [[step.loss for step in of(events, Step)] for events in [*runs, other]]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_epochs_become_steps_and_the_last_step_takes_the_rows_that_are_left(
    tiny_config: RunConfig, played: Any
) -> None:
    config = replace(tiny_config, steps=None, epochs=1.0, batch_size=3, gradient_accumulation=1)

    steps = of(do(config, played())[0], Step)

    assert len(steps) == 14
    assert steps[-1].samples_seen == 40
    assert steps[-1].epoch == 1.0


def test_rows_that_train_nothing_stop_the_run_and_are_named(tiny_config: RunConfig, played: Any) -> None:
    with Path(tiny_config.data).open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "Nobody answers."}]}\n')

    with pytest.raises(DatasetValidationError, match=r"1 of 41 rows .*line 41") as caught:
        do(tiny_config, played())
    assert "--skip-bad" in caught.value.hint
    assert (caught.value.details["remedy"], caught.value.details["lines"]) == ({"skip_bad": True}, [41])

    events, _ = do(replace(tiny_config, skip_bad=True), played())
    assert of(events, DatasetPrepared)[0].dropped == 1
    assert isinstance(events[-1], RunFinished)


def test_a_missing_dataset_is_said_before_any_weight_is_loaded(
    tiny_config: RunConfig, played: Any, tmp_path: Path
) -> None:
    events: list[Event] = []
    config = replace(tiny_config, data=str(tmp_path / "nowhere.jsonl"))

    with pytest.raises(BackpropError) as caught:
        Run(Beginning(resolved(config)), RunDirectory.create(config), events.append, played()).run()

    assert caught.value.code == "DATASET_NOT_FOUND"
    assert of(events, ModelLoaded) == []


def test_a_pause_holds_after_the_step_in_progress(tiny_config: RunConfig, played: Any) -> None:
    after_two = played({4: [Pause()]}, held=[SampleNow(), Resume()])

    events, _ = do(replace(tiny_config, sample_prompts=[]), after_two)

    names = [event.type for event in events if isinstance(event, Step | Paused | Resumed)]
    at = names.index("paused")
    assert names[at : at + 2] == ["paused", "resumed"]
    assert names[:at] == ["step"] * of(events, Paused)[0].step
    assert names.count("step") == 4


def test_stop_finishes_the_step_and_saves(tiny_config: RunConfig, played: Any) -> None:
    events, directory = do(replace(tiny_config, steps=50), played({8: [Stop()]}))

    finished = events[-1]
    assert isinstance(finished, RunFinished)
    assert finished.status == "stopped"
    assert 0 < finished.steps == len(of(events, Step)) < 50
    assert (directory.adapter / "adapter_model.safetensors").is_file()


def test_a_run_ended_by_a_signal_says_interrupted(tiny_config: RunConfig, played: Any) -> None:
    events, _ = do(replace(tiny_config, steps=50), played({8: [Stop(by="signal")]}))

    assert events[-1].status == "interrupted"  # type: ignore[attr-defined]


def test_stop_ends_a_pause(tiny_config: RunConfig, played: Any) -> None:
    events, _ = do(tiny_config, played({5: [Pause()]}, held=[Stop()]))

    assert of(events, Paused)
    assert events[-1].status == "stopped"  # type: ignore[attr-defined]


def test_the_checkpoint_that_a_run_went_on_from_stays(tiny_config: RunConfig) -> None:
    config = replace(tiny_config, steps=6, save_steps=1, keep_best=1)
    _, directory = runs_in_process.train(config, [], lambda seen: [Stop()] if len(of(seen, Step)) == 2 else [])
    runs_in_process.go_on(directory)
    kept = [each.step for each in CheckpointStore.of_run(directory).checkpoints()]
    assert (kept[0], kept[-1], len(kept)) == (2, 6, 3)


def test_stop_before_the_first_step_leaves_no_adapter(tiny_config: RunConfig, played: Any) -> None:
    events, directory = do(tiny_config, played({1: [Stop()]}))

    assert (events[-1].status, events[-1].steps) == ("stopped", 0)  # type: ignore[attr-defined]
    assert not directory.adapter.exists()


def test_abort_ends_at_once_and_saves_nothing(tiny_config: RunConfig, played: Any) -> None:
    config = replace(tiny_config, steps=50)
    directory = RunDirectory.create(config)
    events: list[Event] = []

    with pytest.raises(TrainingAbortedError):
        Run(Beginning(resolved(config)), directory, events.append, played({9: [Abort()]})).run()

    assert len(of(events, Step)) < 10
    assert not directory.adapter.exists()


def test_a_sample_on_request_comes_from_the_model_as_it_is_and_training_goes_on(
    tiny_config: RunConfig, played: Any
) -> None:
    config = replace(tiny_config, sample_prompts=["Who waits?"], sample_tokens=3, lora_dropout=0.3)
    plain = [step.loss for step in of(do(config, played())[0], Step)]

    class OnceWhileStepping(played):  # type: ignore[misc]
        given = False

        def take(self) -> list[Any]:
            if not self.stepping or self.given:
                return []
            self.given = True
            return [SampleNow()]

    events, _ = do(config, OnceWhileStepping())

    assert len(of(events, Sample)) == 3
    assert [step.loss for step in of(events, Step)] == plain


def test_a_step_whose_gradient_is_not_finite_leaves_the_weights_and_many_end_the_run(
    tiny_config: RunConfig, played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = sft.summed_loss
    calls = {"count": 0}

    def sick(model: Any, one: Any, *, plain_head: bool) -> Any:
        calls["count"] += 1
        loss = plain(model, one, plain_head=plain_head)
        return loss * float("nan") if calls["count"] > 1 else loss

    monkeypatch.setattr(sft, "summed_loss", sick)
    config = replace(tiny_config, steps=50, max_seq_length=256)
    events: list[Event] = []

    with pytest.raises(TrainingError) as caught:
        Run(Beginning(resolved(config)), RunDirectory.create(config), events.append, played()).run()

    assert caught.value.code == "RUNTIME_NOT_FINITE"
    assert caught.value.details == {"remedy": {"learning_rate": 3e-3}}, "a third of 1e-2"
    assert [skip.in_a_row for skip in of(events, StepSkipped)] == [1, 2, 3, 4, 5]
    assert of(events, Step)[-1].loss is None


def test_a_run_that_trains_nothing_says_so_after_the_first_step(
    tiny_config: RunConfig, played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            return None

    monkeypatch.setattr(torch.optim, "AdamW", Deaf)

    with pytest.raises(TrainingError, match="changed no trained weight") as caught:
        do(tiny_config, played())
    assert caught.value.code == "RUNTIME_NOTHING_IS_TRAINING"


def test_a_run_with_its_model_at_hand_opens_no_socket(
    tiny_config: RunConfig, played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    tried = []

    def refuse(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: tried.append(args) or [])

    do(replace(tiny_config, sample_prompts=["Who waits?"], sample_tokens=2), played())

    assert tried == []


def refuse_to_write(monkeypatch: pytest.MonkeyPatch, error: int, times: int) -> None:
    """Every checkpoint and adapter is refused, ``times`` times in all."""
    plain = files.flush_tree
    tries = []

    def refused(folder: Path) -> None:
        tries.append(folder)
        if len(tries) <= times:
            raise OSError(error, os.strerror(error))
        plain(folder)

    monkeypatch.setattr(files, "flush_tree", refused)


def test_a_disk_without_room_for_a_checkpoint_is_said_before_the_first_step(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=SPARE_BYTES + 1000))
    events: list[Event] = []
    with pytest.raises(CheckpointError, match="no room for a checkpoint") as caught:
        runs_in_process.train(tiny_config, events)
    assert (caught.value.code, of(events, Step)) == ("RUNTIME_DISK_FULL", [])


@pytest.mark.parametrize("stopped_early", [False, True])
def test_a_disk_that_is_full_at_the_end_is_waited_for_and_nothing_is_lost(
    tiny_config: RunConfig, played: Any, monkeypatch: pytest.MonkeyPatch, stopped_early: bool
) -> None:
    config = tiny_config
    if stopped_early:
        config = replace(config, steps=9, held_out="0.2", eval_steps=1, early_stopping=2, eval_base=False)

        def evaluate(one: Evaluator, step: int, look: Any) -> Evaluated:
            loss = (1.0, 0.9, 0.95, 0.92)[step - 1]
            return Evaluated(step=step, loss=loss, tokens=1, rows=1, seconds=0.0, best=one.record(loss))

        monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    plain, good = do(config, played())
    last = of(plain, RunFinished)[0].steps
    tries: list[Path] = []
    whole = files.flush_tree

    def full(folder: Path) -> None:
        adapter = folder.name.startswith(".adapter")
        tries.extend([folder] * adapter)
        if len(tries) < 3 and (adapter or f"step-{last:08}" in folder.name):
            raise OSError(28, os.strerror(28))
        whole(folder)

    monkeypatch.setattr(files, "flush_tree", full)
    events, directory = do(config, played(held=[None, Resume()]))

    (paused,), (resumed,) = of(events, Paused), of(events, Resumed)
    assert (paused.step, "No space left" in paused.reason, resumed.step) == (last, True, last)
    assert of(events, RunFinished)[0].status == "done"
    assert good.last_adapter.exists() is stopped_early
    for name in ("adapter", "adapter-last") if stopped_early else ("adapter",):
        mine, other = (load_file(run.path / name / "adapter_model.safetensors") for run in (directory, good))
        assert all(torch.equal(mine[key], other[key]) for key in other)
    newest, _ = CheckpointStore(directory.checkpoints, directory.run_id).newest_valid()
    assert newest is not None
    assert newest.step == last


def test_a_person_who_ends_the_wait_for_room_is_told_what_was_not_saved(
    tiny_config: RunConfig, played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_write(monkeypatch, 28, times=99)
    with pytest.raises(TrainingError, match="No space left") as caught:
        do(tiny_config, played(held=[None, Stop()]))
    assert caught.value.code == "RUNTIME_DISK_FULL"


def test_a_run_whose_directory_is_deleted_ends_and_makes_no_other(tiny_config: RunConfig) -> None:
    def delete(events: list[Event]) -> list[Any]:
        if len(of(events, Step)) == 2:
            for path in Path(tiny_config.output_dir).iterdir():
                shutil.rmtree(path)
        return []

    events: list[Event] = []
    with pytest.raises(RunError, match="was deleted") as caught:
        runs_in_process.train(replace(tiny_config, steps=9, save_steps=3), events, delete)
    assert caught.value.code == "RUN_DAMAGED"
    assert len(of(events, Step)) == 3
    assert list(Path(tiny_config.output_dir).iterdir()) == []


def test_a_run_whose_directory_is_moved_saves_where_it_is_and_goes_on_from_there(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, steps=6)
    plain, _ = runs_in_process.train(config, [])

    def move(events: list[Event]) -> list[Any]:
        if len(of(events, Step)) == 3:
            for path in (tmp_path / "moving").iterdir():
                path.rename(tmp_path / path.name)
        return []

    events: list[Event] = []
    with pytest.raises(RunError, match="was moved to") as caught:
        runs_in_process.train(replace(config, output_dir=str(tmp_path / "moving")), events, move)
    assert list((tmp_path / "moving").iterdir()) == []
    path = Path(caught.value.hint.split()[2].strip("`"))
    rest = runs_in_process.go_on(RunDirectory(path))
    assert [step.loss for step in of(events + rest, Step)] == [step.loss for step in of(plain, Step)]


def test_an_adapter_that_cannot_be_saved_is_said_with_its_place(
    tiny_config: RunConfig, played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_write(monkeypatch, 13, times=99)

    with pytest.raises(TrainingError, match="Permission denied") as caught:
        do(tiny_config, played())
    assert caught.value.code == "RUNTIME_IO_FAILED"
    runs = list(Path(tiny_config.output_dir).iterdir())
    assert not any((run / "adapter").exists() for run in runs)


def test_an_adapter_larger_than_a_file_may_be_is_said_as_what_the_system_refused(
    tiny_config: RunConfig, played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(mode: Any, model: Any, target: Path) -> None:
        raise SafetensorError("I/O error: File too large (os error 27)")

    monkeypatch.setattr(lora.LoRA, "save", too_large)
    with pytest.raises(TrainingError, match="File too large") as caught:
        do(tiny_config, played())
    assert caught.value.code == "RUNTIME_IO_FAILED"


def test_rank_without_alpha_gets_it_from_the_rank_and_the_preset_its_own(tiny_config: RunConfig) -> None:
    assert resolved(replace(tiny_config, lora_r=16)).lora_alpha == 16
    preset = resolved(replace(tiny_config, lora_r=None, lora_preset="quality"))
    assert (preset.lora_r, preset.lora_alpha) == (256, 512)
    assert resolved(replace(tiny_config, lora_alpha=7.0)).lora_alpha == 7


def test_the_learning_rate_warms_up_from_the_first_step_and_decays_to_a_tenth() -> None:
    schedule = Schedule(rows=80, rows_per_step=4, steps=20, warmup_steps=4, kind="cosine")
    rates = [schedule.factor(step) for step in range(20)]

    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert dataclasses.replace(schedule, warmup_steps=0, kind="linear").factor(19) == pytest.approx(0.1)
    assert dataclasses.replace(schedule, warmup_steps=0, kind="constant").factor(19) == 1.0


def test_steps_come_from_epochs_and_warm_up_from_steps(tiny_config: RunConfig) -> None:
    config = resolved(replace(tiny_config, steps=None, epochs=2.0, batch_size=4, gradient_accumulation=4))

    schedule = Schedule.of(config, 100)

    assert (schedule.rows_per_step, schedule.steps_per_epoch, schedule.steps) == (16, 7, 14)
    assert Schedule.of(replace(config, epochs=None, steps=4000), 100).warmup_steps == 100


@pytest.mark.parametrize(
    ("changes", "rows", "code", "said"),
    [
        ({"warmup_steps": 500}, 8, "WARMUP_TOO_LONG", "warm-up of 500 steps in a run of 2"),
        ({"early_stopping": 2}, 8, "EARLY_STOPPING_OFF", "no rows are held out"),
        ({"held_out": "0.1"}, 1, "NO_HELD_OUT_ROWS", "0.1 of 1 row is none"),
    ],
)
def test_a_setting_without_effect_is_warned_about_once(
    tiny_config: RunConfig, changes: dict[str, object], rows: int, code: str, said: str
) -> None:
    data = Path(tiny_config.data)
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:rows]))
    plain, _ = runs_in_process.train(replace(tiny_config, steps=2, held_out="none"), [])
    assert not [each for each in plain if isinstance(each, Warning) and each.code == code]

    events, _ = runs_in_process.train(replace(tiny_config, steps=2, **changes), [])

    (warning,) = [each for each in events if isinstance(each, Warning) and each.code == code]
    assert said in warning.message
