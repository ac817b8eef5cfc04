from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from backprop.core.errors import EXIT_INTERRUPTED, InvalidSettingError, MissingDependencyError, RunError
from backprop.core.events import AnyEvent, Heartbeat, Pause, RunFailed, RunFinished, Stop, encode
from backprop.core.settings import RunConfig
from backprop.runs import engine_client, engine_process
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_client import EngineClient
from backprop.runs.engine_process import WarmEngine
from backprop.runs.queue import Queue
from backprop.runs.state import read_run
from backprop.worker.setup import quiet_libraries
from made_events import started, step
from patience import PATIENCE
from recorded_runs import record

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(autouse=True)
def talking_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "ENGINE", "talking_engine")
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


def test_the_end_of_an_engine_is_not_slept_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = start(tmp_path, "3")
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: pytest.fail("it sleeps"))
    monkeypatch.setattr(engine_client, "time", clock)
    assert len(read_to_end(watched)) == 4


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


@pytest.mark.parametrize(
    ("setting", "missing"),
    [("backend mlx", "mlx, mlx_lm"), ("mode qlora", "bitsandbytes"), ("optim adamw_8bit", "bitsandbytes")],
)
def test_without_what_it_needs_a_run_is_neither_begun_nor_queued_nor_made_a_failed_one(
    setting: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in missing.split(", "):
        monkeypatch.setitem(sys.modules, module, None)
    name, value = setting.split()
    config = RunConfig(data="d", output_dir=str(tmp_path / "output"), **{name: value})
    for begin in (engine_client.start, Queue().add):
        with pytest.raises(MissingDependencyError, match=f"--{setting} needs {missing}"):
            begin(config)
    assert not (tmp_path / "output").exists()
    assert Queue().read().entries == []
    asked, chosen = (RunConfig(data="d", mode="auto"), config) if name == "mode" else (config, config)
    run = record(tmp_path, "a" * 12, chosen)
    run.update_record(config=asked)
    before = run.journal.read_bytes()
    for go_on in (engine_client.resume, lambda path: engine_client.extend(path, 9)):
        with pytest.raises(MissingDependencyError, match=missing):
            go_on(run.path)
    assert run.journal.read_bytes() == before
    assert not run.log.exists()


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


@pytest.mark.parametrize("spelling", ["{run}", "{out}/../{out.name}/{run.name}", "{out}/link"])
def test_killing_a_run_ends_its_engine_however_its_directory_is_spelt(tmp_path: Path, spelling: str) -> None:
    watched = start(tmp_path, "1 obey")
    (tmp_path / "link").symlink_to(watched.directory.path)
    attached = engine_client.attach(Path(spelling.format(run=watched.directory.path, out=tmp_path)))
    deadline = time.monotonic() + PATIENCE
    while not attached.read(1.0):
        assert time.monotonic() < deadline
    attached.kill()
    assert watched.wait(PATIENCE) == -9
    assert not attached.alive()


def test_of_two_engines_started_in_the_same_instant_one_is_told_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(tmp_path, "0 obey")
    second = engine_client.launch(first.directory, "resume")
    winner, refused = None, None
    deadline = time.monotonic() + PATIENCE
    while refused is None or winner is None:
        assert time.monotonic() < deadline
        for link in (first, second):
            try:
                winner = link if link.read(0.1) and link.alive() else winner
            except RunError as error:
                refused = error
    assert refused.code == "RUN_ALREADY_ACTIVE"
    winner.send(Stop())
    seen = [event.seq for event in read_to_end(engine_client.attach(first.directory.path))]
    assert seen == sorted(set(seen)), "two engines wrote the journal"


def test_an_interrupt_in_the_first_instant_is_an_interrupted_run(tmp_path: Path) -> None:
    watched = start(tmp_path, "0 sleep")
    watched.interrupt()
    ended = read_to_end(watched)[-1]
    assert isinstance(ended, RunFinished)
    assert ended.status == "interrupted"
    assert watched.wait(PATIENCE) == 130


def test_an_interrupt_that_a_library_swallows_ends_the_run_at_its_next_phase(tmp_path: Path) -> None:
    watched = start(tmp_path, "0 swallow")
    deadline = time.monotonic() + PATIENCE
    while not watched.read(1.0):
        assert time.monotonic() < deadline
    watched.interrupt()
    ended = read_to_end(watched)[-1]
    assert isinstance(ended, RunFinished)
    assert ended.status == "interrupted"


def test_a_waiting_engine_that_was_killed_is_hinted_at_and_ended_like_any_other(tmp_path: Path) -> None:
    warm = WarmEngine()
    os.kill(warm.pid, 9)
    process = warm._process
    assert process is not None
    process.wait(PATIENCE)
    warm.hint(RunConfig(data=str(tmp_path / "d")))
    warm.end()
    assert process.returncode == -9


def test_the_time_of_a_run_is_without_its_pauses(tmp_path: Path) -> None:
    ended = read_to_end(start(tmp_path, "0 pause"))[-1]
    assert isinstance(ended, RunFinished)
    assert 0 < ended.duration_seconds < PATIENCE


def test_the_time_of_a_continued_run_is_the_time_worked(tmp_path: Path) -> None:
    watched = start(tmp_path, "0 start")
    read_to_end(watched)
    content = watched.directory.journal.read_bytes()
    started, finished = (msgspec.json.decode(line) for line in content.splitlines())
    started["time"] -= 5000
    finished["time"] = started["time"] + 1000
    watched.directory.journal.write_bytes(b"".join(msgspec.json.encode(e) + b"\n" for e in (started, finished)))
    events = read_to_end(engine_client.launch(watched.directory, "resume"))
    assert isinstance(events[-1], RunFinished)
    assert 1000 <= events[-1].duration_seconds < 1000 + PATIENCE
    assert read_run(watched.directory.path).duration_seconds == pytest.approx(events[-1].duration_seconds, abs=1)


def test_an_engine_of_one_process_waits_for_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_SIZE", "ACCELERATE_X")
    names += ("TORCHELASTIC_RUN_ID", "PMI_SIZE", "LOCAL_WORLD_SIZE")
    for name in names:
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("RANKING", "kept")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    quiet_libraries()
    assert not set(names) & set(os.environ)
    assert os.environ["RANKING"] == "kept"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_hang_up_ends_nothing_and_a_signal_to_stop_ends_in_order(number: signal.Signals, tmp_path: Path) -> None:
    watched = start(tmp_path, "1 obey")
    deadline = time.monotonic() + PATIENCE
    while not any(isinstance(event, Heartbeat) for event in watched.read(1.0)):
        assert time.monotonic() < deadline
    pid = watched.directory.lock_holder().pid
    os.kill(pid, signal.SIGHUP)
    os.kill(pid, number)
    end = read_to_end(watched)[-1]
    assert isinstance(end, RunFinished)
    assert end.status == "interrupted"
    assert watched.wait(PATIENCE) == EXIT_INTERRUPTED


def test_secrets_stand_neither_in_the_journal_nor_in_the_log(tmp_path: Path) -> None:
    watched = start(tmp_path, "1 leak")
    assert isinstance(read_to_end(watched)[-1], RunFailed)
    written = watched.directory.journal.read_text() + watched.directory.log.read_text()
    assert "a library prints token=" in written
    assert all(word in written for word in ("was refused", "another than", "Traceback"))
    assert "hunter2" not in written


def test_a_command_to_a_control_that_is_no_pipe_is_refused(tmp_path: Path) -> None:
    watched = start(tmp_path, "1 obey")
    control = watched.directory.control
    kept = control.rename(control.with_name("pipe"))
    control.touch()
    with pytest.raises(RunError) as caught:
        watched.send(Pause())
    assert caught.value.code == "RUN_DAMAGED"
    kept.replace(control)
    watched.kill()


def test_a_lock_that_names_a_stranger_gets_nobody_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = start(tmp_path, "1 obey")
    attached = engine_client.attach(watched.directory.path)
    deadline = time.monotonic() + PATIENCE
    while not attached.read(1.0):
        assert time.monotonic() < deadline
    killed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", lambda pid, number: killed.append(pid))
        patch.setattr(os, "kill", lambda pid, number: killed.append(pid))
        watched.directory.lock.write_text(f'{{"pid": {os.getpid()}, "time": 1}}')
        attached.kill()
        attached.interrupt()
    assert killed == []
    watched.kill()


def test_a_journal_that_is_deleted_meanwhile_goes_on(tmp_path: Path) -> None:
    watched = start(tmp_path, "5 obey")
    attached = engine_client.attach(watched.directory.path)
    deadline = time.monotonic() + PATIENCE
    while not any(isinstance(event, Heartbeat) for event in attached.read(1.0)):
        assert time.monotonic() < deadline
    watched.directory.journal.unlink()
    watched.send(Stop())
    assert isinstance(read_to_end(attached)[-1], RunFinished)
    state = read_run(watched.directory.path)
    assert state.status == "done"
    assert state.damage == ["events.jsonl: 6 events are missing"]


def test_what_cannot_go_on_is_refused_before_an_engine_starts(directory: RunDirectory) -> None:
    with directory.hold_lock():
        pass  # an engine was here, so that the run is not about to start
    directory.journal.write_bytes(encode(Heartbeat(run_id="another", seq=1, time=1.0)))
    for go_on in (engine_client.resume, lambda path: engine_client.extend(path, 50)):
        with pytest.raises(RunError, match="belongs to run another") as caught:
            go_on(directory.path)
        assert caught.value.code == "RUN_DAMAGED"
    directory.journal.unlink()
    with pytest.raises(InvalidSettingError):
        engine_client.extend(directory.path, 10**30)
    directory.record.unlink()
    directory.journal.touch()
    with pytest.raises(RunError, match=r"run\.json is missing"):
        engine_client.resume(directory.path)
    assert not directory.log.exists()


def test_an_engine_started_ahead_does_the_run_it_is_given_once(tmp_path: Path) -> None:
    warm = WarmEngine()
    config = RunConfig(data="d", run_name="3", output_dir=str(tmp_path))
    first = engine_client.start(config, warm=warm)
    second = engine_client.start(config, warm=warm)
    for watched in (first, second):
        assert [event.seq for event in read_to_end(watched)] == [1, 2, 3, 4]
        assert watched.wait(PATIENCE) == 0
        assert watched.directory.log.read_text().count("a library prints\n") == 3


def test_an_engine_started_ahead_can_be_killed_like_any_other(tmp_path: Path) -> None:
    watched = engine_client.start(RunConfig(data="d", run_name="1 sleep", output_dir=str(tmp_path)), warm=WarmEngine())
    watched.read(PATIENCE)
    attached = engine_client.attach(watched.directory.path)
    attached.kill()
    assert watched.wait(PATIENCE) == -9


def test_an_engine_that_died_while_it_waited_is_replaced(tmp_path: Path) -> None:
    warm = WarmEngine()
    os.kill(warm.pid, 9)
    os.waitid(os.P_PID, warm.pid, os.WEXITED | os.WNOWAIT)
    watched = engine_client.start(RunConfig(data="d", run_name="3", output_dir=str(tmp_path)), warm=warm)
    assert len(read_to_end(watched)) == 4


def hinted(warm: WarmEngine, file: Path, *stories: str) -> list[str]:
    """Give hints one after the other, each once the engine works on the one before; what it then has worked on."""
    deadline = time.monotonic() + PATIENCE
    file.touch()
    for story in stories:
        before = file.read_text()
        warm.hint(RunConfig(data=str(file), run_name=story))
        while not file.read_text().startswith(f"{before}{story}\n"):
            assert time.monotonic() < deadline, f"it does not get ready for {story}"
    return file.read_text().split()


def test_an_engine_started_ahead_turns_to_the_newest_hint_and_then_to_its_run(tmp_path: Path) -> None:
    warm = WarmEngine()
    assert hinted(warm, tmp_path / "ready", "fail", "work", "other", "work") == ["fail", "work", "other", "work"]
    config = RunConfig(data="d", run_name="3", output_dir=str(tmp_path))
    watched = engine_client.start(config, warm=warm)
    assert [event.seq for event in read_to_end(watched)] == [1, 2, 3, 4]
    assert watched.wait(PATIENCE) == 0
    warm.hint(config)  # nobody waits any more: nothing happens


def test_an_engine_is_ended_while_it_gets_ready(tmp_path: Path) -> None:
    warm = WarmEngine()
    hinted(warm, tmp_path / "ready", "load")
    waits = os.pidfd_open(warm.pid)
    warm.end()
    assert select.select([waits], [], [], PATIENCE)[0]
    os.close(waits)
    warm.hint(RunConfig(data="d"))


@pytest.mark.parametrize("hint", ["", "load"])
def test_an_engine_that_waits_ends_with_whoever_started_it(tmp_path: Path, hint: str) -> None:
    script = """
import os, sys
from pathlib import Path
from backprop.core.settings import RunConfig
from backprop.runs import engine_process
from backprop.runs.engine_process import WarmEngine
engine_process.ENGINE = "talking_engine"
warm, file = WarmEngine(), Path(sys.argv[1])
if hint := sys.argv[2]:
    warm.hint(RunConfig(data=str(file), run_name=hint))
    while not file.exists():
        pass
print(warm.pid, flush=True)
os.kill(os.getpid(), 9)"""
    words = [sys.executable, "-c", script, str(tmp_path / "ready"), hint]
    starter = subprocess.run(words, stdout=subprocess.PIPE, check=False)
    with contextlib.suppress(ProcessLookupError):
        waits = os.pidfd_open(int(starter.stdout))
        assert select.select([waits], [], [], PATIENCE)[0], "it waits for ever"
        os.close(waits)


def test_what_a_full_disk_keeps_from_the_journal_comes_by_the_pipe(directory: RunDirectory, tmp_path: Path) -> None:
    told = [
        started(),
        step(1),
        step(2),
        RunFailed(code="RUNTIME_DISK_FULL", message="no room", hint="", retryable=True),
    ]
    for seq, event in enumerate(told, 1):
        event.run_id, event.seq = directory.run_id, seq
    directory.journal.write_bytes(b"".join(map(encode, told[:2])))
    (tmp_path / "pipe").write_bytes(b"".join(map(encode, told[2:])))
    engine = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    engine.wait()
    assert [event.seq for event in read_to_end(EngineClient(directory, engine))] == [1, 2, 3, 4]


def test_a_command_that_cannot_reach_a_living_engine_does_not_call_it_gone(tmp_path: Path) -> None:
    watched = start(tmp_path, "1 obey")
    while not watched.read(PATIENCE):
        pass
    watched.directory.control.unlink()
    with pytest.raises(RunError, match="is gone") as caught:
        engine_client.attach(watched.directory.path).send(Pause())
    assert f"`kill -INT {watched.directory.lock_holder().pid}`" in caught.value.hint
    watched.kill()
    watched.wait(PATIENCE)
    with pytest.raises(RunError, match="no engine is working"):
        watched.send(Pause())


def test_an_engine_whose_run_was_deleted_is_not_to_be_resumed(directory: RunDirectory) -> None:
    shutil.rmtree(directory.path)
    assert engine_client.attach(directory.path).crash().hint.startswith("the directory was deleted meanwhile")
