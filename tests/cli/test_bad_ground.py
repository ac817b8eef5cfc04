"""Commands where the ground is bad: no data directory, no working directory, names that no file has, a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.cli.main import main
from backprop.core.errors import RunError
from backprop.core.settings import RunConfig
from backprop.runs import engine_client, engine_process
from backprop.runs.directory import RunDirectory

FIXTURES = Path(__file__).parents[1] / "fixtures"
RUN = ["train", "--model", "smollm2-135m", "--backend", "cpu", "--run-name", "3"]


@pytest.fixture(autouse=True)
def talking_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "ENGINE", "talking_engine")
    monkeypatch.setenv("PYTHONPATH", str(FIXTURES))


def a_file(data: Path) -> None:
    data.write_text("")


def a_folder_in_its_place(data: Path) -> None:
    (data / "backprop" / "runs.db").mkdir(parents=True)


def noise(data: Path) -> None:
    (data / "backprop").mkdir(parents=True)
    (data / "backprop" / "runs.db").write_bytes(b"noise" * 1000)


@pytest.mark.parametrize("ground", [a_file, a_folder_in_its_place, noise])
def test_without_an_index_everything_works_and_it_is_said_once(
    ground: Callable[[Path], None],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    ground(tmp_path / "data")
    assert main([*RUN, "--data", str(rows_file)]) == 0
    said = capfd.readouterr()
    (run,) = (tmp_path / "output").iterdir()
    named, trouble, *_ = said.err.splitlines()
    assert named == f"starting the engine of run {run.name}", "the run is named before anything can fail"
    assert "the index over runs" in trouble
    assert said.err.count("the index over runs") == 1
    assert main(["list-runs", "--json"]) == 0
    assert [each["run_id"] for each in json.loads(capfd.readouterr().out)] == [run.name]
    assert main(["show-run", run.name[:6]]) == 0
    assert main(["show-run", str(run)]) == 0
    assert main(["resume", str(run)]) == 1
    assert "RUN_NOT_ACTIVE" in capfd.readouterr().err  # it is done


def test_two_resumes_in_the_same_instant_are_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = RunDirectory.create(RunConfig(data="d", run_name="0 obey", output_dir=str(tmp_path)))
    with directory.hold_lock():
        (tmp_path / "begun").touch()
    first = engine_client.resume(directory.path)
    second = engine_client.launch(directory, "resume")  # it looked before the first one had the lock
    refused = []
    while not refused:
        for link in (first, second):
            with contextlib.suppress(RunError):
                link.read(0.1)
                continue
            refused.append(link)
    assert main(["resume", str(directory.path)]) == 1
    assert "RUN_ALREADY_ACTIVE" in capfd.readouterr().err
    (second if refused == [first] else first).kill()


@pytest.mark.parametrize(
    "asked",
    [
        (["train", "--data", "x" * 300 + ".jsonl"], "INPUT_VALIDATION_FAILED", "longer than"),
        (["train", "--data", "{rows}", "--model", "x" * 300, "--dry-run"], "INPUT_VALIDATION_FAILED", "longer than"),
        (["train", "--data", "{rows}", "--output", "x" * 300, "--model", "somebody/m"], "CONFIG_INVALID", "too long"),
        (["train", "--data", "~nobody-at-all/x"], "INPUT_VALIDATION_FAILED", "no home directory of ~nobody-at-all"),
        (["train", "--data", "{rows}", "-o", "~nobody-at-all/x"], "INPUT_VALIDATION_FAILED", "no home directory"),
        (["list-runs", "--output", "~nobody-at-all/x"], "INPUT_VALIDATION_FAILED", "no home directory"),
        (
            ["train", "--data", "\udcff.jsonl"],
            "CONFIG_INVALID_SETTING",
            "is not UTF-8: a file of that name has to be renamed",
        ),
        (["train", "--data", "{pipe}"], "DATASET_NOT_FOUND", "write it into a file first"),
        (["validate", "{pipe}"], "DATASET_NOT_FOUND", "write it into a file first"),
        (["show-run", "\udcff"], "RUN_NOT_FOUND", "list-runs"),
        (["show-run", "x" * 300 + "/y"], "RUN_NOT_FOUND", "list-runs"),
        (["train", "-d", "a.jsonl", "-d", "b.jsonl"], "INPUT_VALIDATION_FAILED", "'a.jsonl' and 'b.jsonl'"),
        (["train", "-da.jsonl", "--data=b.jsonl"], "INPUT_VALIDATION_FAILED", "'a.jsonl' and 'b.jsonl'"),
        (["train", "--config", "a.json", "--config", "b.json"], "INPUT_VALIDATION_FAILED", "'a.json' and 'b.json'"),
        (["data", "split", "{rows}", "--seed", "1", "--seed", "2"], "INPUT_VALIDATION_FAILED", "--seed is given twice"),
        (["list-runs", "--limit", "1", "--limit", "2"], "INPUT_VALIDATION_FAILED", "--limit is given twice"),
    ],
)
def test_what_no_file_system_has_is_an_error_of_its_own(
    asked: tuple[list[str], str, str], rows_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words, code, says = asked
    os.mkfifo(tmp_path / "pipe")
    words = [word.replace("{rows}", str(rows_file)).replace("{pipe}", str(tmp_path / "pipe")) for word in words]
    assert main(words) == 1
    said = capfd.readouterr()
    assert f"error [{code}]" in said.err
    assert says in said.err
    assert "defect" not in said.err


def test_an_option_whose_value_looks_like_another_option_is_given_once(
    rows_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "--data",
        str(rows_file),
        "-m",
        "somebody/m",
        "--sample-prompt",
        "--steps",
        "--steps",
        "7",
        "--dry-run",
    ]
    assert main([*words, "--json"]) == 0
    config = json.loads(capfd.readouterr().out)["config"]
    assert (config["steps"], config["sample_prompts"]) == (7, ["--steps"])


@pytest.mark.parametrize("words", [["list-runs"], ["train", "--data", "rows.jsonl"], ["show-run", "abc"]])
def test_a_working_directory_that_is_gone_is_said(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(words) == 1
    said = capfd.readouterr().err
    assert "the working directory is gone" in said
    assert "defect" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("as_json", [True, False])
def test_an_answer_onto_a_full_disk_is_an_error_of_its_own(as_json: bool, tmp_path: Path) -> None:
    words = ["info", "--error-codes", *(["--json"] if as_json else [])]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "backprop.cli.main", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert "error [RUNTIME_DISK_FULL]" in done.stderr
    assert "defect" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_run_s_name_breaks_no_table_and_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "one\ntwo\u202e\x9b2J" + "9" * 300
    RunDirectory.create(RunConfig(data="d", run_name=name, output_dir="output"))
    assert main(["list-runs"]) == 0
    table = capfd.readouterr().out.splitlines()
    assert len(table) == 2
    assert r"one\ntwo\u202e\x9b2J" in table[1]
    assert len(table[1]) < 200
    assert main(["list-runs", "--json"]) == 0
    said = capfd.readouterr().out
    assert "\u202e" not in said
    assert "\x9b" not in said
    assert json.loads(said)[0]["name"] == name
    assert main(["show-run", json.loads(said)[0]["run_id"]]) == 0
    assert r"one\ntwo" in capfd.readouterr().out.splitlines()[0]


def test_a_run_without_a_home_trains(
    tiny_model: Path, rows_file: Path, backprop_process: Callable[..., Any], tmp_path: Path
) -> None:
    """In containers the home is often no directory; launchers of clusters leave their variables in the shell."""
    words = ["train", "--model", str(tiny_model), "--backend", "cpu", "--data", str(rows_file), "--steps", "1"]
    nowhere = {"HOME": "/dev/null", "XDG_DATA_HOME": "", "XDG_CACHE_HOME": "", "TMPDIR": str(tmp_path)}
    launcher = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    done = backprop_process(*words, **nowhere, **launcher)
    assert done.code == 0, done.err
    (run,) = (tmp_path / "output").iterdir()
    assert f"starting the engine of run {run.name}" in done.err
    assert "the index over runs" in done.err
    assert (run / "adapter" / "adapter_config.json").is_file()
