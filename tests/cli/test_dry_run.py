"""``train --dry-run``: the run that would be, counted by what counts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


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
