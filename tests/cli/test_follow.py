"""Watching a run: its end gives the exit code, Ctrl+C is handed on, and a reader that leaves stops nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from backprop.cli.follow import follow
from backprop.cli.main import main
from backprop.core import events as ev
from backprop.core.errors import EngineCrashedError
from backprop.core.settings import RunConfig
from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from made_events import finished, started, step
from patience import PATIENCE


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def recorded(tmp_path: Path, *events: ev.Event) -> engine_client.EngineClient:
    directory = RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path)))
    with directory.journal.open("wb") as file:
        for number, event in enumerate(events, 1):
            event.run_id, event.seq, event.time = directory.run_id, number, 1000.0 + number
            file.write(ev.encode(event))
    return engine_client.attach(directory.path)


@pytest.mark.parametrize(("word", "command"), [("pause", ev.Pause()), ("go-on", ev.Resume()), ("stop", ev.Stop())])
def test_a_living_run_is_told_what_to_do_and_another_is_named(
    word: str, command: ev.Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded(tmp_path, started(), step(1)).directory
    assert main(["tell", str(run.path), word]) == 1
    assert "RUN_NOT_ACTIVE" in capsys.readouterr().err
    engine = os.open(run.control, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert main(["tell", str(run.path), word, "--json"]) == 0
        assert ev.decode_command(os.read(engine, 4096)) == command
    finally:
        os.close(engine)
    assert json.loads(capsys.readouterr().out) == {"run_id": run.run_id, "asked": word}


def test_a_run_without_sample_prompts_is_not_asked_for_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded(tmp_path, started(), step(1)).directory
    engine = os.open(run.control, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert main(["tell", str(run.path), "sample"]) == 1
        assert "--sample-prompt" in capsys.readouterr().err
        assert os.read(engine, 1) == b""
    finally:
        os.close(engine)


def ended(status: str) -> ev.RunFinished:
    end = finished(1)
    end.status = status  # type: ignore[assignment]
    return end


def failed(code: str) -> ev.RunFailed:
    return ev.RunFailed(code=code, message="it broke", hint="mend it", retryable=False, traceback="Traceback: here")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (ended("done"), 0),
        (ended("stopped"), 0),
        (ended("interrupted"), 130),
        (failed("CONFIG_INVALID_SETTING"), 1),
        (failed("DATASET_NOTHING_TO_TRAIN"), 1),
        (failed("DEP_MODEL_LOAD_FAILED"), 2),
        (failed("RUNTIME_GPU_OOM"), 2),
        (failed("RUNTIME_TRAINING_ABORTED"), 2),
    ],
)
def test_the_end_of_the_run_is_the_exit_code(
    end: ev.Event, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(recorded(tmp_path, started(), step(1, 1), end)) == code
    told = capsys.readouterr()
    assert ("hint: mend it" in told.err) == isinstance(end, ev.RunFailed)
    assert "Traceback" not in told.out + told.err
    assert not (tmp_path / "output").exists()


def test_verbose_shows_the_engine_s_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(recorded(tmp_path, started(), failed("RUNTIME_IO_FAILED")), verbose=True) == 2
    assert "Traceback: here" in capsys.readouterr().err


def test_an_engine_that_went_without_a_word_is_a_crash_with_its_last_words(tmp_path: Path) -> None:
    watched = recorded(tmp_path, started(), step(1))
    watched.directory.log.write_text("everything was fine\nuntil now\n")
    with pytest.raises(EngineCrashedError, match="until now") as told:
        follow(watched)
    assert told.value.exit_code == 2


def test_a_failed_run_in_json_ends_with_run_failed_and_nothing_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follow(recorded(tmp_path, started(), failed("RUNTIME_IO_FAILED")), as_json=True)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["seq"] for event in events] == [1, 2]
    assert events[-1]["code"] == "RUNTIME_IO_FAILED"
    assert set(events[-1]) >= {"message", "hint", "retryable"}


def train(folder: Path, model: Path, rows: Path, *more: str) -> subprocess.Popen[str]:
    arguments = ["train", "--data", str(rows), "--model", str(model), "--backend", "cpu", "--lora-r", "4"]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "backprop.cli.main", *arguments, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


def first_steps(process: subprocess.Popen[str]) -> Path:
    """Read events until the second step; the run's directory."""
    assert process.stdout is not None
    path = Path()
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "run_started":
            path = Path(event["output_dir"])
        if event["type"] == "step" and event["step"] == 2:
            return path
    raise AssertionError(f"the run ended early: {process.communicate()[1]}")


def test_ctrl_c_finishes_the_step_keeps_the_result_and_exits_with_130(
    tmp_path: Path, tiny_model: Path, rows_file: Path
) -> None:
    process = train(tmp_path, tiny_model, rows_file, "--steps", "100000", "--json")
    path = first_steps(process)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    last = json.loads(rest.splitlines()[-1])
    assert (last["type"], last["status"]) == ("run_finished", "interrupted")
    assert (path / "adapter" / "adapter_config.json").is_file()


def test_a_reader_that_leaves_and_a_lost_terminal_do_not_stop_the_run(
    tmp_path: Path, tiny_model: Path, rows_file: Path
) -> None:
    process = train(tmp_path, tiny_model, rows_file, "--steps", "100000", "--json")
    path = first_steps(process)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(PATIENCE) == 0
    assert f"run {path.name} goes on" in said

    watched = engine_client.attach(path)
    before = read_run(path).step
    wait_until(lambda: read_run(path).step > before, "another step")
    assert watched.alive()
    os.killpg(int(watched.directory.lock_holder().pid), signal.SIGHUP)
    before = read_run(path).step
    wait_until(lambda: read_run(path).step > before, "a step after the hang-up")
    watched.send(ev.Stop())
    assert follow(watched) == 0
    assert read_run(path).status == "stopped"


def test_a_model_that_is_none_is_refused_before_a_run_is_made(
    tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty-model").mkdir()
    assert main(["train", "--data", str(rows_file), "--model", "empty-model", "--backend", "cpu"]) == 1
    told = capsys.readouterr()
    assert "[DEP_MODEL_LOAD_FAILED]" in told.err
    assert "empty-model" in told.err
    assert "hint: " in told.err
    assert "Traceback" not in told.out + told.err
