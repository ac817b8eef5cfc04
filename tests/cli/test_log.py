"""The log: where it goes, what each line has, and that no secret leaves in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from backprop.cli.main import main
from backprop.core import log
from backprop.core.settings import AppConfig, RunConfig
from backprop.runs import engine_client, engine_process

SECRET = "hf_abcdefghijklmnop"


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine_process, "ENGINE", "talking_engine")
    yield
    log.LOGGER.handlers[:] = []
    log.choose(AppConfig())


def run_to_the_end(story: str) -> engine_client.EngineClient:
    engine = engine_client.start(RunConfig(data="d", run_name=story, output_dir="out"))
    while not engine.over:
        engine.read(5.0)
    return engine


def test_every_line_of_an_engine_s_log_has_the_run(tmp_path: Path) -> None:
    file = tmp_path / "all.log"
    log.choose(AppConfig(log_file=str(file)))
    engine = run_to_the_end("3 start")
    lines = file.read_text().splitlines()
    assert len(lines) == 5
    assert all(f" info    run_id={engine.run_id} " in line for line in lines)
    assert lines[0].endswith("x" * 200)
    assert lines[-1].endswith("run done after 0 steps in 0 s")
    assert all(line in engine.directory.log.read_text() for line in lines)


def test_json_lines_and_levels_reach_the_engine(tmp_path: Path) -> None:
    log.choose(AppConfig(log_file="all.log", log_json=True, log_level="error"))
    run_to_the_end("1")
    assert Path("all.log").read_text() == ""
    log.choose(AppConfig(log_file="all.log", log_json=True))
    engine = run_to_the_end("1")
    first, last = [json.loads(line) for line in Path("all.log").read_text().splitlines()]
    assert set(first) == set(last) == {"time", "level", "run_id", "message"}
    assert (last["level"], last["run_id"]) == ("info", engine.run_id)


@pytest.mark.parametrize("as_json", [True, False])
def test_no_secret_and_no_control_character_leaves_in_a_line(as_json: bool, tmp_path: Path) -> None:
    config = AppConfig(log_file=str(tmp_path / "x.log"), log_json=as_json)
    log.open_log(config, "abc", stderr=False)
    try:
        raise ValueError(f"cause with token={SECRET}")
    except ValueError:
        log.LOGGER.error("got 401 for %s \x1b[31m\u202e", SECRET, exc_info=True)
    text = (tmp_path / "x.log").read_text()
    assert SECRET not in text
    assert "[redacted]" in text
    assert "\x1b" not in text
    if not as_json:
        assert "\u202e" not in text
        assert all(" error   run_id=abc " in line for line in text.splitlines())


def test_the_command_line_logs_to_standard_error_and_to_the_file_never_to_standard_output(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    words = ["train", "--data", "d.jsonl", "--model", "smollm2-135m", "--run-name", "2", "--output", "out"]
    assert main([*words, "--log-level", "info", "--log-file", "cli.log", "--json"]) == 0
    told = capfd.readouterr()
    assert all(json.loads(line)["run_id"] for line in told.out.splitlines())
    run_id = json.loads(told.out.splitlines()[0])["run_id"]
    assert told.err.count(f" info    run_id={run_id} ") == 3
    assert Path("cli.log").read_text().count("\n") == 3
    assert main(["train", "--data", "gone.jsonl", "--log-file", "cli.log"]) == 1
    assert " error   run_id=- [DATASET_NOT_FOUND]" in Path("cli.log").read_text()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LOG_LEVEL", "loud", "BACKPROPAGATE_LOG_LEVEL takes"),
        ("LOG_JSON", "perhaps", "BACKPROPAGATE_LOG_JSON takes"),
        ("LOG_FILE", "no/such/folder/x.log", "no/such/folder/x.log"),
    ],
)
def test_a_log_that_cannot_be_is_refused(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"BACKPROPAGATE_{name}", value)
    assert main(["list-runs"]) == 1
    assert said in capsys.readouterr().err


def test_nothing_is_logged_by_the_command_line_unless_asked() -> None:
    assert main(["config", "path"]) == 0
    assert logging.getLogger("backprop").handlers == []
