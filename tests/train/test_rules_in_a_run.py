"""A run whose settings are left to the rules: what they chose is told, and chosen again when the run goes on."""

from __future__ import annotations

from backprop.core.events import Event, SettingsChosen, Step, Stop
from backprop.core.settings import RunConfig
from backprop.runs.state import RunState
from backprop.train.model import resolved
from backprop.train.resume import begin
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
    from backprop.core.events import DatasetPrepared

    (prepared,) = of(events, DatasetPrepared)
    return int(prepared.held_out)


def test_an_extended_run_has_its_new_end_and_the_learning_rate_of_before(tiny_config: RunConfig) -> None:
    first, directory = train(replace(tiny_config, **OPEN), [])
    (chosen,) = of(first, SettingsChosen)
    end = of(first, Step)[-1].step + 2
    extended = go_on(directory, "extend", end)
    assert [each.step for each in of(extended, Step)] == [end - 1, end]
    start = begin(directory, directory.read_record(), "resume", None, resolved)
    assert (start.config.steps, start.config.epochs) == (end, None)
    peak = chosen.values["learning_rate"]
    assert all(0.1 * peak <= each.learning_rate <= peak for each in of(extended, Step))


def test_a_view_of_the_run_has_what_was_chosen_in_place_of_what_was_open() -> None:
    state = RunState(run_id="r")
    state.config = {"learning_rate": None, "seed": 42}
    state.apply(SettingsChosen(run_id="r", seq=1, values={"learning_rate": 1e-4}, reasons={"learning_rate": "llama"}))
    assert state.config == {"learning_rate": 1e-4, "seed": 42}
    assert state.origins == {"learning_rate": "rule: llama"}
