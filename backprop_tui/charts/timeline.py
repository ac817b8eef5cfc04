"""What happened to a run, as one row of marks under its loss: each at its step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from backprop.core import events as ev

from backprop_tui.text import Piece, Row


class Mark(NamedTuple):
    sign: str
    ink: str
    meaning: str


SAVED = Mark("▪", "muted", "a checkpoint was saved")
RESUMED = Mark("↻", "info+bold", "the run was resumed from here")
PACED = Mark("~", "warn", "rests between steps, to hold the temperature")
PAUSED = Mark("‖", "warn+bold", "paused")
HALVED = Mark("½", "warn+bold", "out of memory: batch halved, accumulation doubled")
FAILED = Mark("!", "bad+bold", "a save failed, or a step was skipped as not finite")
MARKS = (SAVED, RESUMED, PACED, PAUSED, HALVED, FAILED)
"""Of several marks in one cell the last of these is seen."""


def mark_of(event: ev.AnyEvent) -> tuple[int, Mark] | None:
    """The step and mark of an event; ``None`` for one that has no place on the row."""
    match event:
        case ev.CheckpointSaved(step=step):
            return step, SAVED
        case ev.RunStarted(resumed_from=int(step)):
            return step, RESUMED
        case ev.Pacing(step=step, rest=rest) if rest > 0:
            return step, PACED
        case ev.Paused(step=step):
            return step, PAUSED
        case ev.BatchHalved(step=step):
            return step, HALVED
        case ev.CheckpointFailed(step=step) | ev.StepSkipped(step=step):
            return step, FAILED
        case _:
            return None


def marks(events: Iterable[ev.AnyEvent]) -> list[tuple[int, Mark]]:
    """Step and mark of each event that has one."""
    return [found for event in events if (found := mark_of(event)) is not None]


def timeline(found: list[tuple[int, Mark]], width: int, cell_of: Callable[[int], int]) -> Row:
    """The marks in ``width`` cells; ``cell_of`` says in which cell a step lies."""
    cells: list[Piece] = [(" ", "text")] * width
    for step, mark in sorted(found, key=lambda one: MARKS.index(one[1])):
        cells[min(width - 1, max(0, cell_of(step)))] = (mark.sign, mark.ink)
    return cells
