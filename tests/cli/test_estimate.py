"""``backprop estimate-vram``: what a run would need, and what an earlier one of its shape really took."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backprop.cli import estimate
from backprop.cli.main import main
from backprop.core import events as ev
from backprop.core import rules
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from backprop.runs.journal import JournalWriter
from made_events import started, step
from tiny_language_model import write_model

Ask = Callable[..., Any]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """The JSON answer to some arguments."""

    def run(*arguments: str) -> Any:
        code = main(["estimate-vram", *arguments, "--json"])
        answer = json.loads(capsys.readouterr().out)
        assert (code == 0) == ("error" not in answer)
        return answer

    return run


def test_the_answer_has_its_keys(ask: Ask) -> None:
    answer = ask("--model", "llama-3.2-3b", "--vram", "10")
    assert answer["model"] == "llama-3.2-3b"
    assert answer["parameters"] == 3_212_749_824
    assert [row["batch_size"] for row in answer["rows"]] == [1, 2, 4, 8, 16]
    assert [row["fits"] for row in answer["rows"]] == [True, True, False, False, False]
    # The parts are those of the largest batch that fits.
    assert sum(answer["parts"].values()) == answer["rows"][1]["bytes"]
    assert {"weights", "gradients", "optimizer", "activations", "logits"} < answer["parts"].keys()


def test_people_are_told_what_would_make_it_fit(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "llama-3.2-3b", "--vram", "12", "--batch-size", "4", "--no-gradient-checkpointing"]
    assert main(["estimate-vram", *arguments]) == 0
    text = capsys.readouterr().out
    assert "12.0 GiB, a card of 12 GB" in text
    assert any("--gradient-checkpointing" in line and "and fits" in line for line in text.splitlines())


def test_two_cards_hold_what_one_does_not(ask: Ask) -> None:
    arguments = ["--model", "llama-3.2-1b", "--mode", "full", "--weights-dtype", "float32", "--vram", "20"]
    arguments += ["--batch-size", "1", "--max-seq-length", "512"]
    alone, shared = ask(*arguments), ask(*arguments, "--processes", "2")
    assert [each["rows"][0]["fits"] for each in (alone, shared)] == [False, True]
    assert shared["parts"]["optimizer"] * 2 == alone["parts"]["optimizer"]
    assert any("2 processes: the numbers are of each, on a card of its own" in note for note in shared["notes"])


def test_without_a_card_nothing_is_said_to_fit(ask: Ask, tmp_path: Path) -> None:
    answer = ask("--model", str(write_model(tmp_path / "tiny")), "--batch-size", "3")
    assert {row["fits"] for row in answer["rows"]} == {None}
    assert 3 in [row["batch_size"] for row in answer["rows"]]
    assert "--vram" in answer["memory"]["source"]


def test_what_is_taken_for_granted_is_said(ask: Ask, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"model_type": "llama"', '"model_type": "novel"'))
    bf16, family, budget = ask("--model", str(folder))["notes"]
    assert "bf16" in bf16
    assert "novel is counted as a Llama" in family
    assert "8192 tokens" in budget
    assert len(ask("--model", "qwen-3.5-4b")["notes"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--model", "mistral-7b", "--mode", "full"], "RUNTIME_FULL_FT_MODEL_TOO_LARGE"),
        (["--vram", "0"], "INPUT_VALIDATION_FAILED"),
        (["--max-seq-length", "3"], "CONFIG_INVALID_SETTING"),
    ],
)
def test_what_cannot_be_estimated_is_an_error(ask: Ask, arguments: list[str], code: str) -> None:
    assert ask(*arguments)["error"]["code"] == code


@pytest.mark.parametrize(
    ("name", "hint"),
    [("somebody/nothing", "name its folder, or a preset of its size: qwen"), ("qwen-7b", "presets: qwen"), ("./x", "")],
)
def test_an_unknown_model_is_a_slip_of_whoever_named_it(
    name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate-vram", "--model", name, "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "DEP_MODEL_LOAD_FAILED"
    assert hint in error["hint"]


def journal(output: Path, device: str, *more: ev.Event, **settings: Any) -> RunDirectory:
    """A run that took a step on ``device``."""
    config = RunConfig(data="d", model="llama-3.2-1b", output_dir=str(output))
    directory = RunDirectory.create(config)
    filled = {"mode": "lora", "batch_size": 2, "gradient_checkpointing": True, **rules.adapter(config), **settings}
    last = step(1)
    last.memory = 5 * 2**30
    model = ev.ModelLoaded(
        model="m", path="", device=device, mode="lora", dtype="bfloat16", parameters=1, trainable_parameters=1
    )
    with closing(JournalWriter(directory.journal)) as writer:
        for number, event in enumerate([started(config=msgspec.to_builtins(config) | filled), model, last, *more], 1):
            event.run_id, event.seq, event.time = directory.run_id, number, 1_790_000_000.0
            writer.append(event)
    with RunIndex() as index:
        index.add(directory.path)
    return directory


def test_a_run_of_the_same_shape_says_what_it_took(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", "llama-3.2-1b", "--vram", "16", "--batch-size", "2"]
    journal(tmp_path, "cpu (2 threads)")
    journal(tmp_path, "cuda (Test Card)", lora_r=8)
    journal(tmp_path, "cuda (Test Card)", ev.BatchHalved(step=1, batch_size=1, gradient_accumulation=8))
    journal(tmp_path, "cuda (Test Card)", ev.Warning(code=ev.BATCH_SETTLED, message=""))
    assert {str(row["measured"]) for row in ask(*asked)["rows"]} == {"None"}

    same = journal(tmp_path, "cuda (Test Card)")
    measured = {row["batch_size"]: row["measured"] for row in ask(*asked)["rows"]}
    assert measured[1] is None
    assert (measured[2]["bytes"], measured[2]["card"], measured[2]["run_id"]) == (5 * 2**30, "Test Card", same.run_id)
    assert main(["estimate-vram", *asked]) == 0
    assert "5.0 GiB on 2026-09-21 on Test Card" in capsys.readouterr().out


def test_a_dry_run_says_whether_it_fits_the_card(
    rows_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(rows_file), "--model", "mistral-7b", "--dry-run"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"] is None

    monkeypatch.setattr(estimate, "card_memory", lambda: estimate.Memory(6 * 2**30, "free on Test Card"))
    assert main([*words, "--json", "--batch-size", "2"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert (memory["limit"], memory["fits"]) == (6 * 2**30, False)
    assert main(words) == 0
    assert "6.0 GiB free on Test Card; it does not fit" in capsys.readouterr().out
    assert main([*words, "--backend", "cpu"]) == 0
    assert "Test Card" not in capsys.readouterr().out
