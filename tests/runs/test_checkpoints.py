"""A run's checkpoints: whatever happens, the last good one is found and a bad one is not taken."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from backprop.core.errors import CheckpointError
from backprop.runs.checkpoints import MANIFEST, CheckpointStore
from backprop.runs.retention import CheckpointPolicy
from written_order import written_order

FILES = {"weights.safetensors": b"weights" * 100, "state.json": b"{}", "optimizer/state.safetensors": b"moments" * 50}
NEWEST_ONLY = CheckpointPolicy(keep_best_n=0)


def write(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", "run-a")


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def test_a_saved_checkpoint_verifies_and_says_what_it_is(store: CheckpointStore) -> None:
    saved = store.save(100, write, reason="time", identity={"data": "abc"}, val_loss=0.5, boundary=True)
    assert saved.path == store.directory / "step-00000100"
    assert store.verify(saved.path) == []
    found, broken = store.newest_valid()
    assert broken == []
    assert found == saved
    assert (saved.step, saved.val_loss, saved.manifest.reason, saved.manifest.identity) == (
        100,
        0.5,
        "time",
        {"data": "abc"},
    )
    assert set(saved.manifest.files) == set(FILES)
    assert saved.bytes == sum(map(len, FILES.values()))
    assert names(store) == ["step-00000100"]


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_then_its_name_is(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = written_order(monkeypatch)
    store.save(100, write)
    aside = store.directory / ".step-00000100.partial"
    named = told.index(("renamed", aside))
    assert {path for what, path in told[:named] if what == "flushed"} >= {
        *(aside / name for name in (*FILES, MANIFEST)),
        *(aside, aside / "optimizer"),
    }
    assert {path for what, path in told[named:] if what == "flushed"} >= {store.directory, store.directory.parent}


def test_a_loss_that_is_not_finite_survives_the_manifest(store: CheckpointStore) -> None:
    store.save(1, write, val_loss=float("nan"))
    loss = store.checkpoints()[0].val_loss
    assert loss is not None
    assert math.isnan(loss)


def test_no_checkpoints_is_an_answer_and_needing_one_an_error(store: CheckpointStore) -> None:
    assert store.newest_valid() == (None, [])
    assert store.remove_leftovers() == []
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        store.require_valid()


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink], ids=["truncated", "altered", "deleted"])
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_damage_to_any_file_is_named_and_the_older_one_used(
    store: CheckpointStore, name: str, damage: Callable[[Path], None]
) -> None:
    older = store.save(100, write)
    newer = store.save(200, write)
    if damage is _flip and name == MANIFEST:
        content = (newer.path / name).read_text()
        (newer.path / name).write_text(content.replace('"sha256": "', '"sha256": "0', 1))
    else:
        damage(newer.path / name)
    found, broken = store.newest_valid()
    assert found == older
    assert [item.path for item in broken] == [newer.path]
    assert len(broken[0].problems) == 1
    assert damage is _flip or name in broken[0].problems[0]


def test_when_every_checkpoint_is_broken_the_error_names_each(store: CheckpointStore) -> None:
    for step in (100, 200):
        (store.save(step, write).path / "state.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        store.require_valid()
    assert "step-00000100: state.json is missing" in caught.value.message
    assert "step-00000200: state.json is missing" in caught.value.message
    assert caught.value.code == "STATE_CHECKPOINT_INVALID"


def test_a_checkpoint_of_another_run_is_not_taken(store: CheckpointStore) -> None:
    mine = store.save(100, write)
    other = CheckpointStore(store.directory, "run-b").save(200, write)
    found, broken = store.newest_valid()
    assert found == mine
    assert [(item.path, item.problems) for item in broken] == [(other.path, ["belongs to run run-b, not to run-a"])]
    store.prune(NEWEST_ONLY)
    assert other.path.is_dir()


def test_a_manifest_cannot_point_outside_its_checkpoint(store: CheckpointStore, tmp_path: Path) -> None:
    saved = store.save(100, write)
    manifest = json.loads((saved.path / MANIFEST).read_text())
    manifest["files"]["../../secret"] = {"bytes": 0, "sha256": ""}
    (saved.path / MANIFEST).write_text(json.dumps(manifest))
    assert store.verify(saved.path) == ["../../secret points outside the checkpoint"]


def test_order_is_by_step_whatever_the_clock_and_file_times_say(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(9, write)
    newest = store.save(100_000_000, write)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    older = store.save(99_999_999, write)
    os.utime(older.path, (2e9, 2e9))
    assert store.newest_valid()[0] == newest
    assert [item.step for item in store.checkpoints()] == [9, 99_999_999, 100_000_000]


def test_leftovers_of_ours_go_and_foreign_files_stay(store: CheckpointStore) -> None:
    store.save(100, write)
    for name in (".step-00000200.partial", ".step-00000050.2.deleting"):
        (store.directory / name).mkdir()
        (store.directory / name / "half").write_bytes(b"x")
    for name in ("notes", ".step-5.partial", "step-00000100.bak", ".step-00000200.partial.zip"):
        (store.directory / name).mkdir()
    (store.directory / "README").write_text("mine")
    store.remove_leftovers()
    assert names(store) == sorted(
        ["step-00000100", "notes", ".step-5.partial", "step-00000100.bak", ".step-00000200.partial.zip", "README"]
    )


def test_a_step_taken_again_after_going_back_replaces_its_checkpoint(store: CheckpointStore) -> None:
    store.save(50, write)
    first = store.save(100, write)
    again = store.save(100, lambda folder: (folder / "new").write_bytes(b"branch") and None)
    assert first.path.is_dir()
    assert store.newest_valid()[0] == again
    assert store.prune(CheckpointPolicy()) == [first]
    assert [item.path for item in store.checkpoints()] == [store.directory / "step-00000050", again.path]
    third = store.save(100, write)
    assert store.newest_valid()[0] == third


def test_a_failed_promotion_leaves_the_earlier_ones_and_nothing_else(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = store.save(100, write)

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(CheckpointError, match="Permission denied") as caught:
            store.save(200, write)
    assert caught.value.code == "RUNTIME_IO_FAILED"
    assert names(store) == ["step-00000100"]
    assert store.newest_valid() == (older, [])


def test_a_writer_that_fails_leaves_nothing_behind(store: CheckpointStore) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise ValueError("a tensor that cannot be written")

    with pytest.raises(ValueError, match="cannot be written"):
        store.save(100, fail)
    assert names(store) == []


def test_a_save_that_cannot_fit_is_refused_before_anything_is_written(store: CheckpointStore) -> None:
    older = store.save(100, write)
    free = shutil.disk_usage(store.directory).free

    def never(folder: Path) -> None:
        raise AssertionError("writing began")

    with pytest.raises(CheckpointError, match="no room") as caught:
        store.save(200, never, needed=free * 2)
    assert caught.value.code == "RUNTIME_DISK_FULL"
    assert caught.value.retryable
    assert "`backprop resume RUN`" in caught.value.hint  # where no later save comes, as before the first step
    assert store.newest_valid() == (older, [])


def test_a_file_in_the_directorys_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a directory")
    with pytest.raises(CheckpointError, match="could not be changed") as caught:
        CheckpointStore(tmp_path / "checkpoints", "run-a").save(1, write)
    assert caught.value.code == "RUNTIME_IO_FAILED"


def test_pruning_keeps_best_last_and_resumed_from(store: CheckpointStore) -> None:
    for step, loss in enumerate([0.9, 0.1, 0.8, 0.7, 0.6, 0.5], start=1):
        store.save(step, write, val_loss=loss)
    policy = CheckpointPolicy(keep_best_n=1)
    assert [item.step for item in store.prune(policy, in_use=[3])] == [1, 4, 5]
    assert [item.step for item in store.checkpoints()] == [2, 3, 6]


def test_an_older_one_is_kept_until_a_newer_verifies(store: CheckpointStore) -> None:
    older = store.save(100, write)
    newer = store.save(200, write)
    (newer.path / "state.json").write_bytes(b"[]")
    assert store.prune(NEWEST_ONLY) == []
    assert store.newest_valid()[0] == older
    newest = store.save(300, write)
    store.prune(NEWEST_ONLY)
    assert store.newest_valid()[0] == newest
    assert not older.path.exists()


def test_one_that_does_not_verify_takes_the_place_of_none(store: CheckpointStore) -> None:
    for step in (1, 2, 3, 4):
        saved = store.save(step, write)
    (saved.path / "state.json").write_bytes(b"[]")
    assert [item.step for item in store.prune(CheckpointPolicy(keep_best_n=0, keep_last=2))] == [1]
    assert [item.step for item in store.checkpoints()] == [2, 3, 4]


def test_the_latest_attempt_at_a_step_is_the_newest_however_many_there_were(store: CheckpointStore) -> None:
    for _ in range(11):
        saved = store.save(5, write)
    assert saved.manifest.attempt == 11
    assert store.newest_valid()[0] == saved


def test_what_a_person_asked_for_is_not_pruned(store: CheckpointStore) -> None:
    for step, reason in ((1, "steps"), (2, "requested"), (3, "steps"), (4, "steps")):
        store.save(step, lambda folder: None, reason=reason)
    assert [item.step for item in store.prune(NEWEST_ONLY)] == [1, 3]


def test_the_newest_that_verifies_stays_whatever_the_policy_is(store: CheckpointStore) -> None:
    for step in (1, 2):
        store.save(step, write)
    assert [item.step for item in store.prune(CheckpointPolicy(keep_best_n=0, keep_final=False))] == [1]


def test_when_nothing_verifies_nothing_is_pruned(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        (store.save(step, write).path / "state.json").unlink()
    assert store.prune(NEWEST_ONLY) == []
    assert len(names(store)) == 3
