"""Disks that fill up or turn read-only under a running engine: the run goes on, and what was saved stays good."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backprop.core.events import Stop
from backprop.runs import engine_client
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from commands import Command, sequence
from place import ENDLESS, Place

# A wide adapter: its checkpoint is larger than the journal of these runs.
FLAGS = ["--lora-r", "256", "--steps", str(ENDLESS), "--save-steps", "20", "--json"]


def start(place: Place, output: Path) -> tuple[Command, RunDirectory]:
    """A run that has saved once."""
    command = Command(["train", *place.plain, *FLAGS, "--output", str(output)], place.folder)
    command.until(is_saved)
    (path,) = (each for each in output.iterdir() if each.is_dir())
    return command, RunDirectory(path)


def is_saved(event: dict[str, Any]) -> bool:
    return event["type"] == "checkpoint_saved"


def is_failed_save(event: dict[str, Any]) -> bool:
    return event["type"] == "checkpoint_failed"


def good_checkpoint(directory: RunDirectory) -> int:
    """Step of the newest checkpoint that verifies."""
    newest, _ = CheckpointStore(directory.checkpoints, directory.run_id).newest_valid()
    assert newest is not None
    return newest.step


def goes_on(command: Command, step: int) -> None:
    command.until(lambda event: event["type"] == "step" and event["step"] >= step + 30)


def stop(command: Command, directory: RunDirectory) -> None:
    engine_client.attach(directory.path).send(Stop())
    code, rest = command.finish()
    assert code == 0
    assert (rest[-1]["type"], rest[-1]["status"]) == ("run_finished", "stopped")
    assert good_checkpoint(directory) == rest[-1]["steps"]
    assert (directory.adapter / "adapter_model.safetensors").is_file()
    assert sequence(directory) == list(range(1, rest[-1]["seq"] + 1))


@pytest.mark.skipif(sys.platform != "linux", reason="limiting another process's files needs Linux")
def test_a_write_that_fails_half_way_costs_that_checkpoint_alone(place: Place, tmp_path: Path) -> None:
    command, directory = start(place, tmp_path / "limited")
    pid = directory.lock_holder().pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in directory.checkpoints.rglob("*.safetensors"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest // 2, hard))

    failed = command.until(is_failed_save)

    assert failed["code"] == "RUNTIME_DISK_FULL"
    assert "free some space" in failed["hint"]
    assert good_checkpoint(directory) < failed["step"]
    assert list(directory.checkpoints.glob(".*")) == []
    goes_on(command, failed["step"])
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    command.until(is_saved)
    stop(command, directory)


def mount(*arguments: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path, place: Place) -> Iterator[Path]:
    """A file system of 48 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_saves_and_not_the_run_and_no_event_is_lost(place: Place, small_disk: Path) -> None:
    filler = small_disk / "filler"
    command, directory = start(place, small_disk / "out")
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(2**16)):
                pass
        except OSError as error:
            full = error

    failed = command.until(is_failed_save)

    assert full.strerror == "No space left on device"
    assert failed["code"] == "RUNTIME_DISK_FULL"
    assert good_checkpoint(directory) < failed["step"]
    filler.unlink()
    goes_on(command, failed["step"])
    command.until(is_saved)
    stop(command, directory)


def test_a_checkpoint_directory_that_turns_read_only_stops_saves_and_not_the_run(place: Place, tmp_path: Path) -> None:
    command, directory = start(place, tmp_path / "out")
    folder = str(directory.checkpoints)
    if os.geteuid() == 0:  # who may write whatever the permissions say
        mount("--bind", folder, folder)
        mount("-o", "remount,bind,ro", folder)
    else:
        directory.checkpoints.chmod(0o555)
    try:
        failed = command.until(is_failed_save)
        assert failed["code"] == "RUNTIME_IO_FAILED"
        assert good_checkpoint(directory) < failed["step"]
        goes_on(command, failed["step"])
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)
        else:
            directory.checkpoints.chmod(0o755)
    command.until(is_saved)
    stop(command, directory)
