"""Which checkpoints a policy keeps, and the register that library users work with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from backprop import CheckpointManager, CheckpointPolicy
from backprop.core.errors import CheckpointError
from backprop.runs.retention import Candidate, chosen

NAN = float("nan")
INF = float("inf")


@pytest.mark.parametrize(
    ("policy", "losses", "kept"),
    [
        (CheckpointPolicy(), [0.5, 0.4, 0.3, 0.2, 0.1], [2, 3, 4]),
        (CheckpointPolicy(), [0.1, 0.2, 0.3, 0.4, 0.5], [0, 1, 2, 4]),
        (CheckpointPolicy(), [None] * 5, [2, 3, 4]),
        (CheckpointPolicy(keep_best_n=1, keep_final=False), [0.1, 0.1, 0.2, 0.3], [0]),
        (CheckpointPolicy(keep_best_n=0), [0.1, 0.2, 0.3], [2]),
        (CheckpointPolicy(keep_best_n=2), [NAN, 0.1, 0.2, 0.3], [1, 2, 3]),
        (CheckpointPolicy(keep_best_n=2), [-INF, 0.1, 0.2, 0.3], [1, 2, 3]),
        (CheckpointPolicy(keep_best_n=2), [NAN, NAN, None, 0.3], [2, 3]),
        (CheckpointPolicy(keep_best_n=2), [None, 0.4, None, 0.3, None], [1, 3, 4]),
        (CheckpointPolicy(keep_best_n=1, keep_last=2), [0.1, 0.2, 0.3, 0.4], [0, 2, 3]),
        (CheckpointPolicy(keep_best_n=0, keep_final=False), [0.1, 0.2], []),
        (CheckpointPolicy(), [], []),
    ],
)
def test_the_policy_keeps_best_and_final(policy: CheckpointPolicy, losses: list[float | None], kept: list[int]) -> None:
    assert chosen(policy, [Candidate(loss) for loss in losses]) == kept


def test_boundaries_are_kept_when_asked_for() -> None:
    losses = [0.9, 0.1, 0.2, 0.3, 0.4]
    candidates = [Candidate(loss, boundary=index == 0) for index, loss in enumerate(losses)]
    assert chosen(CheckpointPolicy(keep_best_n=1, keep_boundaries=True), candidates) == [0, 1, 4]
    assert chosen(CheckpointPolicy(keep_best_n=1), candidates) == [1, 4]


def test_protected_ones_stay() -> None:
    candidates = [Candidate(0.1), Candidate(0.5, protected=True), Candidate(0.2), Candidate(0.3), Candidate(0.4)]
    assert chosen(CheckpointPolicy(keep_best_n=1), candidates) == [0, 1, 4]


def _filled(directory: Path, losses: list[float | None], policy: CheckpointPolicy | None = None) -> CheckpointManager:
    manager = CheckpointManager(directory, policy)
    for index, loss in enumerate(losses):
        folder = directory / f"run-{index}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"w")
        manager.register(index, folder, loss)
    return manager


def _folders(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def test_pruning_deletes_what_the_policy_does_not_keep(tmp_path: Path) -> None:
    manager = _filled(tmp_path, [0.5, NAN, 0.3, 0.2, 0.4], CheckpointPolicy(keep_best_n=2))
    assert [path.name for path in manager.prune()] == ["run-0", "run-1"]
    assert _folders(tmp_path) == ["run-2", "run-3", "run-4"]
    assert [entry.run_index for entry in manager.checkpoints()] == [2, 3, 4]
    assert manager.prune() == []


def test_a_missing_directory_has_nothing_to_prune(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "nowhere")
    assert manager.prune() == []
    assert manager.checkpoints() == []
    assert not (tmp_path / "nowhere").exists()


def test_an_entry_whose_files_are_gone_does_not_push_out_another(tmp_path: Path) -> None:
    manager = _filled(tmp_path, [0.3, 0.1, 0.2], CheckpointPolicy(keep_best_n=1, keep_final=False))
    (tmp_path / "run-1" / "weights").unlink()
    (tmp_path / "run-1").rmdir()
    manager.prune()
    assert _folders(tmp_path) == ["run-2"]


def test_registering_a_path_again_replaces_its_loss(tmp_path: Path) -> None:
    manager = _filled(tmp_path, [0.3, 0.1])
    manager.register(0, "run-0", NAN)
    assert [(entry.path, entry.val_loss) for entry in manager.checkpoints()] == [("run-0", "nan"), ("run-1", 0.1)]


@pytest.mark.parametrize("stands", [".", "elsewhere", "saved/run-2"])
def test_a_path_may_be_written_as_the_directory_is(
    stands: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "saved" / f"run-{index}" for index in range(3)]
    for folder in (*folders, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / stands)
    saved = Path(os.path.relpath(tmp_path / "saved"))
    manager = CheckpointManager(saved, CheckpointPolicy(keep_best_n=1, keep_final=False))
    for index, folder in enumerate(folders):
        manager.register(index, saved / folder.name, 1 / (1 + index))
    assert manager.prune() == folders[:2]
    assert _folders(tmp_path / "saved") == ["run-2"]


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", ".", "a/../../b"])
def test_nothing_outside_the_directory_can_be_registered(tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="not inside"):
        CheckpointManager(tmp_path / "checkpoints").register(0, path)


def test_a_damaged_register_is_an_error_and_nothing_is_deleted(tmp_path: Path) -> None:
    manager = _filled(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5])
    (tmp_path / "checkpoints.json").write_text('{"checkpoints": [{"run_in')
    with pytest.raises(CheckpointError, match="cannot be read"):
        manager.prune()
    assert len(_folders(tmp_path)) == 5


def test_two_processes_that_register_at_once_both_survive(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from backprop.runs.retention import CheckpointManager\n"
        "manager = CheckpointManager(sys.argv[1])\n"
        "first = int(sys.argv[2])\n"
        "sys.stdin.read()\n"
        "for index in range(first, first + 25): manager.register(index, f'run-{index}', 0.1)\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(first)], stdin=subprocess.PIPE)
        for first in (0, 25)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
    assert [child.wait(60) for child in children] == [0, 0]
    assert [entry.run_index for entry in CheckpointManager(tmp_path).checkpoints()] == list(range(50))
