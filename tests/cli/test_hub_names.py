"""A dataset named by ``owner/name``: fetched from a stand-in of the hub by validate, data and train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_hub import Hub
from tiny_language_model import rows

NAME = "harbour/charts"


@pytest.fixture(autouse=True)
def charts(hub: Hub) -> None:
    hub.datasets[NAME] = {"train.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in rows(12))}


def test_validate_and_data_fetch_once_and_write_where_the_person_stands(
    hub: Hub, backprop_process: Callable[..., Any], tmp_path: Path
) -> None:
    done = backprop_process("validate", NAME, "--json")
    assert (done.code, done.json["rows"], done.json["valid"]) == (0, 12, 12)
    assert "fetching harbour/charts" in done.err
    asked = len(hub.asked)
    cleaned = backprop_process("data", "clean", NAME, HF_HUB_OFFLINE="1")
    assert cleaned.code == 0
    assert len((tmp_path / "charts-train.clean.jsonl").read_text().splitlines()) == 12
    assert len(hub.asked) == asked


def test_training_fetches_the_dataset_and_keeps_its_name(
    hub: Hub, backprop_process: Callable[..., Any], tiny_model: Path
) -> None:
    words = ["train", "--data", NAME, "--model", str(tiny_model), "--steps", "1", "--backend", "cpu", "--json"]
    done = backprop_process(*words, "--lora-r", "4")
    assert done.code == 0, done.out
    by_type = {event["type"]: event for event in done.events}
    assert by_type["run_started"]["config"]["data"] == NAME
    assert by_type["dataset_prepared"]["rows"] == 12
    assert any(event.get("detail", "").startswith(f"fetching {NAME}") for event in done.events)
    assert by_type["run_finished"]["status"] == "done"


def test_an_unknown_name_is_one_error_in_both_answers(hub: Hub, backprop_process: Callable[..., Any]) -> None:
    plain = backprop_process("validate", "harbour/nothing")
    assert (plain.code, plain.out) == (1, "")
    assert "no dataset of that name on the Hugging Face Hub" in plain.err
    assert backprop_process("validate", "harbour/nothing", "--json").json["error"]["code"] == "DATASET_NOT_FOUND"


def test_a_path_that_nearly_is_one_is_never_asked_of_the_hub(hub: Hub, backprop_process: Callable[..., Any]) -> None:
    for path in ("harbour/charts.jsonl", "./harbour/charts", "a/b/c", "rows.jsonl"):
        assert backprop_process("validate", path).code == 1
    assert hub.asked == []
