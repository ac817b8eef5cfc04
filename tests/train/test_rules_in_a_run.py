"""A run whose settings are left to the rules: what they chose is told, and chosen again when the run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from backprop.core.errors import DatasetValidationError
from backprop.core.events import DatasetPrepared, Event, SettingsChosen, Step, Stop
from backprop.core.models import find_tokenizer
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.data.tokenizer import context_length
from backprop.runs.directory import RunDirectory
from backprop.runs.state import RunState
from backprop.train import model as models
from backprop.train.model import resolved
from backprop.train.persistence.resume import begin, run_started
from msgspec.structs import replace
from runs_in_process import go_on, of, train

OPEN = {"steps": None, "learning_rate": None, "gradient_accumulation": None, "held_out": "auto", "save_steps": 1}


def test_what_the_rules_chose_is_told_and_stays_when_the_run_is_stopped_and_resumed(tiny_config: RunConfig) -> None:
    whole, _ = train(replace(tiny_config, **OPEN), [])
    (chosen,) = of(whole, SettingsChosen)
    assert chosen.values["epochs"] == 3.0
    assert chosen.values["learning_rate"] > 1e-4
    assert "llama" in chosen.reasons["learning_rate"]
    steps = of(whole, Step)
    assert len(steps) == steps[0].total_steps == 3 * -(-(40 - chosen_rows(whole)) // 16)

    stopped, directory = train(replace(tiny_config, **OPEN), [], lambda events: [Stop()] * (len(of(events, Step)) == 2))
    assert directory.read_record().config.learning_rate is None
    resumed = go_on(directory)
    assert of(resumed, SettingsChosen)[0].values == {"eval_steps": chosen.values["eval_steps"]}
    losses = [each.loss for each in (*of(stopped, Step), *of(resumed, Step))]
    assert losses == [each.loss for each in steps]


def chosen_rows(events: list[Event]) -> int:
    (prepared,) = of(events, DatasetPrepared)
    return int(prepared.held_out)


def chats(path: Path, answers: list[int]) -> Path:
    """A row for each number of words in its answer."""
    rows = ({"prompt": f"{i}: why?", "completion": f"{i} " + "word " * words} for i, words in enumerate(answers))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("longest", [20, 60])
def test_rows_are_as_long_as_the_data_s_own_and_stay_so(tiny_config: RunConfig, tmp_path: Path, longest: int) -> None:
    """One long answer among short ones is kept whole, and a run that goes on has the limit of before."""
    data = chats(tmp_path / "rows.jsonl", [5] * 30 + [longest])
    config = replace(tiny_config, **OPEN, data=str(data), max_seq_length="auto", batch_size="auto")
    stopped, directory = train(config, [], lambda events: [Stop()] * (len(of(events, Step)) == 1))
    (prepared,), (chosen,) = of(stopped, DatasetPrepared), of(stopped, SettingsChosen)
    limit = chosen.values["max_seq_length"]
    assert limit == prepared.max_length == prepared.limits[0].max_length
    assert (limit % 64, prepared.answer_lost, prepared.cut) == (0, 0, 0)
    assert prepared.answers_fit <= limit < prepared.answers_fit + 64 or limit < prepared.p99 + 64
    assert str(prepared.p99) in chosen.reasons["max_seq_length"]
    resumed = go_on(directory)
    assert "max_seq_length" not in of(resumed, SettingsChosen)[0].values
    assert of(resumed, DatasetPrepared)[0].max_length == limit


def test_the_model_s_own_limit_and_a_given_one_stand(tiny_config: RunConfig, tmp_path: Path) -> None:
    data = chats(tmp_path / "rows.jsonl", [5] * 30 + [3000])
    config = replace(tiny_config, data=str(data), max_seq_length="auto")
    with pytest.raises(DatasetValidationError, match="1 of 31 rows") as caught:
        train(config, [])
    assert "every answer fits with --max-seq-length" in caught.value.hint
    events, _ = train(replace(config, skip_bad=True, steps=1), [])
    assert of(events, SettingsChosen)[0].values["max_seq_length"] == model_limit(tiny_config)
    events, _ = train(replace(config, skip_bad=True, steps=1, max_seq_length=32), [])
    assert of(events, DatasetPrepared)[0].max_length == 32
    assert "max_seq_length" not in of(events, SettingsChosen)[0].values


def test_rows_that_the_memory_does_not_take_are_not_the_limit(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "longest_rows", lambda config: 128)
    data = chats(tmp_path / "rows.jsonl", [5] * 30 + [60])
    config = replace(tiny_config, data=str(data), max_seq_length="auto", skip_bad=True, steps=1)
    events, _ = train(config, [])
    (prepared,) = of(events, DatasetPrepared)
    assert prepared.answers_fit > 128
    assert (prepared.max_length, prepared.answer_lost) == (128, 1)
    assert of(events, SettingsChosen)[0].values["max_seq_length"] == 128


def model_limit(config: RunConfig) -> int:
    found = context_length(find_tokenizer(config.model))
    assert found is not None
    return found


# Packed passes on a CPU are of 512 tokens; a step keeps its sixteen rows.
@pytest.mark.parametrize(("words", "length", "batch"), [(5, 64, (8, 2)), (90, 512, (1, 16))])
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_batch_that_nobody_chose_is_open_until_the_rows_lengths_are_known_and_follows_them(
    *, mode: str, words: int, length: int, batch: tuple[int, int], tiny_config: RunConfig, tmp_path: Path
) -> None:
    data = chats(tmp_path / "rows.jsonl", [words] * 40)
    open_ = {"max_seq_length": "auto", "batch_size": "auto", "gradient_accumulation": None, "steps": 1, "mode": mode}
    directory = RunDirectory.create(replace(tiny_config, data=str(data), **open_))
    record = directory.read_record()
    started = run_started(directory, record, resolved(record.config), None)
    events = go_on(directory, "start")
    (chosen,) = of(events, SettingsChosen)
    assert (started.config["batch_size"], started.config["gradient_accumulation"]) == ("auto", None)
    assert chosen.values["max_seq_length"] == length
    assert (chosen.values["batch_size"], chosen.values["gradient_accumulation"]) == batch
    assert "weights_dtype" not in chosen.values  # a CPU has float32, whatever the rows
    assert of(events, Step)[0].samples_seen == 16


def test_an_extended_run_has_its_new_end_and_the_learning_rate_of_before(tiny_config: RunConfig) -> None:
    first, directory = train(replace(tiny_config, **OPEN), [])
    (chosen,) = of(first, SettingsChosen)
    end = of(first, Step)[-1].step + 2
    extended = go_on(directory, "extend", end)
    assert [each.step for each in of(extended, Step)] == [end - 1, end]
    start = begin(directory, directory.read_record(), "resume", None, resolved)
    assert (start.config.steps, start.config.epochs) == (end, "auto")
    peak = chosen.values["learning_rate"]
    assert all(0.1 * peak <= each.learning_rate <= peak for each in of(extended, Step))
    curve = Schedule.of(start.config, 40 - chosen_rows(first))
    assert of(extended, Step)[0].learning_rate == pytest.approx(peak * curve.factor(end - 2))


def test_a_view_of_the_run_has_what_was_chosen_in_place_of_what_was_open() -> None:
    state = RunState(run_id="r")
    state.config = {"learning_rate": None, "seed": 42}
    state.apply(SettingsChosen(run_id="r", seq=1, values={"learning_rate": 1e-4}, reasons={"learning_rate": "llama"}))
    assert state.config == {"learning_rate": 1e-4, "seed": 42}
    assert state.origins == {"learning_rate": "rule: llama"}
