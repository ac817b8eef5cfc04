"""``backprop queue``: what it answers, and one entry trained by a real engine that nobody waits for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backprop.cli.main import main
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.queue import Queue
from backprop.runs.state import read_run
from recorded_runs import record
from tiny_language_model import write_rows


def ask(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> Any:
    assert main(["queue", *words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def nobody_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """No runner is started."""
    monkeypatch.setattr(Queue, "ensure_runner", Queue.read)


@pytest.mark.usefixtures("nobody_works")
def test_a_queued_run_has_the_settings_of_its_flags_of_a_file_of_a_run_or_of_an_entry(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    first = ask(capsys, "add", "--data", "rows.jsonl", "--model", str(tiny_model), "--steps", "3")
    assert (first["config"]["steps"], first["config"]["data"]) == (3, str(rows))
    assert first["origins"]["steps"] == "--steps"
    (tmp_path / "saved.toml").write_text(f'data = "{rows}"\nmodel = "{tiny_model}"\nsteps = 5\n')
    assert ask(capsys, "add", "--config", "saved.toml")["config"]["steps"] == 5
    config = RunConfig(data=str(rows), model=str(tiny_model), steps=7, seed=3, output_dir=str(tmp_path / "output"))
    run = record(tmp_path / "output", "aaaa00000001", config)
    again = ask(capsys, "add", "--from", run.run_id, "--lr", "1e-3")
    assert [again["config"][name] for name in ("steps", "seed", "learning_rate")] == [7, 3, 1e-3]
    copy = ask(capsys, "add", "--from", first["run_id"][:8], "--steps", "4")
    assert (copy["config"]["steps"], copy["run_id"] != first["run_id"]) == (4, True)
    listed = ask(capsys, "list")
    assert [entry["config"]["steps"] for entry in listed["entries"]] == [3, 5, 7, 4]
    assert (listed["after_failure"], listed["stopped"], listed["runner"]) == ("continue", "", None)
    session = record(tmp_path / "output", "bbbb00000001", config)
    session.update_record(kind="multi_run")
    record(tmp_path / "output", f"{first['run_id'][:8]}zzzz", config)
    for words in (
        ["add", "--from", session.run_id],
        ["add", "--from", run.run_id, "--preset", "fast"],
        ["add", "--from", first["run_id"][:8]],  # a run has that beginning too
        ["move", "nothing", "1"],
        ["rm"],
    ):
        assert ask(capsys, *words, status=1)["error"]["code"] == "INPUT_VALIDATION_FAILED"
    assert ask(capsys, "move", copy["run_id"], "1")["order"][:2] == [copy["run_id"], first["run_id"]]
    assert ask(capsys, "rm", copy["run_id"], first["run_id"])["removed"] == [copy["run_id"], first["run_id"]]
    assert main(["queue", "list"]) == 0
    said = capsys.readouterr()
    assert "1  waiting" in said.out
    assert "nobody works on it; `backprop queue run` does" in said.err


def test_a_queue_that_is_run_ends_with_every_run_and_says_which_failed(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    queue = Queue()
    plain = {"data": str(rows), "model": str(tiny_model), "backend": "cpu", "steps": 2, "held_out": "none"}
    bad = queue.add(RunConfig(**plain, output_dir=str(tmp_path / "file"))).run_id
    (tmp_path / "file").touch()
    good = queue.add(RunConfig(**plain, output_dir=str(tmp_path / "out"))).run_id
    assert main(["queue", "run", "--json"]) == 3
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.out.splitlines()]
    assert {event["run_id"] for event in events} == {good}
    assert (events[0]["type"], events[-1]["type"]) == ("run_started", "run_finished")
    assert f"runs ended: 2; {bad} failed" in said.err
    assert [(entry.run_id, entry.status) for entry in queue.read().over] == [(good, "done"), (bad, "failed")]
    run = RunDirectory(tmp_path / "out" / good)
    assert read_run(run.path).step == 2
    assert run.result
