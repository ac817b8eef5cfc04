from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from backprop.core.errors import ConfigurationError, RunError
from backprop.core.files import new_file
from backprop.core.settings import RunConfig
from backprop.runs import directory as directory_module
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from made_events import started

HOLDER = """
import sys
from pathlib import Path
from backprop.runs.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).hold_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(directory: RunDirectory):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_held_by_another_process_is_seen_and_refused(
    directory: RunDirectory, holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "LOCK_PATIENCE", 0.1)
    assert directory.is_locked()
    assert directory.lock_holder().pid == holder.pid
    with pytest.raises(RunError) as caught, directory.hold_lock():
        pass
    assert caught.value.code == "RUN_ALREADY_ACTIVE"
    assert str(holder.pid) in caught.value.message


def test_a_killed_engine_holds_no_lock(directory: RunDirectory, holder: subprocess.Popen) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not directory.is_locked()
    with directory.hold_lock():
        assert directory.lock_holder().pid == os.getpid()


def test_deleting_the_lock_file_lets_nobody_in(
    directory: RunDirectory, holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "LOCK_PATIENCE", 0.1)
    directory.lock.unlink()
    assert directory.is_locked()
    with pytest.raises(RunError) as caught, directory.hold_lock():
        pass
    assert caught.value.code == "RUN_ALREADY_ACTIVE"


def test_where_a_directory_cannot_be_locked_the_file_is(
    directory: RunDirectory, holder: subprocess.Popen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "LOCK_PATIENCE", 0.1)
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "as NFS says")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert directory.is_locked()
    with pytest.raises(RunError) as caught, directory.hold_lock():
        pass
    assert caught.value.code == "RUN_ALREADY_ACTIVE"


def test_looking_at_a_lock_does_not_take_it(directory: RunDirectory) -> None:
    with directory.hold_lock():
        assert directory.is_locked()
        assert directory.is_locked()
    assert not directory.is_locked()


def test_an_output_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path / "file")))
    assert "--output" in caught.value.hint


def test_a_missing_or_broken_record_says_so(directory: RunDirectory) -> None:
    directory.record.write_text("{")
    with pytest.raises(RunError) as caught:
        directory.read_record()
    assert caught.value.code == "RUN_DAMAGED"
    directory.record.unlink()
    with pytest.raises(RunError, match="missing"):
        directory.read_record()


def test_a_missing_record_is_made_again_from_the_journal(directory: RunDirectory, story: Callable[..., None]) -> None:
    record = directory.read_record()
    config = msgspec.structs.replace(record.config, steps=7, batch_size=2)
    story(started(config=msgspec.to_builtins(config), kind="demo", forked_from="/parent/checkpoint"))
    directory.record.unlink()
    with directory.hold_lock():
        assert directory.restore_record()
        assert not directory.restore_record()
    found = directory.read_record()
    assert (found.config, found.kind, found.run_id) == (config, "demo", record.run_id)
    assert found.forked_from == "/parent/checkpoint"


def test_a_broken_record_is_not_overwritten(directory: RunDirectory, story: Callable[..., None]) -> None:
    story(started())
    directory.record.write_text("{")
    with pytest.raises(RunError) as caught, directory.hold_lock():
        directory.restore_record()
    assert "move it away" in caught.value.hint
    assert directory.record.read_text() == "{"


def test_a_run_whose_journal_was_removed_is_not_starting(directory: RunDirectory) -> None:
    assert directory.is_alive()  # made a moment ago: its engine has yet to take the lock
    with directory.hold_lock():
        pass
    assert not directory.is_alive()


@pytest.mark.parametrize("kind", ["file", "directory", "loop"])
def test_a_control_that_is_no_pipe_is_said(directory: RunDirectory, kind: str) -> None:
    directory.require_control()
    directory.control.unlink()
    directory.require_control()
    make = {
        "file": directory.control.touch,
        "directory": directory.control.mkdir,
        "loop": lambda: directory.control.symlink_to(directory.control),
    }
    make[kind]()
    for check in (directory.require_control, directory.ensure_control):
        with pytest.raises(RunError, match="no named pipe") as caught:
            check()
        assert caught.value.code == "RUN_DAMAGED"


def test_what_a_kill_left_half_written_is_gone_when_the_run_is_held_again(directory: RunDirectory) -> None:
    directory.evaluations.mkdir()
    for left in (directory.path / ".run.json.1.1.partial", directory.evaluations / ".eval.json.7.9.partial"):
        left.write_text("half")
    (directory.path / ".adapter.partial").mkdir()
    (directory.path / ".adapter.partial" / "weights").touch()
    (directory.path / ".adapter.old").mkdir()  # the only copy, where a kill came between two renames
    with new_file(directory.path / "note.json") as writing, directory.hold_lock():
        writing.write(b"{}")
    assert [path.name for path in directory.path.rglob(".*")] == [".adapter.old"]
    assert (directory.path / "note.json").read_bytes() == b"{}"


def test_a_disk_that_is_full_is_said_as_such_and_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(directory_module, "write_json", full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path)))
    assert (caught.value.code, caught.value.exit_code) == ("RUNTIME_DISK_FULL", 2)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_was_killed_before_it_took_the_lock_is_missed_at_once(directory: RunDirectory) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as engine:
        directory.announce(engine.pid)
        assert directory.is_alive()
        engine.kill()
    assert not directory.is_alive()
    assert read_run(directory.path).status == "crashed"


def test_an_engine_that_has_the_lock_already_is_not_announced(directory: RunDirectory) -> None:
    with directory.hold_lock():
        directory.announce(1)
        assert directory.lock_holder().pid == os.getpid()
        assert directory.was_worked_on()


def test_a_tag_of_a_run_whose_record_is_lost_is_kept_beside_what_the_journal_tells(
    directory: RunDirectory, story: Callable[..., None]
) -> None:
    record = directory.read_record()
    story(started(config=msgspec.to_builtins(record.config)))
    directory.record.unlink()
    directory.update_record(tags=["good"])
    found = directory.read_record()
    assert (found.run_id, found.config, found.tags) == (record.run_id, record.config, ["good"])
