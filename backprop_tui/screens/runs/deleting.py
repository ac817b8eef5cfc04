"""What a person is asked before runs are deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backprop.runs.deletion import dependents
from backprop.runs.describe import bytes_text
from backprop.runs.directory import RunDirectory
from backprop.runs.summary import RunSummary

from backprop_tui.screens.dialogs import Answer, deleting
from backprop_tui.text import count, from_home, short_path

_NAMED = 8
"""So many of them are named."""


def in_use(runs: Sequence[RunSummary]) -> str | None:
    """The id of the first of these that a process works on; ``None`` where there is none."""
    return next((run.run_id for run in runs if RunDirectory(Path(run.path)).is_locked()), None)


def question(
    runs: Sequence[RunSummary], known: Sequence[RunSummary], size: int | None
) -> tuple[str, tuple[Answer, ...]]:
    """The text and the answers.

    Args:
        runs: at least one.
        known: every run, some of which may need the one that goes.
        size: bytes on the disk of a single one, where they are known.
    """
    what, path = f"{count(len(runs))} runs", "their directories"
    text = ", ".join(f"{run.run_id[:8]} ({run.status})" for run in runs[:_NAMED])
    text += f" and {count(len(runs) - _NAMED)} more" if len(runs) > _NAMED else ""
    if len(runs) == 1:
        (run,) = runs
        what, path = f"run {run.run_id}", from_home(run.path)
        text = f"{run.name}: " if run.name else ""
        text += f"{short_path(run.model)} on {short_path(run.dataset)}, {count(run.steps)} steps, {run.status}."
        text += "" if size is None else f" {bytes_text(size)} on the disk."
        if needed := dependents(Path(run.path), known):
            text += f"\n\nNeeds it: {'; '.join(needed)}."
    return text, deleting(what, path)
