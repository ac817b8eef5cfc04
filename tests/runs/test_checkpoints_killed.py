"""The process killed at every single file operation of a save, and disks that are full or read-only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from backprop.core.errors import CheckpointError
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.retention import CheckpointPolicy

CHILD = """
import os, signal, sys
from pathlib import Path
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.retention import CheckpointPolicy

directory, fatal = sys.argv[1], int(sys.argv[2])
count = 0

def watch(event, arguments):
    # Every opening, making, renaming and removing below the directory is a moment to die at.
    global count
    if event in ("open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.listdir", "os.scandir", "shutil.rmtree"):
        if any(isinstance(item, (str, Path)) and str(item).startswith(directory) for item in arguments):
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

def write(folder):
    for name in ("weights", "state"):
        for half in (b"first half", b"second half"):
            with (folder / name).open("ab") as file:
                file.write(half * 1000)

sys.addaudithook(watch)
store = CheckpointStore(Path(directory), "run-a")
store.remove_leftovers()
store.save(200, write)
store.prune(CheckpointPolicy(keep_best_n=0))
store.save(200, write)
store.prune(CheckpointPolicy(keep_best_n=0))
"""


def write(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 1000)


def test_a_kill_at_any_moment_of_save_and_prune_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    for fatal in range(1, 200):
        directory = tmp_path / str(fatal)
        store = CheckpointStore(directory, "run-a")
        store.save(100, write)
        child = subprocess.run([sys.executable, "-c", CHILD, str(directory), str(fatal)], timeout=60, check=False)
        found, broken = store.newest_valid()
        assert found is not None, f"nothing left after a kill at operation {fatal}"
        assert broken == [], f"something half made looks like a checkpoint after a kill at operation {fatal}"
        assert found.step in (100, 200)
        store.remove_leftovers()
        store.prune(CheckpointPolicy(keep_best_n=0))
        assert [path.name for path in directory.iterdir()] == [found.path.name]
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
    assert child.returncode == 0
    assert fatal > 40, "the child was watched at too few operations"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB of its own."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mounted)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def test_a_disk_that_fills_up_during_the_save_keeps_the_previous_one(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "checkpoints", "run-a")
    older = store.save(100, write)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        store.save(200, lambda folder: (folder / "weights").write_bytes(bytes(40 * 2**20)) and None)
    assert caught.value.code == "RUNTIME_DISK_FULL"
    assert store.newest_valid() == (older, [])
    assert [path.name for path in store.directory.iterdir()] == ["step-00000100"]
    assert store.newest_valid()[0] == older
    store.save(300, write)


def test_a_disk_too_full_for_the_save_is_seen_before_it_begins(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "checkpoints", "run-a")
    store.save(100, write)
    with pytest.raises(CheckpointError, match="no room"):
        store.save(200, write, needed=20 * 2**20)


def test_a_read_only_disk_is_a_clear_error_and_the_previous_one_verifies(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "checkpoints", "run-a")
    older = store.save(100, write)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointError, match="Read-only file system") as caught:
        store.save(200, write)
    assert caught.value.code == "RUNTIME_IO_FAILED"
    assert store.newest_valid() == (older, [])


LIMITED = """
import resource, sys
from pathlib import Path
from backprop.core.errors import CheckpointError
from backprop.runs.checkpoints import CheckpointStore

store = CheckpointStore(Path(sys.argv[1]), "run-a")
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    store.save(200, lambda folder: (folder / "weights").write_bytes(bytes(2**20)) and None)
except CheckpointError as error:
    print(error.code)
"""


def test_a_file_size_limit_keeps_the_previous_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", "run-a")
    older = store.save(100, write)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(store.directory)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "RUNTIME_DISK_FULL"
    assert store.newest_valid() == (older, [])
    assert [path.name for path in store.directory.iterdir()] == ["step-00000100"]
