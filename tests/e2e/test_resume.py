"""Runs that are killed, interrupted, damaged, lengthened and branched, with real engines behind the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from commands import Command, kill_engine, kill_engine_while_saving, leftovers, losses, sequence
from msgspec.structs import replace
from place import Place

STEPS = 240
FLAGS = ["--steps", str(STEPS), "--save-steps", "5", "--json"]


class Workshop:
    """A place with a home of its own: runs made here outlast the test that made them."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.place = Place(folder, model)
        self.env = {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("CACHE", "DATA", "CONFIG", "STATE")}

    def command(self, *argv: str) -> Command:
        return Command(argv, self.place.folder, self.env)

    def train(self, output: Path | None = None) -> Command:
        place = self.place
        return self.command("train", *place.plain, "--lora-r", "2", *FLAGS, "--output", str(output or place.output))

    def copy(self, directory: RunDirectory, folder: Path) -> RunDirectory:
        """The run as it is now, in another output folder; its rows and model stay where they are."""
        ignore = shutil.ignore_patterns("control")
        return RunDirectory(Path(shutil.copytree(directory.path, folder / directory.run_id, ignore=ignore)))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path_factory.mktemp("workshop"), tiny_model)
    yield made
    made.place.kill_engines()


@pytest.fixture(scope="module")
def uninterrupted(workshop: Workshop) -> list[tuple[int, float]]:
    """Steps and losses of a run that nobody disturbed."""
    output = workshop.place.folder / "undisturbed"
    code, _ = workshop.train(output).finish()
    assert code == 0
    (path,) = output.iterdir()
    return losses(RunDirectory(path))


@pytest.fixture(scope="module")
def interrupted(workshop: Workshop) -> RunDirectory:
    """A run that Ctrl+C ended after some thirty steps."""
    command = workshop.train()
    command.until(lambda event: event["type"] == "step" and event["step"] == 30)
    command.process.send_signal(signal.SIGINT)
    code, rest = command.finish()
    assert code == 130
    assert (rest[-1]["type"], rest[-1]["status"]) == ("run_finished", "interrupted")
    return workshop.place.run()


def stores(directory: RunDirectory) -> CheckpointStore:
    return CheckpointStore(directory.checkpoints, directory.run_id)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def failure(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert events[-1]["type"] == "run_failed"
    return events[-1]


def test_a_run_killed_again_and_again_has_the_losses_of_an_undisturbed_one(
    workshop: Workshop, uninterrupted: list[tuple[int, float]]
) -> None:
    output = workshop.place.folder / "killed"
    command = workshop.train(output)
    command.until(lambda event: event["type"] == "checkpoint_saved" and event["step"] >= 15)
    (path,) = output.iterdir()
    directory = RunDirectory(path)
    kill_engine_while_saving(directory)
    code, rest = command.finish()
    assert code == 2
    assert rest[-1]["error"]["code"] == "RUNTIME_ENGINE_CRASHED"
    assert read_run(path).status == "crashed"

    # While it loads, before its first step.
    command = workshop.command("resume", directory.run_id, "--json")
    resumed = command.until(lambda event: event["type"] == "run_started" and event["resumed_from"] is not None)
    assert resumed["run_id"] == directory.run_id
    assert resumed["resumed_from"] >= 15
    kill_engine(directory)
    command.finish()
    first = read_run(path).step

    # In the middle of a step, or between two.
    command = workshop.command("resume", directory.run_id, "--json")
    command.until(lambda event: event["type"] == "step" and event["step"] >= first + 40)
    kill_engine(directory)
    command.finish()

    command = workshop.command("resume", directory.run_id, "--json")
    code, told = command.finish()

    assert code == 0
    assert losses(directory) == uninterrupted
    assert len(uninterrupted) == STEPS
    assert sequence(directory) == list(range(1, told[-1]["seq"] + 1))
    assert [event["seq"] for event in told] == sequence(directory)
    assert {event["run_id"] for event in told} == {directory.run_id}
    assert (told[-1]["type"], told[-1]["status"], told[-1]["steps"]) == ("run_finished", "done", STEPS)
    assert leftovers(directory) == []
    last_start = [event["resumed_from"] for event in told if event["type"] == "run_started"][-1]
    assert last_start in [each.step for each in stores(directory).checkpoints()]
    assert all(stores(directory).verify(each.path) == [] for each in stores(directory).checkpoints())


def test_an_interrupted_run_goes_on_to_its_end_and_is_then_lengthened_and_branched(
    workshop: Workshop, interrupted: RunDirectory, uninterrupted: list[tuple[int, float]], tmp_path: Path
) -> None:
    directory = workshop.copy(interrupted, tmp_path)
    run = str(directory.path)
    newest = stores(directory).checkpoints()[-1]
    truncate(newest.path / next(name for name in newest.manifest.files if name.endswith(".safetensors")))

    code, told = workshop.command("resume", run, "--json").finish()
    assert code == 0
    (passed_over,) = [event for event in told if event.get("code") == "STATE_CHECKPOINT_INVALID"]
    assert newest.path.name in passed_over["message"]
    assert "bytes instead of" in passed_over["message"]
    assert [event["resumed_from"] for event in told if event["type"] == "run_started"][-1] < newest.step
    assert losses(directory) == uninterrupted
    assert leftovers(directory) == []

    refused = workshop.command("resume", run)
    assert refused.finish()[0] != 0
    assert "is done" in refused.said
    assert "backprop extend" in refused.said

    code, told = workshop.command("extend", run, "--steps", str(STEPS + 20), "--json").finish()
    assert code == 0
    assert [event["step"] for event in told if event["type"] == "step"][-20:] == list(range(STEPS + 1, STEPS + 21))
    (shown,) = [event for event in told if event.get("code") == "SCHEDULE_CHANGED"]
    assert f"{STEPS + 20} steps instead of {STEPS}" in shown["message"]
    assert losses(directory)[:STEPS] == uninterrupted

    output = tmp_path / "forks"
    code, told = workshop.command("fork", run, "--steps", "8", "--output", str(output), "--json").finish()
    assert code == 0
    (forked,) = output.iterdir()
    assert forked.name != directory.run_id
    steps = [event for event in told if event["type"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 9))
    # The same rows with the same seed: only what was learnt makes the difference.
    assert steps[0]["loss"] < 0.9 * uninterrupted[0][1]


def test_other_data_is_refused_with_the_difference(
    workshop: Workshop, interrupted: RunDirectory, tmp_path: Path
) -> None:
    directory = workshop.copy(interrupted, tmp_path)
    config = directory.read_record().config
    edited = tmp_path / "rows.jsonl"
    lines = Path(config.data).read_text().splitlines()
    row = json.loads(lines[7])
    lines[7] = json.dumps({**row, "output": "Nobody knows."})
    edited.write_text("\n".join(lines) + "\n")
    directory.update_record(config=replace(config, data=str(edited), learning_rate=3e-3))

    code, told = workshop.command("resume", str(directory.path), "--json").finish()

    assert code == 2
    failed = failure(told)
    assert failed["code"] == "STATE_IDENTITY_MISMATCH"
    assert "the data, or how it becomes tokens, was changed" in failed["message"]
    assert "learning_rate was " in failed["message"]
    assert stores(directory).newest_valid()[0] is not None


def test_when_no_checkpoint_is_whole_the_error_says_of_each_why(
    workshop: Workshop, interrupted: RunDirectory, tmp_path: Path
) -> None:
    directory = workshop.copy(interrupted, tmp_path)
    present = stores(directory).checkpoints()
    assert len(present) >= 2
    for checkpoint in present:
        truncate(checkpoint.path / "manifest.json")

    code, told = workshop.command("resume", str(directory.path), "--json").finish()

    assert code == 2
    failed = failure(told)
    assert failed["code"] == "STATE_CHECKPOINT_INVALID"
    assert all(checkpoint.path.name in failed["message"] for checkpoint in present)
    state = read_run(directory.path)
    assert state.status == "interrupted"  # as it was
    assert state.refused is not None
    assert state.refused.code == "STATE_CHECKPOINT_INVALID"


def test_sigterm_ends_a_run_like_ctrl_c(workshop: Workshop, tmp_path: Path) -> None:
    command = workshop.train(tmp_path / "out")
    command.until(lambda event: event["type"] == "step" and event["step"] == 10)
    command.process.terminate()
    code, rest = command.finish()

    assert code == 130
    (path,) = (tmp_path / "out").iterdir()
    state = read_run(path)
    assert state.status == "interrupted"
    newest, broken = stores(RunDirectory(path)).newest_valid()
    assert broken == []
    assert newest is not None
    assert newest.step == state.step == rest[-1]["steps"]
