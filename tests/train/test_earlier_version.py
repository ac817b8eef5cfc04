"""A run that an earlier version began and that was killed there goes on under this one.

``fixtures/earlier_run`` was recorded in float32 before checkpoints had a hash of the tokens: a run of the tiny model
with packing, dropout and evaluations, killed with -9 after its checkpoint of step 20. ``expected.json`` has what the
same run came to undisturbed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pinned_machine
import pytest
from backprop.core import events as ev
from backprop.core.errors import CheckpointError
from backprop.core.events import Evaluated, Step, Stop
from backprop.core.paths import token_cache
from backprop.data.preprocess import prepare
from backprop.data.split import Split
from backprop.runs.directory import RunDirectory
from backprop.train.model import resolved
from backprop.train.persistence.resume import begin
from msgspec.structs import replace
from runs_in_process import go_on, of

RECORDED = Path(__file__).parents[1] / "fixtures" / "earlier_run"


@pytest.fixture
def earlier(tmp_path: Path) -> RunDirectory:
    """The killed run, moved to this test's folder."""
    place = tmp_path / "earlier"
    shutil.copytree(RECORDED, place)
    (run,) = (place / "run").iterdir()
    for name in ("run.json", "events.jsonl"):
        (run / name).write_text((run / name).read_text().replace("PLACE", str(place)))
    return RunDirectory(run)


def until(step: int) -> Any:
    return lambda seen: [Stop()] if any(each.step >= step for each in of(seen, Step)) else []


def codes(events: list[ev.Event]) -> list[str]:
    """Of all warnings but the one about versions of libraries, which may have changed since."""
    return [each.code for each in of(events, ev.Warning) if each.code != "LIBRARIES_CHANGED"]


def data_key(run: RunDirectory) -> str:
    manifest = json.loads((run.checkpoints / "step-00000020" / "manifest.json").read_text())
    return str(manifest["identity"]["data"])


@pytest.mark.skipif(pinned_machine.BF16, reason="recorded in float32")
def test_its_losses_go_on_as_if_it_had_never_been_killed(earlier: RunDirectory) -> None:
    expected = json.loads((RECORDED / "expected.json").read_text())

    events = go_on(earlier, ask=until(60))

    steps = {str(each.step): [each.loss, each.grad_norm] for each in of(events, Step)}
    assert list(steps) == list(expected["steps"])
    for step, values in steps.items():
        assert values == pytest.approx(expected["steps"][step], rel=1e-4), f"step {step}"
    evaluations = {str(each.step): each.loss for each in of(events, Evaluated)}
    assert evaluations == pytest.approx(expected["evaluations"], rel=1e-4)
    (warning,) = (each for each in of(events, ev.Warning) if each.code == "DATA_COMPARED_BY_COUNTS")
    assert "90 rows with 5044 tokens, 1082 of them trained" in warning.message


def test_its_next_checkpoint_has_a_hash_of_the_tokens(earlier: RunDirectory) -> None:
    go_on(earlier, ask=until(22))

    again = go_on(earlier, ask=until(24))

    assert of(again, Step)[0].step == 23
    assert codes(again) == []


def test_a_row_with_another_number_of_tokens_is_refused(earlier: RunDirectory) -> None:
    data = earlier.path.parents[1] / "alpaca.jsonl"
    data.write_text(data.read_text().replace("The harbour of 0.", "The harbour of nothing at all.", 1))

    with pytest.raises(CheckpointError, match=r"the data, or how it becomes tokens, was changed \(tokens were 5044"):
        go_on(earlier)


def test_another_setting_or_model_is_refused_by_name(earlier: RunDirectory) -> None:
    record = json.loads((earlier.path / "run.json").read_text())
    record["config"]["learning_rate"] = 0.02
    (earlier.path / "run.json").write_text(json.dumps(record))
    with (earlier.path.parents[1] / "model" / "config.json").open("a") as file:
        file.write("\n")

    with pytest.raises(CheckpointError) as caught:
        go_on(earlier)

    assert caught.value.details["differences"] == [
        "the model's file config.json was changed",
        "learning_rate was 0.01 and is 0.02",
    ]


@pytest.mark.parametrize("same", [True, False])
def test_tokens_that_are_still_in_the_cache_are_compared_themselves(earlier: RunDirectory, same: bool) -> None:
    place = earlier.path.parents[1]
    kept = prepare(str(place / "alpaca.jsonl"), place / "model", max_length=128).folder
    cached = token_cache() / data_key(earlier)
    shutil.copytree(kept, cached)
    if same:
        assert codes(go_on(earlier, ask=until(21))) == []
        return
    ids = bytearray((cached / "ids.bin").read_bytes())
    ids[40] ^= 1
    (cached / "ids.bin").write_bytes(ids)
    with pytest.raises(CheckpointError, match="the data, or how it becomes tokens, was changed"):
        go_on(earlier)


def test_without_a_journal_nobody_knows_and_it_is_said(earlier: RunDirectory) -> None:
    earlier.journal.unlink()

    with pytest.raises(CheckpointError, match="the run's journal does not describe it"):
        go_on(earlier)


def test_a_fork_of_it_holds_out_the_rows_that_it_held_out(earlier: RunDirectory, tmp_path: Path) -> None:
    record = earlier.read_record()
    config = replace(record.config, seed=7, steps=1, output_dir=str(tmp_path / "forks"))
    fork = RunDirectory.create(config, forked_from=str(earlier.checkpoints / "step-00000020"))

    assert begin(fork, fork.read_record(), "start", None, resolved).split == Split(record.config.seed, by_tokens=True)
