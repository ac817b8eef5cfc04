"""Checkpoints are written beside training; a save that fails is told and nothing else happens."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from backprop.core.errors import CheckpointError
from backprop.core.events import CheckpointFailed, CheckpointPruned, CheckpointSaved, Event, Warning  # noqa: A004
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.retention import CheckpointPolicy
from backprop.train.checkpoint import Snapshot
from backprop.train.persistence.checkpointing import Saver


def snapshot(step: int, size: int = 1000) -> Snapshot:
    return Snapshot(step, {"w": torch.full((size,), float(step))}, {"m": torch.zeros(size)}, {"step": step})


class Held(Snapshot):
    """A snapshot whose writing waits until it is let go."""

    begun: threading.Event
    go: threading.Event

    @classmethod
    def at(cls, step: int) -> Held:
        plain = snapshot(step)
        held = cls(plain.step, plain.weights, plain.tensors, plain.state)
        object.__setattr__(held, "begun", threading.Event())
        object.__setattr__(held, "go", threading.Event())
        return held

    def write(self, folder: Path) -> None:
        self.begun.set()
        assert self.go.wait(60)
        super().write(folder)


def no_state() -> Snapshot:
    raise AssertionError("these tests bring their own snapshots")


def saver(
    store: CheckpointStore,
    emit: Callable[[Event], None],
    policy: CheckpointPolicy = CheckpointPolicy(),  # noqa: B008
    in_use: Iterable[int] = (),
) -> Saver:
    return Saver(store, emit, no_state, {}, policy=policy, in_use=in_use)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", "run-a")


@pytest.fixture
def saving(store: CheckpointStore, events: list[Event]) -> Iterator[Saver]:
    made = saver(store, events.append, CheckpointPolicy(keep_best_n=0, keep_last=2), in_use=[1])
    yield made
    made.close()


def test_training_goes_on_while_a_checkpoint_is_written(
    saving: Saver, store: CheckpointStore, events: list[Event]
) -> None:
    held = Held.at(10)
    saving.write(held, "time", 0.25)
    assert held.begun.wait(60)
    assert saving.writing
    assert events == []
    held.go.set()
    saving.wait()
    assert not saving.writing
    (saved,) = events
    assert isinstance(saved, CheckpointSaved)
    assert (saved.step, saved.reason, saved.seconds_blocked) == (10, "time", 0.25)
    assert saved.seconds >= saved.seconds_blocked
    newest, _ = store.newest_valid()
    assert newest is not None
    assert (str(newest.path), newest.bytes) == (saved.path, saved.bytes)


def test_a_second_save_waits_for_the_first_and_none_is_lost(
    saving: Saver, store: CheckpointStore, events: list[Event]
) -> None:
    held = Held.at(10)
    saving.write(held, "time")
    second = threading.Thread(target=lambda: saving.write(snapshot(11), "asked for"))
    second.start()
    assert held.begun.wait(60)
    held.go.set()
    second.join(60)
    saving.wait()
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [10, 11]


def test_what_is_pruned_is_told_and_the_one_resumed_from_stays(
    saving: Saver, store: CheckpointStore, events: list[Event]
) -> None:
    for step in (1, 2, 3, 4):
        saving.write(snapshot(step), "steps")
    saving.wait()
    assert [event.step for event in events if isinstance(event, CheckpointPruned)] == [2]
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [1, 3, 4]


def test_closing_waits_for_the_save_in_progress(store: CheckpointStore, events: list[Event]) -> None:
    saving = saver(store, events.append)
    saving.write(snapshot(5, size=1_000_000), "end")
    saving.close()
    assert [type(event) for event in events] == [CheckpointSaved]
    assert store.verify(store.directory / "step-00000005") == []


def test_a_failed_save_is_told_and_the_next_one_succeeds(
    saving: Saver, store: CheckpointStore, events: list[Event]
) -> None:
    store.directory.write_text("in the way")
    saving.write(snapshot(1), "steps")
    saving.wait()
    (told,) = events
    assert isinstance(told, CheckpointFailed)
    assert (told.step, told.code) == (1, "RUNTIME_IO_FAILED")
    assert "checkpoints" in told.message
    assert told.hint
    store.directory.unlink()
    saving.write(snapshot(2), "steps")
    saving.wait()
    assert isinstance(events[-1], CheckpointSaved)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckpointError("it holds a lambda"), "STATE_CHECKPOINT_INVALID"),
        (MemoryError("no memory"), "RUNTIME_IO_FAILED"),
        (RuntimeError("CUDA error"), "RUNTIME_IO_FAILED"),
    ],
)
def test_a_state_that_cannot_be_copied_is_told_and_training_goes_on(
    store: CheckpointStore, events: list[Event], error: Exception, code: str
) -> None:
    def broken() -> Snapshot:
        raise error

    saving = Saver(store, events.append, broken, {}, every_steps=1, policy=CheckpointPolicy())
    saving.after_step(4)
    (told,) = events
    assert isinstance(told, CheckpointFailed)
    assert (told.step, told.code, str(error) in told.message) == (4, code, True)


def test_the_last_save_is_made_again_where_it_failed_before(store: CheckpointStore, events: list[Event]) -> None:
    saving = Saver(store, events.append, lambda: snapshot(3), {}, every_steps=3, policy=CheckpointPolicy())
    store.directory.write_text("in the way")
    saving.after_step(3)
    saving.wait()
    store.directory.unlink()
    for _ in range(2):  # once it is on disk nothing is left to do
        saving.finish(3, "final")
    assert [type(event) for event in events] == [CheckpointFailed, CheckpointSaved]


def test_a_defect_while_writing_is_told_and_not_swallowed(saving: Saver, events: list[Event]) -> None:
    class Defective(Snapshot):
        def write(self, folder: Path) -> None:
            raise ZeroDivisionError("a defect")

    saving.write(Defective(1, {}, {}, {}), "steps")
    saving.wait()
    (told,) = events
    assert isinstance(told, CheckpointFailed)
    assert (told.code, told.message) == ("RUNTIME_INTERNAL", "ZeroDivisionError: a defect")


def test_when_old_checkpoints_cannot_be_deleted_the_new_one_still_counts(
    saving: Saver, store: CheckpointStore, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CheckpointError("Permission denied", code="RUNTIME_IO_FAILED")

    monkeypatch.setattr(CheckpointStore, "prune", refuse)
    saving.write(snapshot(1), "steps")
    saving.wait()
    assert [type(event) for event in events] == [CheckpointSaved, Warning]


def test_a_listener_that_fails_does_not_hang_the_next_save(store: CheckpointStore) -> None:
    def deaf(event: Event) -> None:
        raise BrokenPipeError("nobody listens")

    saving = saver(store, deaf)
    for step in (1, 2):
        saving.write(snapshot(step), "steps")
    with pytest.raises(BrokenPipeError):
        saving.close()
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [1, 2]


def test_without_room_before_the_first_step_another_disk_is_named(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"no room for a checkpoint") as refused:
        saver(store, [].append).require_space(5000)
    assert refused.value.hint == "free some space; --output can name another disk"


def test_a_disk_that_fills_while_tensors_are_written_is_told_as_that(
    tmp_path: Path, request: pytest.FixtureRequest, events: list[Event]
) -> None:
    small = tmp_path / "disk"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(small)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode != 0:
        pytest.skip(f"mounting a small tmpfs is not allowed here: {done.stderr.strip()}")
    request.addfinalizer(lambda: subprocess.run(["umount", str(small)], check=True))
    store = CheckpointStore(small / "checkpoints", "run-a")
    older = store.save(1, snapshot(1).write)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        store.save(2, snapshot(2, size=4_000_000).write)
    assert caught.value.code == "RUNTIME_DISK_FULL"
    assert store.newest_valid() == (older, [])
    saving = saver(store, events.append)
    saving.write(snapshot(3, size=4_000_000), "steps")
    saving.close()
    (told,) = events
    assert isinstance(told, CheckpointFailed)
    assert "no room for a checkpoint" in told.message
    assert store.newest_valid() == (older, [])
