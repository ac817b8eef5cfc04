"""What is done with runs that are over: found, compared, written out, marked, deleted."""

from __future__ import annotations

import csv
import io
import json
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import recorded_runs
from backprop.cli.main import main
from backprop.core.errors import RunError
from backprop.core.settings import RunConfig
from backprop.runs.deletion import delete_run
from backprop.runs.directory import RunDirectory
from backprop.runs.record import Replays


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``./output`` with three runs: aaa1, bbb2, ccc3, each later and of a higher rate than the one before."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("aaa1", "bbb2", "ccc3"), 1):
        config = RunConfig(data="/d/rows.jsonl", model="m", learning_rate=number / 10_000, run_name=f"try {number}")
        recorded_runs.record(tmp_path / "output", name, config, time=1000.0 * number)
    return tmp_path / "output"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def ids(runs: list[dict[str, Any]]) -> list[str]:
    return [run["run_id"] for run in runs]


def test_runs_are_found_by_words_and_sorted(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tag", "aaa1", "+good"]) == main(["note", "bbb2", "too hot"]) == 0
    capsys.readouterr()
    for words, found in ((["good"], ["aaa1"]), (["hot", "DONE"], ["bbb2"]), (["try"], ["ccc3", "bbb2", "aaa1"])):
        assert ids(answer(capsys, "list-runs", *words)) == found
    assert ids(answer(capsys, "list-runs", "--sort", "name", "--limit", "2")) == ["aaa1", "bbb2"]
    assert ids(answer(capsys, "list-runs", "--reverse", "--limit", "1")) == ["aaa1"]
    assert answer(capsys, "list-runs", "nothing") == []
    assert ids(answer(capsys, "list-runs", "--sort", "run", "--reverse")) == ["ccc3", "bbb2", "aaa1"]
    pairs = RunConfig(data="/d/rows.jsonl", model="m", method="dpo", mode="qlora")
    recorded_runs.record(output, "ddd4", pairs, time=4000.0)
    assert main(["list-runs"]) == 0
    shown = capsys.readouterr().out.split("\n")
    assert "  m dpo qlora  " in shown[1]  # what is usual is not said
    assert not any(word in line for word in ("sft", "lora", "auto") for line in shown[2:])
    assert "+good" in shown[4]


def test_tags_are_given_and_taken_away_beside_flags(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "tag", "aaa1", "+x", "+very", "+x")["tags"] == ["very", "x"]
    assert answer(capsys, "tag", "aaa1", "-very", "-nothing", "+y")["tags"] == ["x", "y"]
    assert answer(capsys, "note", "aaa1", "why? -x")["note"] == "why? -x"
    shown = answer(capsys, "show-run", "aaa1")
    assert (shown["tags"], shown["note"]) == (["x", "y"], "why? -x")
    assert main(["tag", "aaa1", "good"]) == 1
    assert "'good' is no tag" in capsys.readouterr().err
    assert RunDirectory(output / "aaa1").read_record().config.run_name == "try 1"


def test_of_two_who_mark_a_run_at_once_neither_is_lost(output: Path) -> None:
    gate = threading.Barrier(8)

    def mark(number: int) -> None:
        gate.wait()
        RunDirectory(output / "aaa1").rewrite_record(lambda record: {"tags": [*record.tags, f"t{number}"]})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(mark, range(8)))
    assert sorted(RunDirectory(output / "aaa1").read_record().tags) == [f"t{n}" for n in range(8)]


def test_two_runs_beside_each_other(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, contents in (("aaa1", [5, 6]), ("bbb2", [5, 7])):
        source = RunDirectory(output / name).source
        source.mkdir()
        (source / "lines.bin").write_bytes(array("q", [1, 2]).tobytes())
        (source / "contents.bin").write_bytes(array("q", contents).tobytes())
    found = answer(capsys, "diff-runs", "aaa1", "bbb2")
    assert (found["a"], found["b"]) == ("aaa1", "bbb2")
    assert [(each["key"], each["a"], each["b"]) for each in found["differences"] if each["key"] != "output_dir"] == [
        ("learning_rate", 1e-4, 2e-4),
        ("run_name", "try 1", "try 2"),
        ("row 2 changed", "line 2", "line 2"),
    ]
    assert main(["diff-runs", "aaa1", "bbb2"]) == main(["diff-runs", "aaa1", "aaa1"]) == 0
    told = capsys.readouterr().out
    for words in ("what you set", "learning_rate", "0.0002", "data and base model", "nothing differs"):
        assert words in told
    assert "environment" not in told


def test_every_run_is_written_out_with_its_settings(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["note", "aaa1", "=1+1"]) == 0
    capsys.readouterr()
    assert main(["export-runs"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ids(rows) == ["ccc3", "bbb2", "aaa1"]
    assert [row["config"]["learning_rate"] for row in rows] == [3e-4, 2e-4, 1e-4]
    assert main(["export-runs", "--format", "csv", "--file", "runs.csv", "try"]) == 0
    table = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text())))
    assert [row["config.learning_rate"] for row in table] == ["0.0003", "0.0002", "0.0001"]
    assert table[2]["note"] == "'=1+1"  # a spreadsheet does not run it
    assert main(["export-runs", "--file", "runs.csv"]) == 1
    assert "runs.csv" in capsys.readouterr().err
    assert main(["export-runs", "--format", "csv", "--file", "again.csv", "--json", "try"]) == 0
    again = {"file": str(tmp_path / "again.csv"), "format": "csv", "count": 3}
    assert json.loads(capsys.readouterr().out) == again
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "runs.csv").read_text()
    assert main(["export-runs", "--format", "csv", "--json"]) == 1
    assert "--format is without effect" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_deleting_says_what_it_frees_and_what_needs_it(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(output / "aaa1")
    (run.path / "exports").mkdir()
    (run.path / "exports" / "m.gguf").write_bytes(bytes(2_000_000))
    fork = RunConfig(data=str(run.path / "data.jsonl"), output_dir=str(output))
    forked = recorded_runs.record(output, "ddd4", fork)
    forked.update_record(forked_from=str(run.checkpoints / "step-00000003"))
    again = RunDirectory.create(
        RunConfig(data="d", output_dir=str(output)),
        "replay",
        replays=Replays(path=str(run.path), run_id="aaa1", created=1.0),
    )
    assert main(["delete-run", "aaa1"]) == 1
    told = capsys.readouterr().err
    assert "2.0 MB" in told
    for words in ("run ddd4 was forked from it", "data.jsonl", f"{again.run_id} replays it", "export m.gguf", "--yes"):
        assert words in told
    assert run.journal.exists()
    with forked.hold_lock():
        assert main(["delete-run", "ddd4", "--yes"]) == 1
    assert "is being worked on" in capsys.readouterr().err
    assert forked.journal.exists()
    (output / ".eee5.deleting").mkdir()  # of a deletion that was killed
    assert answer(capsys, "delete-run", "aaa1", "--yes")["bytes"] > 2_000_000
    assert {path.name for path in output.iterdir()} == {"bbb2", "ccc3", "ddd4", again.run_id}
    assert "aaa1" not in ids(answer(capsys, "list-runs"))


def test_a_deletion_that_is_killed_leaves_nothing_that_looks_like_a_run(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("backprop.core.files.shutil.rmtree", lambda path, **how: None if how else killed())
        with pytest.raises(KeyboardInterrupt):
            delete_run(output / "aaa1")
    assert ids(answer(capsys, "list-runs")) == ["ccc3", "bbb2"]
    with pytest.raises(RunError):
        delete_run(output / "aaa1")
    delete_run(output / "bbb2")
    assert [path.name for path in output.iterdir()] == ["ccc3"]


def test_a_replay_of_a_run_whose_data_is_gone_is_refused_before_anything_starts(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", "aaa1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "DATASET_NOT_FOUND"
    assert len(list(output.iterdir())) == 3


def test_a_replay_of_other_rows_is_refused_by_their_line_and_nothing_is_made(
    backprop: Callable[..., Any], rows_file: Path, tiny_model: Path
) -> None:
    flags = ["--model", str(tiny_model), "--steps", "1", "--batch-size", "2", "--backend", "cpu", "--held-out", "none"]
    assert backprop("train", "--data", str(rows_file), *flags).code == 0
    output = rows_file.parent / "output"
    (run,) = output.iterdir()
    rows = rows_file.read_text().splitlines(keepends=True)
    other = json.loads(rows[6])
    other["output"] += " Or so."
    rows_file.write_text("".join([*rows[:6], json.dumps(other) + "\n", *rows[7:]]))
    refused = backprop("replay", run.name)
    assert refused.code == 1
    assert "STATE_IDENTITY_MISMATCH" in refused.err
    assert "line 7 was changed" in refused.err
    assert list(output.iterdir()) == [run]
    again = backprop("replay", run.name, "--data", str(rows_file), "--json")
    assert (again.code, again.events[-1]["status"]) == (0, "done"), again.err


def test_a_mistyped_output_directory_is_said(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list-runs", "export-runs"):
        assert main([command, "--output", f"{output}s"]) == 1
        assert f"there is no directory {output}s" in capsys.readouterr().err
