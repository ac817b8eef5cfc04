"""``train --dry-run``: the run that would be, counted by what counts it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backprop.cli import estimate, train
from backprop.cli.main import main
from backprop.core import events as ev
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from backprop.runs.journal import JournalWriter
from backprop.runs.pace import Pace
from made_events import started, step


@pytest.fixture
def words(rows_file: Path, tiny_model: Path) -> list[str]:
    return ["train", "--data", str(rows_file), "--model", str(tiny_model), "--backend", "cpu", "--batch-size", "2"]


def test_a_dry_run_counts_rows_and_steps_and_starts_nothing(
    words: list[str], backprop: Callable[..., Any], tmp_path: Path
) -> None:
    told = backprop(
        *words, "--gradient-accumulation", "3", "--epochs", "2", "--held-out", "none", "--dry-run", "--json"
    )
    assert told.code == 0, told.err
    plan = told.json["plan"]
    assert (plan["data"]["rows"], plan["rows"], plan["held_out"]) == (40, 40, 0)
    assert (plan["rows_per_step"], plan["steps_per_epoch"], plan["steps"]) == (6, 7, 14)
    assert plan["config"]["backend"] == "cpu"
    assert 0 < plan["data"]["trained_tokens"] < plan["data"]["tokens"]
    assert told.json["origins"]["epochs"] == "--epochs"
    assert told.json["command"].startswith("backprop train --data")
    assert not (tmp_path / "output").exists()


def test_rows_that_would_stop_the_run_stop_the_dry_run(words: list[str], backprop: Callable[..., Any]) -> None:
    data = Path(words[2])
    data.write_text(data.read_text() + '{"messages": []}\n')
    told = backprop(*words, "--dry-run")
    assert told.code == 1
    assert "DATASET_ROWS_UNUSABLE" in told.err
    assert "line 41" in told.err


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_model_that_cannot_be_is_a_slip_of_whoever_named_it(
    words: list[str], backprop: Callable[..., Any], tmp_path: Path, flags: list[str]
) -> None:
    told = backprop(*words[:3], "--model", "nope", *flags, "--json")
    assert told.code == 1
    assert told.json["error"]["code"] == "DEP_MODEL_LOAD_FAILED"
    assert told.json["error"]["details"]["field"] == "model"
    assert not (tmp_path / "output").exists()


def test_how_long_it_takes_is_known_from_an_earlier_run_of_the_model(
    words: list[str], backprop: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    assert backprop(*words, "--dry-run", "--json").json["duration"] is None

    earlier = RunDirectory.create(RunConfig(data="d", model=str(tiny_model), output_dir=str(tmp_path / "earlier")))
    happened: list[ev.Event] = [started(config={"model": str(tiny_model)}, environment={"host": os.uname().nodename})]
    for number in (1, 2, 3):
        happened.append(step(number))
        happened[-1].seconds, happened[-1].tokens_seen = 2.0, 30 * number
    with closing(JournalWriter(earlier.journal)) as writer:
        for number, event in enumerate(happened, 1):
            event.run_id, event.seq, event.time = earlier.run_id, number, 1_790_000_000.0
            writer.append(event)
    with RunIndex() as index:
        index.add(earlier.path)

    told = backprop(*words, "--dry-run", "--json").json
    assert told["duration"]["seconds"] == pytest.approx(told["plan"]["tokens"] / 15)
    assert told["plan"]["tokens"] > told["plan"]["data"]["tokens"]
    takes = next(line for line in backprop(*words, "--dry-run").out.splitlines() if line.startswith("takes"))
    assert takes.split(None, 1)[1] == Pace(15, earlier.run_id).takes(told["plan"]["tokens"]) + (
        f", as fast as run {earlier.run_id}"
    )


def test_it_warns_as_the_run_does(words: list[str], backprop: Callable[..., Any]) -> None:
    flags = ["--steps", "3", "--warmup-steps", "5", "--held-out", "none", "--early-stopping", "2"]
    notes = " ".join(backprop(*words, *flags, "--dry-run", "--json").json["plan"]["notes"])
    assert "warm-up of 5 steps in a run of 3" in notes
    assert "the run will not stop early" in notes


@pytest.mark.parametrize(
    ("model", "told"), [("qwen2.5-3b", True), ("Qwen/Qwen2.5-3B-Instruct", True), ("qwen2.5-7b", False)]
)
def test_a_licence_that_forbids_commercial_use_is_said_before_anything_is_fetched(
    words: list[str], backprop: Callable[..., Any], model: str, told: bool
) -> None:
    words[words.index("--model") + 1] = model
    said = f"{model}: a research licence: no commercial use without reading it"
    planned = backprop(*words, "--dry-run", HF_HUB_OFFLINE="1").out.splitlines()
    assert (f"licence   {said}" in planned) is told
    events = backprop(*words, "--json", HF_HUB_OFFLINE="1").events
    assert events[-1]["code"] == "DEP_MODEL_DOWNLOAD_FAILED"
    warned = [event["message"] for event in events if event.get("code") == "MODEL_LICENCE"]
    assert warned == [said] * told


def test_the_memory_is_that_of_rows_as_long_as_they_are(
    words: list[str],
    backprop: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where the rows decide about their limit, it is counted before the memory is."""
    card = estimate.Memory(6 * 2**30, "free on Test Card")
    counted = backprop(*words, "--dry-run", "--json").json["plan"]
    assert counted["config"]["max_seq_length"] < 1024
    counted["config"]["backend"] = "cuda"
    monkeypatch.setattr(estimate, "card_memory", lambda: card)
    monkeypatch.setattr(train, "_preflight", lambda config: {"plan": counted, "why": ""})
    assert main([*words[:5], "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = estimate.find_answer(words[4], msgspec.convert(counted["config"], RunConfig), card)
    assert told["memory"]["bytes"] == expected["parts"].total


def test_a_dry_run_of_a_session_deals_out_the_rows_of_each_run_and_starts_nothing(
    words: list[str], backprop: Callable[..., Any], tmp_path: Path
) -> None:
    data, model = Path(words[2]), words[4]
    other = data.with_name("other.jsonl")
    other.write_text(data.read_text().replace("Question", "Problem").replace("question", "problem"))
    flags = ["--data", str(data), "--data", str(other), "--model", model, "--samples", "16", "--replay", "0.25"]
    told = backprop("multi-run", *flags, "--held-out", "0.2", "--backend", "cpu", "--dry-run", "--json")
    assert told.code == 0, told.err
    runs = [(Path(run["data"]).name, run["rows"], run["replayed"]) for run in told.json["runs"]]
    assert runs == [(data.name, 16, 0), (other.name, 16, 4)]
    assert all(run["held_out_rows"] for run in told.json["runs"])
    assert (told.json["multi_run"]["replay"], told.json["origins"]["replay"]) == (0.25, "--replay")
    assert told.json["command"].startswith("backprop multi-run --data")
    plain = backprop("multi-run", *flags, "--dry-run").out
    assert "run 2     16 rows, 4 of them of earlier runs; " in plain
    hub = backprop("multi-run", "--data", "me/rows", "--data", str(other), "--model", model, "--dry-run")
    assert "the rows were not counted: me/rows is not on this machine yet" in hub.out
    assert not (tmp_path / "output").exists()
