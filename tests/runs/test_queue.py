"""The queue of runs: what waits is begun once, in its order, whoever is killed meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from backprop.core.errors import ConfigurationError, InputError
from backprop.core.events import Gpu
from backprop.core.files import is_held
from backprop.core.settings import RunConfig
from backprop.hardware.gpu import GPUMonitor
from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from backprop.runs.queue import Entry, Queue
from backprop.worker import queue_runner
from brief_engines import start_brief_engine
from patience import PATIENCE

RUNNER = Path(__file__).parents[1] / "fixtures" / "killed_runner.py"
MOMENTS = 10


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runs of the queue are made, by brief engines."""
    monkeypatch.setattr(engine_client, "start_engine", start_brief_engine)
    monkeypatch.setenv("RUNS", str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def add(runs: Path, name: str | None = None) -> str:
    return Queue().add(RunConfig(data="d", backend="cpu", run_name=name, output_dir=str(runs))).run_id


def start_runner(nth: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, str(RUNNER), str(nth)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_to_end(nth: int = 0) -> tuple[int, str]:
    """A runner to its end, or until its ``nth`` touch of a file: its exit status, and what it said."""
    runner = start_runner(nth)
    said, complaint = runner.communicate(timeout=60)
    assert complaint == ""
    return runner.returncode, said


def serve() -> None:
    """The runner in this process."""
    queue_runner.serve(Queue(), lambda config: "", lambda: None)


def begun(runs: Path) -> list[str]:
    return (runs / "started").read_text().split() if (runs / "started").exists() else []


def ended() -> list[tuple[str, str]]:
    """Those that are over, as they ended."""
    return [(entry.run_id, entry.status) for entry in reversed(Queue().read().over)]


def test_a_runner_that_is_killed_at_any_moment_begins_each_entry_once_and_loses_none(runs: Path) -> None:
    entries = [add(runs), add(runs)]
    status, touches = run_to_end()
    assert (status, begun(runs), ended()) == (0, entries, [(each, "done") for each in entries])
    for moment in range(MOMENTS):
        (runs / "started").unlink(missing_ok=True)
        entries = [add(runs), add(runs)]
        status, _ = run_to_end(1 + moment * (int(touches) - 1) // (MOMENTS - 1))
        assert (status, Queue().read().runner) == (-9, None), moment
        serve()
        assert begun(runs) == entries, moment
        assert ended()[-2:] == [(each, "done") for each in entries], moment
        assert Queue().read().idle


def test_an_engine_that_outlives_its_runner_holds_its_entry(runs: Path) -> None:
    os.mkfifo(runs / "go")
    entry = add(runs, "wait")
    runner = start_runner()
    with (runs / "go").open("w"):  # opened once the engine is there
        runner.kill()
        runner.communicate()
        assert is_held(Queue().home / "running" / f"{entry}.json")
        assert [each.run_id for each in Queue().read().running] == [entry]
    serve()
    assert (begun(runs), ended()) == ([entry], [(entry, "done")])


def test_of_two_runners_one_works(runs: Path) -> None:
    entries = [add(runs) for _ in range(6)]
    runners = [start_runner(), start_runner()]
    assert [runner.communicate(timeout=60)[1] for runner in runners] == ["", ""]
    assert begun(runs) == entries


def test_entries_are_begun_in_the_order_that_a_person_gave_them(runs: Path) -> None:
    a, b, c = (add(runs) for _ in range(3))
    queue = Queue()
    queue.move(c, 1)
    queue.move(a, 99)
    d = add(runs)
    assert [entry.run_id for entry in queue.read().waiting] == [c, b, a, d]
    queue.remove(b)
    serve()
    assert begun(runs) == [c, a, d]
    with pytest.raises(InputError, match="does not wait any more"):
        queue.move(a, 1)
    queue.remove(a)
    assert [run_id for run_id, _ in ended()] == [c, d]
    assert RunDirectory(runs / a).record.exists()


def test_a_claimed_entry_is_neither_moved_nor_taken_out(runs: Path) -> None:
    entry = add(runs)
    queue = Queue()
    queue.claim(entry)
    queue.claim(entry)
    with pytest.raises(InputError, match="does not wait any more"):
        queue.move(entry, 1)
    with pytest.raises(InputError, match="is being trained"):
        queue.remove(entry)
    assert queue.find(entry[:4]).status == "running"


@pytest.mark.parametrize(("story", "status"), [("fail", "failed"), ("die", "crashed")])
def test_after_a_failure_the_queue_goes_on_or_stops_until_a_person_says_so(runs: Path, story: str, status: str) -> None:
    first, second = add(runs, story), add(runs)
    serve()
    assert ended() == [(first, status), (second, "done")]
    queue = Queue()
    queue.rule(after_failure="stop")
    third, fourth = add(runs, story), add(runs)
    queue.rule(resumed=queue.read().over[0].ended)
    serve()
    assert queue.read().stopped == f"run {third} {status}"
    assert [entry.run_id for entry in queue.read().waiting] == [fourth]
    serve()
    assert begun(runs) == [first, second, third]
    queue.rule(resumed=queue.read().over[0].ended)
    serve()
    assert begun(runs) == [first, second, third, fourth]


def test_a_run_that_cannot_be_begun_fails_with_the_reason(runs: Path) -> None:
    entry = Queue().add(RunConfig(data="d", output_dir=str(runs / "file")))
    (runs / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot write to the output directory"):
        Queue().add(RunConfig(data="d", output_dir=str(runs / "file")))
    serve()
    (over,) = Queue().read().over
    assert (over.run_id, over.status) == (entry.run_id, "failed")
    assert "cannot write to the output directory" in over.message


def test_a_file_that_is_no_entry_is_named_and_left_alone(runs: Path) -> None:
    entry = add(runs)
    queue = Queue()
    waiting = queue.home / "waiting"
    newer = (waiting / f"{entry}.json").read_bytes().replace(b'"schema":1', b'"schema":2')
    for name, content in (("torn", b'{"run'), ("newer", newer)):
        (waiting / f"{name}.json").write_bytes(content)
    serve()
    assert begun(runs) == [entry]
    (queue.home / "queue.json").write_bytes(b'{"after_failure":"st')
    named = {Path(each.partition(":")[0]).name for each in queue.read().unreadable}
    assert named == {"torn.json", "newer.json", "queue.json"}
    assert len(list(waiting.iterdir())) == 2


HOT = Gpu(index=0, name="card", temperature=84.0, other_processes=0)
COOL = Gpu(index=0, name="card", temperature=40.0, other_processes=0, memory_used=0, memory_total=100)
TAKEN = Gpu(index=1, name="card", temperature=40.0, other_processes=2)
FULL = Gpu(index=0, name="card", temperature=40.0, memory_used=50, memory_total=100)


@pytest.mark.parametrize(
    ("cards", "settings", "visible", "reason"),
    [
        ([COOL, TAKEN], {}, "", ""),
        ([HOT], {}, "", "GPU 0 is at 84 °C; it has to be below 80 °C"),
        ([HOT], {"gpu_max_temp": 100.0}, "", ""),
        ([HOT], {"backend": "cpu"}, "", ""),
        (
            [COOL, TAKEN],
            {"processes": 2},
            "",
            "GPU 1 is taken: other processes compute on it, 0% of its memory are in use",
        ),
        ([HOT, TAKEN], {}, "1", "GPU 1 is taken: other processes compute on it, 0% of its memory are in use"),
        ([HOT, COOL], {}, "1", ""),
        ([FULL], {}, "", "GPU 0 is taken: other processes compute on it, 50% of its memory are in use"),
        ([], {}, "", ""),
    ],
)
def test_a_run_waits_while_its_card_is_hot_or_taken(
    monkeypatch: pytest.MonkeyPatch, cards: list[Gpu], settings: dict[str, object], visible: str, reason: str
) -> None:
    monkeypatch.setattr(GPUMonitor, "read", lambda self: cards)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert queue_runner.Obstacles()(RunConfig(data="d", **settings)) == reason


def test_a_run_waits_while_another_is_trained_and_says_so(runs: Path) -> None:
    other = RunDirectory.create(RunConfig(data="d", output_dir=str(runs)))
    with RunIndex() as index:
        index.add(other.path)
    entry = add(runs)
    obstacles = queue_runner.Obstacles()
    said = []
    with other.hold_lock():

        def pause() -> None:
            said.append(Queue().read().runner)
            assert begun(runs) == []
            if len(said) == 2:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            queue_runner.serve(Queue(), obstacles, pause)
    assert said == [f"run {other.run_id} is being trained"] * 2
    assert obstacles(RunConfig(data="d")) == ""
    assert [each.run_id for each in Queue().read().waiting] == [entry]


def test_whoever_has_work_starts_a_runner_unless_one_lives(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backprop.runs.queue.RUNNER", "killed_runner")
    real, started = subprocess.Popen, list[subprocess.Popen[bytes]]()
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **more: started.append(real(*words, **more)))
    queue = Queue()
    queue.ensure_runner()
    assert not queue.home.exists()
    os.mkfifo(runs / "go")
    entry = add(runs, "wait")
    assert (queue.ensure_runner().runner, queue.read().runner) == ("", "")  # at once, while its Python is loading
    with (runs / "go").open("w"), monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)
        queue.ensure_runner()
    (runner,) = started
    assert runner.wait(PATIENCE) == 0
    assert ended() == [(entry, "done")]
    assert (queue.home / "runner.log").read_text().strip().isdigit()


@pytest.mark.parametrize(
    ("asked", "length"),
    [
        ({"steps": 1}, "1 step"),
        ({"steps": 1_234_567}, "1,234,567 steps"),
        ({"epochs": 1.0}, "1 epoch"),
        ({"epochs": 2.5}, "2.5 epochs"),
        ({}, "auto epochs"),
    ],
)
def test_how_long_an_entry_is_to_be_is_said_as_it_was_asked_for(asked: dict[str, Any], length: str) -> None:
    assert Entry(run_id="a", added=0.0, config=RunConfig(data="d", **asked)).length == length
