"""Held-out loss: what is held out, how it is computed, and when a run ends for it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backprop.core import events as ev
from backprop.core.errors import DatasetNotFoundError, DatasetValidationError, InvalidSettingError
from backprop.core.events import DatasetPrepared, Evaluated, Event, RunFinished, Step, Stop
from backprop.core.settings import RunConfig
from backprop.data.split import Split
from backprop.runs.checkpoints import CheckpointStore
from backprop.train import evaluate
from backprop.train.dataset import Subset, in_proportion, prepare
from backprop.train.evaluate import Evaluator
from backprop.train.loss import row_losses
from backprop.train.methods import sft
from backprop.train.out_of_memory import Recovery
from backprop.train.packing import Batching
from backprop.train.persistence.checkpointing import Saver
from backprop.train.run import steps_between_evaluations
from backprop.train.trainer import Schedule
from msgspec.structs import replace
from pinned_machine import within
from runs_in_process import go_on, of, train
from safetensors.torch import load_file


def evaluator(loaded: Any, rows: Any, packing: bool = True) -> Evaluator:
    batching = Batching(packing=packing, batch_size=4, token_budget=100)
    return Evaluator(loaded, sft.SFT(), rows, batching, recovery=Recovery())


@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_is_the_mean_over_supervised_tokens_and_not_over_passes(
    loaded_tiny: Any, ragged: Any, packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "PIECE", 3)
    rows = ragged([90, 12, 7, 33, 5, 61, 18])
    total, count, means = 0.0, 0, []
    loaded_tiny.model.eval()
    for number in range(len(rows)):
        ids, trained = rows.row(number)
        with torch.no_grad():
            logits = loaded_tiny.model(input_ids=torch.from_numpy(ids).long()[None]).logits[0].double()
        chosen = logits.log_softmax(-1)[range(len(ids) - 1), torch.from_numpy(ids[1:]).long()]
        supervised = -chosen[torch.from_numpy(trained[1:])]
        total, count = total + float(supervised.sum()), count + len(supervised)
        means.append(float(supervised.mean()))

    found = evaluator(loaded_tiny, rows, packing).evaluate(3, lambda: None)

    assert (found.step, found.rows, found.tokens, found.best) == (3, 7, count, True)
    assert found.loss == pytest.approx(total / count, rel=within(1e-5, bf16=1e-3))
    assert found.loss != pytest.approx(sum(means) / len(means), rel=within(1e-4, bf16=5e-3))


def test_dropout_is_off_while_evaluating_and_the_mode_comes_back_even_after_an_error(
    loaded_tiny: Any, ragged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def looked_at(model: Any, one: Any, *, plain_head: bool) -> Any:
        modes.append(model.training)
        if len(modes) > 1:
            raise ZeroDivisionError
        return row_losses(model, one, plain_head=plain_head)

    monkeypatch.setattr(sft, "row_losses", looked_at)
    loaded_tiny.model.train()
    evaluator(loaded_tiny, ragged([9])).evaluate(1, lambda: None)
    assert loaded_tiny.model.training
    with pytest.raises(ZeroDivisionError):
        evaluator(loaded_tiny, ragged([9])).evaluate(2, lambda: None)
    assert loaded_tiny.model.training
    assert modes == [False, False]


def test_a_loss_that_is_not_a_number_is_told_as_none_and_never_the_best(
    loaded_tiny: Any, ragged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    factor = [math.nan, 1.0, math.nan, math.inf, 0.5]
    monkeypatch.setattr(sft, "row_losses", lambda model, one, *, plain_head: np.array([factor.pop(0)]))
    one = evaluator(loaded_tiny, ragged([9]))

    found = [one.evaluate(step, lambda: None) for step in range(1, 6)]

    assert [each.best for each in found] == [False, True, False, False, True]
    assert [each.loss is None for each in found] == [True, False, True, True, False]


@pytest.mark.parametrize(("steps", "held_out", "expected"), [(100, 8, 10), (20, 50, 7), (3, 0, 1)])
def test_evaluations_take_no_more_rows_than_training_did_between_them(steps: int, held_out: int, expected: int) -> None:
    assert steps_between_evaluations(steps, 8, held_out) == expected


@pytest.mark.parametrize(
    ("steps", "lengths", "expected"), [(10, [20] * 8, 8), (1, [20] * 8, 4), (1, [35, 40, 9], 2), (1, [900, 9], 1)]
)
def test_no_more_is_evaluated_than_the_run_trains(steps: int, lengths: list[int], expected: int, ragged: Any) -> None:
    rows = Subset(ragged([20] * 30 + lengths), range(30))
    held_out = Subset(rows.rows, range(30, 30 + len(lengths)))
    found = in_proportion(held_out, rows, Schedule(30, 4, steps, 0, "constant"))
    assert [found.row(i) for i in range(len(found))] == [held_out.row(i) for i in range(expected)]


def test_a_short_run_with_many_held_out_rows_says_that_it_evaluates_a_part(tiny_config: RunConfig) -> None:
    events, _ = train(replace(tiny_config, steps=1, held_out="0.5"), [])
    (prepared,) = of(events, DatasetPrepared)
    base, evaluated = of(events, Evaluated)
    assert (base.base, base.rows) == (True, evaluated.rows)
    (said,) = [each for each in of(events, ev.Warning) if each.code == "HELD_OUT_IN_PART"]
    assert 0 < evaluated.rows < 8 < prepared.held_out
    assert f"{evaluated.rows} of {prepared.held_out} held-out rows" in said.message


def test_a_long_evaluation_says_how_far_it_is(loaded_tiny: Any, ragged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "PROGRESS_SECONDS", -1.0)
    told: list[tuple[int, int]] = []
    one = evaluator(loaded_tiny, ragged([9] * 3))
    one.batching, one.on_progress = Batching(False, 2, 0), lambda *done: told.append(done)
    one.evaluate(1, lambda: None)
    assert told == [(2, 3), (3, 3)]


def seen_rows(monkeypatch: pytest.MonkeyPatch) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    """Filled with the token ids of every micro-batch that is trained, and evaluated; each must hold one row."""
    trained: set[tuple[int, ...]] = set()
    evaluated: set[tuple[int, ...]] = set()

    def watch(name: str, seen: set[tuple[int, ...]]) -> None:
        real = getattr(sft, name)

        def looked_at(model: Any, one: Any, *, plain_head: bool) -> Any:
            assert one.rows == 1
            seen.add(tuple(one.input_ids.flatten().tolist()))
            return real(model, one, plain_head=plain_head)

        monkeypatch.setattr(sft, name, looked_at)

    watch("summed_loss", trained)
    watch("row_losses", evaluated)
    return trained, evaluated


def test_no_held_out_row_is_trained_and_all_others_are(tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, evaluated = seen_rows(monkeypatch)
    config = replace(
        tiny_config, held_out="0.25", steps=None, epochs=1.0, batch_size=1, gradient_accumulation=1, packing=False
    )

    events, _ = train(config, [])

    assert trained.isdisjoint(evaluated)
    assert len(trained) + len(evaluated) == 40
    assert len(evaluated) == of(events, Evaluated)[0].rows > 5


def divided(config: RunConfig, split: Split | None = None) -> tuple[list[bytes], list[bytes], list[Event]]:
    events: list[Event] = []
    path = Path(config.model)
    _, *sides = prepare(config, path, events.append, lambda: False, split=split)
    trained, held_out = ([side.row(i)[0].tobytes() for i in range(len(side))] for side in sides)
    return trained, held_out, events


def chats(path: Path, numbers: range) -> str:
    turns = [
        [{"role": "user", "content": f"Count to {n}."}, {"role": "assistant", "content": f"{n}, and done."}]
        for n in numbers
    ]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    return str(path)


def test_the_ways_to_hold_rows_out(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = replace(tiny_config, data=chats(tmp_path / "many.jsonl", range(400)))

    # A row's hash decides for itself, so a share is met about.
    for held_out, least, most in (("auto", 10, 32), ("0.05", 10, 32), ("0.5", 160, 240), ("none", 0, 0)):
        trained, out, _ = divided(replace(config, held_out=held_out))
        assert least <= len(out) <= most
        assert len(trained) + len(out) == 400
        assert set(trained).isdisjoint(out)


def test_a_held_out_file_is_held_out_whole_and_rows_in_both_files_are_warned_about(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, data=chats(tmp_path / "train.jsonl", range(30)))

    apart = divided(replace(config, held_out=chats(tmp_path / "apart.jsonl", range(100, 110))))
    assert (len(apart[0]), len(apart[1])) == (30, 10)
    assert [warning.code for warning in of(apart[2], ev.Warning)] == []
    (tmp_path / "parts").mkdir()
    for i in range(2):
        chats(tmp_path / "parts" / f"{i}.jsonl", range(100 + 5 * i, 105 + 5 * i))
    parts = divided(replace(config, held_out=str(tmp_path / "parts")))
    assert [len(part) for part in parts[:2]] == [len(part) for part in apart[:2]]
    both = divided(replace(config, held_out=chats(tmp_path / "both.jsonl", range(27, 37))))
    (warning,) = of(both[2], ev.Warning)
    assert warning.code == "HELD_OUT_OVERLAP"
    assert warning.message.startswith("3 rows of ")


@pytest.mark.parametrize("by", ["auto", "0.25", "none", "file"])
def test_how_many_rows_are_held_out_is_said_before_training_and_so_many_are_evaluated(
    by: str, tiny_config: RunConfig, tmp_path: Path
) -> None:
    held_out = chats(tmp_path / "apart.jsonl", range(100, 107)) if by == "file" else by

    events, _ = train(replace(tiny_config, held_out=held_out), [])

    (prepared,) = of(events, ev.DatasetPrepared)
    assert [each.rows for each in of(events, Evaluated)][:1] == ([prepared.held_out] if by != "none" else [])
    assert prepared.held_out == {"file": 7, "none": 0}.get(by, prepared.held_out)
    assert (prepared.held_out > 0) is (by != "none")


def test_rows_stay_held_out_when_the_file_grows(tiny_config: RunConfig, tmp_path: Path) -> None:
    data = tmp_path / "growing.jsonl"
    config = replace(tiny_config, held_out="0.2")
    before = divided(replace(config, data=chats(data, range(50))))
    after = divided(replace(config, data=chats(data, range(60))))

    assert len(before[1]) >= 5
    assert set(before[1]) <= set(after[1])
    assert set(before[0]) <= set(after[0])


def test_a_run_with_another_seed_can_keep_the_held_out_rows_of_an_earlier_one(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, data=chats(tmp_path / "many.jsonl", range(60)), held_out="0.2")
    parent, other = divided(config), replace(config, seed=7)
    assert divided(other, Split(seed=config.seed))[:2] == parent[:2]
    assert divided(other)[:2] != parent[:2]


def test_where_a_row_goes_depends_on_what_it_says_and_neither_on_limit_nor_model(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    data = tmp_path / "texts.jsonl"
    texts = [f"{i}: " + "harbour lantern window river " * (i % 9 + 1) for i in range(120)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    other = shutil.copytree(tiny_config.model, tmp_path / "other")
    (other / "added_tokens.json").write_text(json.dumps({" window": 400}))
    sides = []
    for model, limit in ((tiny_config.model, 512), (tiny_config.model, 16), (str(other), 512)):
        config = replace(tiny_config, data=str(data), held_out="0.2", max_seq_length=limit, model=model)
        _, *both = prepare(config, Path(model), lambda event: None, lambda: False)
        sides.append([set(side.rows.lines[side.places].tolist()) for side in both])
        assert (sum(map(len, both)) > len(texts)) is (limit == 16), "texts are split by the short limit alone"

    assert sides[0][0].isdisjoint(sides[0][1])
    assert len(sides[0][1]) > 10
    assert sides[0] == sides[1] == sides[2]


@pytest.mark.parametrize("wrong", ["1.5", "0", "nan", "nowhere.jsonl"])
def test_what_is_no_share_and_no_file_is_refused(tiny_config: RunConfig, wrong: str) -> None:
    with pytest.raises(DatasetNotFoundError if wrong.endswith(".jsonl") else InvalidSettingError) as caught:
        divided(replace(tiny_config, held_out=wrong))
    assert caught.value.details["field"] == "held_out"


def test_rows_of_a_held_out_file_that_cannot_be_used_are_counted_like_those_that_are_trained(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    file = tmp_path / "dev.jsonl"
    chats(file, range(100, 105))
    with file.open("a") as lines:
        lines.write(json.dumps({"messages": [{"role": "user", "content": "Nobody answers."}]}) + "\n")
    config = replace(tiny_config, held_out=str(file))

    with pytest.raises(DatasetValidationError, match=r"dev\.jsonl: 1 of 6 rows .* line 6"):
        divided(config)
    _, out, events = divided(replace(config, skip_bad=True))
    assert len(out) == 5
    (warning,) = of(events, ev.Warning)
    assert warning.code == "HELD_OUT_ROWS_LEFT_OUT"
    assert "1 of 6 rows" in warning.message


class Losses:
    """Evaluations that give these losses, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
        self.left = list(losses)
        monkeypatch.setattr(Evaluator, "evaluate", lambda one, step, look: self.next(one, step))

    def next(self, one: Evaluator, step: int) -> Evaluated:
        loss = self.left.pop(0)
        shown = loss if math.isfinite(loss) else None
        return Evaluated(step=step, loss=shown, tokens=1, rows=1, seconds=0.0, best=one.record(loss))


@pytest.fixture
def evaluated_config(tiny_config: RunConfig) -> RunConfig:
    return replace(tiny_config, held_out="0.2", steps=10, eval_steps=1, early_stopping=2, eval_base=False)


def test_a_run_ends_early_when_the_best_is_not_beaten_for_as_long_as_asked(
    evaluated_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Losses(monkeypatch, 1.0, 0.9, 0.95, 0.92)

    events, directory = train(evaluated_config, [])

    assert len(of(events, Step)) == 4
    warnings = [each for each in of(events, ev.Warning) if each.code == "EARLY_STOPPING"]
    assert [("step 4" in each.message, "0.9000" in each.hint) for each in warnings] == [(True, True)]
    finished = events[-1]
    assert isinstance(finished, RunFinished)
    assert (finished.status, finished.steps) == ("done", 4)
    store = CheckpointStore(directory.checkpoints, directory.run_id)
    kept = {each.step: each.val_loss for each in store.checkpoints()}
    assert kept[2] == 0.9
    assert max(kept) == 4
    assert [store.verify(each.path) for each in store.checkpoints()] == [[]] * len(kept)


def test_the_result_of_a_run_that_stopped_early_is_its_best_and_the_last_is_kept_beside_it(
    evaluated_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Losses(monkeypatch, 1.0, 0.9, 0.95, 0.92)

    events, directory = train(replace(evaluated_config, sample_prompts=["Who waits?"], sample_tokens=2), [])

    of_step = {each.step: each for each in CheckpointStore(directory.checkpoints, directory.run_id).checkpoints()}
    for step, folder in ((2, directory.adapter), (4, directory.last_adapter)):
        assert json.loads((folder / "backprop.json").read_text())["steps"] == step
        trained = load_file(of_step[step].path / "weights.safetensors")
        kept = load_file(folder / "adapter_model.safetensors")
        assert {name.replace(".default", ""): tensor.tolist() for name, tensor in trained.items()} == {
            name: tensor.tolist() for name, tensor in kept.items()
        }
    (told,) = [each for each in of(events, ev.Warning) if each.code == "RESULT_IS_BEST"]
    assert "step 2" in told.message
    assert "0.9000" in told.message
    assert str(directory.adapter) in told.message
    assert str(directory.last_adapter) in told.hint
    assert events[-1].output_path == str(directory.adapter)
    assert of(events, ev.Sample)[-1].step == 2


def test_a_checkpoint_of_an_evaluated_step_is_made_after_its_samples(
    evaluated_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    answered: dict[int, list[int]] = {}
    real = Saver.after_evaluation

    def note(saver: Saver, step: int, loss: float) -> None:
        answered[step] = [each.step for each in of(events, ev.Sample) if each.tuned]
        real(saver, step, loss)

    monkeypatch.setattr(Saver, "after_evaluation", note)
    train(replace(evaluated_config, early_stopping=None, steps=2, sample_prompts=["Who?"], sample_tokens=2), events)

    assert answered == {1: [1], 2: [1, 2]}


def test_samples_that_a_stop_left_out_are_made_when_the_run_goes_on(evaluated_config: RunConfig) -> None:
    config = replace(evaluated_config, early_stopping=None, steps=3, sample_prompts=["Who?", "Where?"], sample_tokens=2)
    undisturbed = of(train(config, [])[0], ev.Sample)
    assert [(each.step, each.prompt) for each in undisturbed[4:6]] == [(2, "Who?"), (2, "Where?")]

    # Asked for while the first prompt of step 2 is answered.
    events, directory = train(config, [], lambda seen: [Stop()] if len(of(seen, Evaluated)) == 2 else [])
    assert events[-1].steps == 2
    rest = go_on(directory)

    here = {(each.step, each.prompt, each.tuned): each.text for each in [*of(events, ev.Sample), *of(rest, ev.Sample)]}
    assert here == {(each.step, each.prompt, each.tuned): each.text for each in undisturbed}
    assert [(each.step, each.prompt) for each in of(rest, ev.Sample)][:2] == [(2, "Who?"), (2, "Where?")]


def test_a_run_that_stopped_early_does_not_go_on_unless_it_is_extended(
    evaluated_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Losses(monkeypatch, 1.0, 0.9, 0.95, 0.92, 0.91, 0.8, 0.7)
    first, directory = train(evaluated_config, [])

    again = go_on(directory)
    assert of(again, Step) == []
    assert (again[-1].status, again[-1].steps) == ("done", 4)
    assert again[-1].final_loss == first[-1].final_loss == of(first, Step)[-1].loss
    assert json.loads((directory.adapter / "backprop.json").read_text())["steps"] == 2

    extended = go_on(directory, "extend", 7)
    assert [each.step for each in of(extended, Step)] == [5, 6, 7]
    assert losses.left == []
    assert json.loads((directory.adapter / "backprop.json").read_text())["steps"] == 7
    assert not directory.last_adapter.exists()


def test_evaluations_that_are_no_number_count_against_patience(
    evaluated_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Losses(monkeypatch, 1.0, math.nan, math.inf)

    events, _ = train(evaluated_config, [])

    assert len(of(events, Step)) == 3


def test_patience_goes_on_over_a_resume(evaluated_config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = Losses(monkeypatch, 1.0, 0.9, 0.95, 0.92, 0.1)
    events, directory = train(evaluated_config, [], lambda seen: [Stop()] if len(of(seen, Evaluated)) == 3 else [])
    assert len(of(events, Step)) == 3

    rest = go_on(directory)

    assert [step.step for step in of(rest, Step)] == [4]
    assert [each.best for each in of(rest, Evaluated)] == [False]
    assert losses.left == [0.1]


def test_without_early_stopping_the_run_goes_to_its_end_and_the_last_step_is_evaluated(
    evaluated_config: RunConfig,
) -> None:
    events, _ = train(replace(evaluated_config, early_stopping=None, steps=5, eval_steps=2), [])

    assert [each.step for each in of(events, Evaluated)] == [2, 4, 5]
    assert len(of(events, Step)) == 5
