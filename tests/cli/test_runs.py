"""``list-runs``, ``show-run`` and ``info`` on recorded runs, whole and damaged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.cli.main import main
from backprop.core import events as ev
from backprop.core.errors import ERROR_CODES
from backprop.core.files import write_file
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from made_events import finished, started, step


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., RunDirectory]:
    """A run's directory with these events, under an id of choice, known to the index."""

    def record(run_id: str, *events: ev.Event, time: float = 1000.0) -> RunDirectory:
        made = RunDirectory.create(RunConfig(data="/d/rows.jsonl", model="m", output_dir=str(tmp_path / "runs")))
        directory = RunDirectory(made.path.with_name(run_id))
        made.path.rename(directory.path)
        write_file(directory.record, directory.record.read_bytes().replace(made.run_id.encode(), run_id.encode()))
        with directory.journal.open("wb") as file:
            for number, event in enumerate(events, 1):
                event.run_id, event.seq, event.time = run_id, number, time + number
                file.write(ev.encode(event))
        os.utime(directory.record, (time, time))
        with RunIndex() as index:
            index.add(directory.path)
        return directory

    return record


def whole(steps: int = 3) -> list[ev.Event]:
    return [started(), *(step(n, steps) for n in range(1, steps + 1)), finished(steps)]


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*arguments, "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return json.loads(told.out)


def test_runs_are_listed_newest_first_by_status_and_limit(
    recorded: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded("aaa1", *whole(), time=1000.0)
    recorded(
        "bbb2", started(), ev.RunFailed(code="RUNTIME_GPU_OOM", message="m", hint="h", retryable=False), time=3000.0
    )
    recorded("ccc3", *whole(), time=2000.0)
    assert [run["run_id"] for run in answer(["list-runs"], capsys)] == ["bbb2", "ccc3", "aaa1"]
    assert [run["run_id"] for run in answer(["list-runs", "--limit", "2"], capsys)] == ["bbb2", "ccc3"]
    assert [run["run_id"] for run in answer(["list-runs", "--status", "done"], capsys)] == ["ccc3", "aaa1"]
    assert answer(["list-runs", "--status", "paused"], capsys) == []


def test_an_empty_history_is_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["list-runs"], capsys) == []
    assert main(["list-runs"]) == 0
    assert "backprop demo" in capsys.readouterr().err


def test_a_run_may_be_named_by_any_beginning_that_fits_one(
    recorded: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded("abc111", *whole())
    recorded("abc222", *whole())
    directory = recorded("def333", *whole())
    assert answer(["show-run", "abc2"], capsys)["run_id"] == "abc222"
    assert answer(["show-run", "d"], capsys)["run_id"] == "def333"
    assert answer(["show-run", str(directory.path)], capsys)["run_id"] == "def333"
    assert main(["show-run", "abc"]) == 1
    told = capsys.readouterr().err
    assert "abc111" in told
    assert "abc222" in told
    assert main(["show-run", ""]) == 1


def test_a_failed_run_says_why(recorded: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]) -> None:
    failed = ev.RunFailed(code="RUNTIME_GPU_OOM", message="too big", hint="smaller batch", retryable=True)
    recorded("aaa1", started(), failed)
    shown = answer(["show-run", "aaa1"], capsys)
    assert shown["error"] == {
        "code": "RUNTIME_GPU_OOM",
        "message": "too big",
        "hint": "smaller batch",
        "retryable": True,
    }
    assert main(["show-run", "aaa1"]) == 0
    assert "[RUNTIME_GPU_OOM] too big" in capsys.readouterr().out


def cut_in_a_line(directory: RunDirectory) -> None:
    content = directory.journal.read_bytes()
    directory.journal.write_bytes(content[: len(content) - 30])


def garble_a_line(directory: RunDirectory) -> None:
    lines = directory.journal.read_bytes().splitlines(keepends=True)
    directory.journal.write_bytes(b"".join([lines[0], b"\x00\xff{]\n", *lines[2:]]))


def lose_the_record(directory: RunDirectory) -> None:
    directory.record.unlink()


def break_the_record(directory: RunDirectory) -> None:
    directory.record.write_text('{"run_id": 5')


def lose_the_journal(directory: RunDirectory) -> None:
    directory.journal.unlink()


def empty_both(directory: RunDirectory) -> None:
    directory.journal.write_bytes(b"")
    directory.record.write_bytes(b"")


def change_the_result(directory: RunDirectory) -> None:
    directory.adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (directory.adapter / name).write_text("{}")
    (directory.adapter / "backprop.json").write_text(json.dumps({"weights": {"adapter_model.safetensors": "abc"}}))


@pytest.mark.parametrize(
    ("damage", "status", "said"),
    [
        (cut_in_a_line, "crashed", "engine"),
        (garble_a_line, "done", "line 2"),
        (lose_the_record, "done", "run.json"),
        (break_the_record, "done", "run.json"),
        (lose_the_journal, "crashed", "engine"),
        (empty_both, "damaged", "run.json"),
        (change_the_result, "done", "adapter_model.safetensors is not the file that the run saved"),
    ],
)
def test_a_damaged_run_is_shown_as_what_it_is(
    damage: Callable[[RunDirectory], None],
    status: str,
    said: str,
    recorded: Callable[..., RunDirectory],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorded("aaa1", *whole())
    damage(recorded("bbb2", *whole()))
    assert {run["run_id"]: run["status"] for run in answer(["list-runs"], capsys)} == {"aaa1": "done", "bbb2": status}
    assert main(["list-runs"]) == 0
    capsys.readouterr()
    assert answer(["show-run", "bbb2"], capsys)["status"] == status
    assert main(["show-run", "bbb2"]) == 0
    assert said in capsys.readouterr().out


def test_a_run_whose_directory_is_gone_is_not_found(
    recorded: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(recorded("aaa1", *whole()).path)
    assert main(["show-run", "aaa1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "RUN_NOT_FOUND"


def test_runs_of_this_folder_are_found_without_an_index(
    recorded: Callable[..., RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = recorded("aaa1", *whole())
    (tmp_path / "output").mkdir()
    directory.path.rename(tmp_path / "output" / "aaa1")
    assert answer(["show-run", "aaa1"], capsys)["path"] == str(tmp_path / "output" / "aaa1")


def test_a_run_without_a_result_is_not_asked(
    recorded: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded("aaa1", started(), step(1))
    assert main(["generate", "aaa1", "--prompt", "Hi"]) == 1
    assert "run aaa1 (crashed) has no trained adapter" in capsys.readouterr().err


def test_info_has_the_keys_that_scripts_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer(["info"], capsys)
    assert set(facts) >= {"python", "torch", "cuda", "gpus", "extras", "platform"}
    assert main(["info"]) == 0
    assert facts["python"] in capsys.readouterr().out


def test_every_error_code_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["info", "--error-codes"], capsys) == ERROR_CODES
    assert main(["info", "--error-codes"]) == 0
    told = capsys.readouterr().out
    assert all(code in told for code in ERROR_CODES)


def test_a_run_that_was_moved_is_named_by_its_place_or_found_there(
    recorded: Callable[..., RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = recorded("aaa1", *whole()).path
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert main(["show-run", "aaa1"]) != 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"one was in {before}, which is gone" in told
    assert "list-runs --output FOLDER" in told
    assert answer(["show-run", str(tmp_path / "elsewhere" / "aaa1")], capsys)["run_id"] == "aaa1"
    answer(["list-runs", "--output", str(tmp_path / "elsewhere")], capsys)
    assert answer(["show-run", "aaa1"], capsys)["run_id"] == "aaa1"
