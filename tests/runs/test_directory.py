from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from backprop.core.errors import ConfigurationError, RunError
from backprop.core.settings import RunConfig
from backprop.runs import directory as directory_module
from backprop.runs.directory import RunDirectory

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
    assert directory.lock_holder()["pid"] == holder.pid
    with pytest.raises(RunError) as caught, directory.hold_lock():
        pass
    assert caught.value.code == "RUN_ALREADY_ACTIVE"
    assert str(holder.pid) in caught.value.message


def test_a_killed_engine_holds_no_lock(directory: RunDirectory, holder: subprocess.Popen) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not directory.is_locked()
    with directory.hold_lock():
        assert directory.lock_holder()["pid"] == os.getpid()


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
