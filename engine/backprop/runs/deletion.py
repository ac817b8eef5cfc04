"""What a run's directory holds, what else needs it, and how it is deleted."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from backprop.core.errors import RunError
from backprop.core.files import remove
from backprop.runs.directory import RunDirectory, is_run
from backprop.runs.index import RunIndex
from backprop.runs.summary import RunSummary


def sizes(path: Path) -> dict[str, int]:
    """Bytes of each file and folder directly in ``path``, by name; what cannot be read counts as nothing."""
    found = {}
    for entry in sorted(path.iterdir()):
        files = [entry] if not entry.is_dir() else [Path(at, name) for at, _, names in os.walk(entry) for name in names]
        found[entry.name] = 0
        for file in files:
            with contextlib.suppress(OSError):
                found[entry.name] += file.lstat().st_size
    return found


def dependents(path: Path, runs: Iterable[RunSummary]) -> list[str]:
    """What needs the run in ``path``, in words: runs that came from it or read files in it, and its exports."""
    home = os.path.realpath(path)
    found = []
    for run in runs:
        if run.path == home:
            continue
        if run.parent == home:
            verb = "replays it" if run.kind == "replay" else "was forked from it"
            found.append(f"run {run.run_id} {verb}")
        found += [
            f"run {run.run_id} uses {used}" for used in (run.dataset, run.model) if used.startswith(f"{home}{os.sep}")
        ]
    with contextlib.suppress(OSError):
        found += [f"export {name}" for name in sorted(os.listdir(path / "exports"))]  # noqa: PTH208
    return found


def delete_run(path: Path) -> None:
    """Remove a run's directory, holding its lock meanwhile, and forget it. It is moved aside first, then purged.

    Raises:
        RunError: it is no run, or somebody works on it.
        OSError: it cannot be removed.
    """
    if path.is_symlink() or not is_run(path):
        raise RunError(f"{path} is no run directory", code="RUN_DAMAGED")
    with RunDirectory(path).hold_lock():
        remove(path)
    for left in path.parent.glob(".*.deleting"):
        if not RunDirectory(left).is_locked():  # of a deletion that was killed
            shutil.rmtree(left, ignore_errors=True)
    with RunIndex() as index:
        index.remove(path)
