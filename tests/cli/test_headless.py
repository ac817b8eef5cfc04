"""``backprop-tui --no-tui``: the same work as ``backprop``, by the same code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from backprop import __version__
from backprop.cli.main import main
from backprop.core import events as ev
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from made_events import finished, started, step

from backprop_tui.main import headless
from backprop_tui.main import main as application


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recorded(tmp_path: Path) -> RunDirectory:
    """A finished run that the index knows."""
    directory = RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path)))
    with directory.journal.open("wb") as file:
        for number, event in enumerate([started(), step(1, 1), finished(1)], 1):
            event.run_id, event.seq, event.time = directory.run_id, number, 1000.0 + number
            file.write(ev.encode(event))
    with RunIndex() as index:
        index.add(directory.path)
    return directory


@pytest.mark.parametrize("given", ["--attach {run}", "--attach={run}", "--json --attach {run}"])
def test_a_run_is_watched_by_its_id(given: str, recorded: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = given.format(run=recorded.run_id[:8]).split()
    assert headless(arguments) == 0
    out = capsys.readouterr().out
    if "--json" in arguments:
        assert [json.loads(line)["type"] for line in out.splitlines()] == ["run_started", "step", "run_finished"]
    else:
        assert out.startswith(f"run_started run_id={recorded.run_id}")


def test_settings_alone_are_a_training_run(rows_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--data", str(rows_file), "--model", "smollm2-135m", "--steps", "3", "--dry-run", "--json"]
    assert headless(settings) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(["train", *settings]) == 0
    assert told == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("plain", [[], ["--no-tui"]])
def test_the_version_is_an_answer_with_and_without_a_screen(
    plain: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["backprop-tui", *plain, "--version"])
    with pytest.raises(SystemExit) as ended:
        application()
    told = capsys.readouterr()
    assert (ended.value.code, told.err) == (0, "")
    assert told.out.endswith(f", version {__version__}\n")


def test_a_command_is_that_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert headless(["info", "--json"]) == 0
    assert "python" in json.loads(capsys.readouterr().out)


def test_nothing_is_the_list_of_the_runs(recorded: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert headless(["--json"]) == 0
    assert [run["run_id"] for run in json.loads(capsys.readouterr().out)] == [recorded.run_id]


def test_an_error_has_its_code_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert headless(["--attach", "feed", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "RUN_NOT_FOUND"
    assert headless(["--dta", "rows.jsonl"]) == 1
    assert "did you mean --data?" in capsys.readouterr().err
