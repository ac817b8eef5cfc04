from __future__ import annotations

import time
from pathlib import Path

import pytest
from backprop.core.errors import RunError
from backprop.core.events import AnyEvent, Heartbeat, Pause, RunFinished, Stop
from backprop.core.settings import RunConfig
from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_client import EngineClient

FIXTURES = Path(__file__).parents[1] / "fixtures"
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def talking_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "ENGINE", "talking_engine")
    monkeypatch.setenv("PYTHONPATH", str(FIXTURES))


def start(tmp_path: Path, story: str) -> EngineClient:
    return engine_client.start(RunConfig(data="d", run_name=story, output_dir=str(tmp_path)))


def read_to_end(watched: EngineClient) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    deadline = time.monotonic() + PATIENCE
    while not watched.over:
        events += watched.read(1.0)
        assert time.monotonic() < deadline, "the run did not end"
    return events


def test_nothing_that_is_printed_reaches_the_events(tmp_path: Path) -> None:
    watched = start(tmp_path, "200")
    events = read_to_end(watched)
    assert [e.seq for e in events] == list(range(1, 202))
    assert isinstance(events[-1], RunFinished)
    log = watched.directory.log.read_text()
    assert log.count("a library prints\n") == 200
    assert log.count("a library prints from C") == 200
    assert log.count("straight to the descriptor") == 200


def test_an_engine_that_nobody_reads_goes_on_and_the_reader_misses_nothing(tmp_path: Path) -> None:
    watched = start(tmp_path, "5000")
    assert watched.wait(PATIENCE) == 0  # over a megabyte of events, far more than a pipe holds, and it ended
    assert [e.seq for e in read_to_end(watched)] == list(range(1, 5002))


def test_an_engine_whose_reader_left_goes_on(tmp_path: Path) -> None:
    watched = start(tmp_path, "5000")
    watched.read(PATIENCE)
    watched.detach()
    assert watched.wait(PATIENCE) == 0
    again = engine_client.attach(watched.directory.path)
    assert [e.seq for e in read_to_end(again)] == list(range(1, 5002))


def test_a_command_reaches_the_engine_from_whoever_attached(tmp_path: Path) -> None:
    watched = start(tmp_path, "3 obey")
    attached = engine_client.attach(watched.directory.path)
    deadline = time.monotonic() + PATIENCE
    events: list[AnyEvent] = []
    while not (events and isinstance(events[-1], Heartbeat)):
        events += attached.read(1.0)
        assert time.monotonic() < deadline
    attached.send(Stop())
    assert isinstance((events + read_to_end(attached))[-1], RunFinished)
    assert watched.wait(PATIENCE) == 0


def test_a_command_to_a_run_that_is_over_is_refused(directory: RunDirectory) -> None:
    with pytest.raises(RunError) as caught:
        engine_client.attach(directory.path).send(Pause())
    assert caught.value.code == "RUN_NOT_ACTIVE"


def test_a_killed_engine_is_reported_with_its_last_words(tmp_path: Path) -> None:
    watched = start(tmp_path, "10 die")
    events = read_to_end(watched)
    assert [e.seq for e in events] == list(range(1, 12))
    crash = watched.crash()
    assert "SIGKILL" in crash.message
    assert "these are my last words" in crash.message
    assert crash.code == "RUNTIME_ENGINE_CRASHED"


def test_killing_a_run_ends_its_engine(tmp_path: Path) -> None:
    watched = start(tmp_path, "1 obey")
    attached = engine_client.attach(watched.directory.path)
    deadline = time.monotonic() + PATIENCE
    while not attached.read(1.0):
        assert time.monotonic() < deadline
    attached.kill()
    assert watched.wait(PATIENCE) == -9
    assert not attached.alive()
