"""Did it help: the base model and the result on the same held-out rows, row by row, whatever a run goes through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from backprop.core import events as ev
from backprop.core.events import Evaluated, Event, Step, Stop
from backprop.core.jobs import Evaluation
from backprop.core.settings import RunConfig
from backprop.runs import evaluations
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.train.evaluate import Evaluator
from backprop.train.model import resolved
from backprop.train.persistence.resume import begin
from backprop.train.run import Run
from msgspec.structs import replace
from runs_in_process import Asking, go_on, of, train
from tiny_language_model import rows as tiny_rows
from tiny_language_model import write_rows


@pytest.fixture
def config(tiny_config: RunConfig, tmp_path: Path) -> RunConfig:
    """Rows that have much in common, eight of them held out, and steps that learn it."""
    data = write_rows(tmp_path / "rows.jsonl", 60)
    return replace(tiny_config, data=str(data), held_out="0.2", steps=12, eval_steps=6, learning_rate=2e-2)


def kept(directory: RunDirectory, step: int) -> Evaluation:
    found = evaluations.read(directory, step)
    assert found is not None
    return found


def steps_kept(directory: RunDirectory) -> list[str]:
    return sorted(file.name for file in directory.evaluations.iterdir())


def losses(found: Evaluation) -> dict[int, float | None]:
    return {row.line: row.loss for row in found.rows}


def test_base_and_result_are_scored_on_the_same_rows_and_the_end_says_that_it_helped(config: RunConfig) -> None:
    events, directory = train(config, [])

    base, *others = of(events, Evaluated)
    assert [(each.step, each.base) for each in (base, *others)] == [(0, True), (6, False), (12, False)]
    assert steps_kept(directory) == ["step-00000000.json", "step-00000012.json"]
    before, after = kept(directory, 0), kept(directory, 12)
    assert [row.line for row in before.rows] == [row.line for row in after.rows]
    assert len({row.line for row in before.rows}) == base.rows > 6
    for event, scores in ((base, before), (others[-1], after)):
        assert scores.loss == pytest.approx(event.loss, rel=1e-12)
        assert sum(row.tokens for row in scores.rows) == event.tokens
    verdict = events[-1].verdict
    assert (verdict.word, verdict.rows) == ("better", base.rows)
    assert verdict.difference == pytest.approx(others[-1].loss - base.loss, rel=1e-9)
    assert verdict.low < verdict.difference < verdict.high < 0


def test_steps_too_small_to_learn_anything_are_no_reason_to_say_so(config: RunConfig) -> None:
    events, _ = train(replace(config, learning_rate=1e-7), [])
    assert events[-1].verdict.word == "cannot tell"
    assert abs(events[-1].verdict.difference) < 1e-3


def test_scoring_the_base_changes_no_step_and_costs_one_evaluation_at_most(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = Evaluator._micro_batches

    def counted(one: Evaluator, start: int) -> object:
        found = real(one, start)
        seen.append(sum(batch.rows for batch in found))
        return found

    monkeypatch.setattr(Evaluator, "_micro_batches", counted)
    with_base, _ = train(config, [])
    rows_with, rows = sum(seen), of(with_base, Evaluated)[0].rows
    seen.clear()
    without, directory = train(replace(config, eval_base=False), [])

    assert [each.loss for each in of(with_base, Step)] == [each.loss for each in of(without, Step)]
    assert rows_with - sum(seen) == rows
    assert (without[-1].verdict, directory.evaluations.exists()) == (None, False)
    assert [each.step for each in of(without, Evaluated)] == [6, 12]


def test_a_run_that_was_stopped_and_resumed_comes_to_the_same_and_scores_the_base_once(config: RunConfig) -> None:
    whole, _ = train(config, [])
    first, directory = train(config, [], lambda seen: [Stop()] if len(of(seen, Step)) == 8 else [])
    assert (first[-1].status, first[-1].verdict) == ("stopped", None)
    before = evaluations.step_file(directory, 0).read_bytes()

    rest = go_on(directory)

    assert evaluations.step_file(directory, 0).read_bytes() == before
    assert [each.base for each in (*of(first, Evaluated), *of(rest, Evaluated))] == [True, False, False]
    assert rest[-1].verdict == whole[-1].verdict

    extended = go_on(directory, "extend", 14)
    assert not any(each.base for each in of(extended, Evaluated))
    assert extended[-1].verdict.difference == pytest.approx(
        of(extended, Evaluated)[-1].loss - kept(directory, 0).loss, rel=1e-9
    )


def test_a_run_killed_before_its_first_checkpoint_begins_again_with_the_base(config: RunConfig) -> None:
    class Killed(BaseException):
        pass

    def kill(seen: list[Event]) -> list[object]:
        if len(of(seen, Step)) == 2:
            raise Killed
        return []

    events: list[Event] = []
    with pytest.raises(Killed):
        train(config, events, kill)
    (directory,) = (RunDirectory(path) for path in Path(config.output_dir).iterdir())
    rest = go_on(directory)
    assert [each.step for each in of(rest, Evaluated)] == [0, 6, 12]
    assert of(rest, Evaluated)[0].loss == of(events, Evaluated)[0].loss
    assert rest[-1].verdict.word == "better"


def test_a_fork_is_compared_with_the_untouched_base_and_not_with_what_it_started_from(config: RunConfig) -> None:
    events, parent = train(config, [])
    checkpoint = CheckpointStore(parent.checkpoints, parent.run_id).checkpoints()[-1]
    fork = RunDirectory.create(replace(config, steps=2), forked_from=str(checkpoint.path))
    told: list[Event] = []
    start = begin(fork, fork.read_record(), "start", None, resolved)
    Run(start, fork, told.append, Asking(told)).run()

    assert len(kept(fork, 0).rows) > 5  # fewer than the parent's, as its run is shorter
    assert losses(kept(fork, 0)).items() <= losses(kept(parent, 0)).items()
    assert told[-1].verdict.word == "better"
    assert of(told, Evaluated)[-1].loss < of(events, Evaluated)[1].loss


def test_of_a_run_that_stopped_early_the_saved_result_is_compared_and_not_its_last_step(config: RunConfig) -> None:
    # After two steps that learn, ones that throw everything away.
    def overshoot(seen: list[Event]) -> list[object]:
        return []

    events, directory = train(
        replace(config, steps=40, eval_steps=1, early_stopping=2, learning_rate=0.2, warmup_steps=0), [], overshoot
    )

    best = min(of(events, Evaluated)[1:], key=lambda each: each.loss)
    last = of(events, Evaluated)[-1]
    assert any(each.code == "RESULT_IS_BEST" for each in of(events, ev.Warning))
    assert best.step < last.step < 40
    assert steps_kept(directory) == ["step-00000000.json", f"step-{best.step:08d}.json"]
    assert events[-1].verdict.difference == pytest.approx(best.loss - of(events, Evaluated)[0].loss, rel=1e-6)


def test_scores_that_cannot_be_kept_are_told_and_end_no_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, found: Evaluation) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluations, "write", full)
    events, _ = train(config, [])
    assert (events[-1].status, events[-1].verdict) == ("done", None)
    assert [each.code for each in of(events, ev.Warning) if "row by row" in each.message] == ["SCORES_NOT_KEPT"]


@pytest.mark.parametrize("method", ["orpo", "kto"])
def test_a_preference_method_is_judged_by_its_own_loss_row_by_row(
    method: str, config: RunConfig, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.jsonl"
    with data.open("w") as file:
        for number, row in enumerate(tiny_rows(60)):
            sides = {"chosen": row["output"], "rejected": "A winter letter."}
            judged = {"completion": sides["rejected" if number % 2 else "chosen"], "label": number % 2 == 0}
            file.write(json.dumps({"prompt": row["instruction"], **(judged if method == "kto" else sides)}) + "\n")

    events, directory = train(replace(config, data=str(data), method=method), [])

    base, last = of(events, Evaluated)[0], of(events, Evaluated)[-1]
    assert {row.tokens for row in kept(directory, 0).rows} == {1}
    for event in (base, last):
        assert kept(directory, event.step).loss == pytest.approx(event.loss, rel=1e-6)
    assert events[-1].verdict.difference == pytest.approx(last.loss - base.loss, rel=1e-6)
    assert events[-1].verdict.rows == base.rows
