"""One real run as a script sees it: ``backprop train --json`` with a talkative library in the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEP_KEYS = {
    "step",
    "total_steps",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "tokens_seen",
    "epoch",
}
FINISHED_KEYS = {"status", "steps", "final_loss", "output_path", "duration_seconds", "samples_seen"}


@pytest.fixture
def events(nosy_run: Any) -> list[dict[str, Any]]:
    assert nosy_run.answer.code == 0, nosy_run.answer.err
    return nosy_run.answer.events


def test_every_line_is_an_event_and_no_number_is_missing(events: list[dict[str, Any]]) -> None:
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "run_started"
    assert events[-1]["type"] == "run_finished"
    assert len({event["run_id"] for event in events}) == 1
    assert all({"type", "schema", "run_id", "seq", "time"} <= set(event) for event in events)


def test_what_a_library_printed_from_python_and_c_is_in_the_log_alone(nosy_run: Any) -> None:
    log = (nosy_run.run / "engine.log").read_text()
    assert '"from": "python"' in log
    assert '"from": "c"' in log
    assert "straight to the descriptor" in log
    assert '"from"' not in nosy_run.answer.out


def test_the_events_have_the_keys_that_scripts_rely_on(events: list[dict[str, Any]]) -> None:
    assert {"config", "output_dir", "pid"} <= set(events[0])
    steps = [event for event in events if event["type"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    assert all(set(event) >= STEP_KEYS for event in steps)
    (saved, *_) = [event for event in events if event["type"] == "checkpoint_saved"]
    assert set(saved) >= {"step", "path", "seconds_blocked", "bytes"}
    files = [path for path in Path(saved["path"]).rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert saved["bytes"] == sum(path.stat().st_size for path in files)
    assert set(events[-1]) >= FINISHED_KEYS
    assert events[-1]["steps"] == 6
    assert Path(events[-1]["output_path"], "adapter_config.json").is_file()


def test_the_preflight_says_what_is_kept_and_what_is_trained(events: list[dict[str, Any]]) -> None:
    prepared = next(event for event in events if event["type"] == "dataset_prepared")
    assert (prepared["rows"], prepared["kept"], prepared["dropped"]) == (40, 40, 0)
    assert 0 < prepared["trained_tokens"] < prepared["tokens"]
    assert any(span["trained"] for span in prepared["first_row"])


def test_the_journal_holds_the_same_events(nosy_run: Any, events: list[dict[str, Any]]) -> None:
    journal = [json.loads(line) for line in (nosy_run.run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert journal == events


def test_no_socket_is_opened_beyond_this_host(nosy_run: Any) -> None:
    assert [what for kind, what in nosy_run.notes if kind == "socket"] == []


def test_nothing_is_written_outside_output_cache_data_and_settings(nosy_run: Any) -> None:
    allowed = [nosy_run.folder / "output", *map(Path, nosy_run.environment.values())]
    written = {Path(what) for kind, what in nosy_run.notes if kind == "write"}
    assert any(nosy_run.run in path.parents for path in written), "nothing was watched"
    # Python tries out the folder for temporary files; what stays there is looked at below.
    allowed += [nosy_run.home / "tmp", Path("/dev"), Path("/proc")]
    outside = {path for path in written if not any(root in (path, *path.parents) for root in allowed)}
    assert outside == set()
    assert [path.name for path in nosy_run.folder.iterdir() if path.name != "rows.jsonl"] == ["output"]
    assert not (nosy_run.home / "user").exists()
    assert list((nosy_run.home / "tmp").iterdir()) == []


def test_the_run_is_in_the_history_with_the_keys_that_scripts_rely_on(
    nosy_run: Any, backprop_process: Callable[..., Any]
) -> None:
    listed = backprop_process("list-runs", "--json", **nosy_run.environment).json
    assert [run["run_id"] for run in listed] == [nosy_run.run.name]
    assert set(listed[0]) >= {
        *("run_id", "status", "kind", "model", "dataset", "method", "mode", "steps", "total_steps", "final_loss"),
        *("started_at", "duration_seconds", "output_path"),
    }
    shown = backprop_process("show-run", nosy_run.run.name[:5], "--json", **nosy_run.environment).json
    assert set(shown) >= {*listed[0], "config", "environment", "loss_history", "checkpoints", "merges", "error"}
    assert shown["status"] == "done"
    assert len(shown["loss_history"]) == 6
    assert shown["final_loss"] == shown["loss_history"][-1]


def test_a_person_reads_losses_rows_and_the_trained_share(nosy_run: Any, backprop_process: Callable[..., Any]) -> None:
    page = backprop_process("show-run", nosy_run.run.name, **nosy_run.environment)
    losses = [event["loss"] for event in nosy_run.answer.events if event["type"] == "step"]
    assert f"loss {losses[0]:.4f} -> {losses[-1]:.4f} over 6 steps" in page.out
    assert "40 of 40 rows kept, 0 cut" in page.out
    assert "tokens are trained" in page.out


def test_generate_asks_the_run_again_and_leaves_its_journal_alone(
    nosy_run: Any, backprop_process: Callable[..., Any]
) -> None:
    journal = (nosy_run.run / "events.jsonl").read_bytes()
    prompt = "What is number 3?"
    asked = backprop_process(
        *("generate", nosy_run.run.name, "--prompt", prompt, "--base", "--max-tokens", "8", "--json"),
        **nosy_run.environment,
    )
    assert asked.code == 0, asked.err
    samples = {event["tuned"]: event["text"] for event in nosy_run.answer.events if event["type"] == "sample"}
    assert asked.json == {
        "run_id": nosy_run.run.name,
        "answers": [{"prompt": prompt, "text": samples[tuned], "tuned": tuned} for tuned in (False, True)],
    }
    assert (nosy_run.run / "events.jsonl").read_bytes() == journal
