"""What runs really took of a card's memory and of time: from it is known ahead what the next one will take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from msgspec import Struct

from backprop.core.errors import BackpropError
from backprop.core.events import BATCH_SETTLED, BatchHalved
from backprop.runs.index import RunIndex
from backprop.runs.state import RunState, read_run

MOST = 20
"""Runs of a model that are looked at, the newest first."""
LEAST_STEPS = 3
"""Runs of fewer steps say nothing of the pace."""
LOOKED_AT = 5
"""Runs that are read at most."""


class Measured(Struct, frozen=True):
    """The peak of a run: bytes that torch had allocated, without what CUDA takes for itself."""

    bytes: int
    date: float
    """Seconds since the epoch."""
    card: str
    run_id: str
    longest: int
    """Tokens of its longest row, before anything was cut."""


def measured_peaks(model: str) -> list[tuple[dict[str, Any], Measured]]:
    """The peaks of the newest runs of ``model`` on a card, with their resolved settings, the newest first."""
    with RunIndex() as index:
        paths = [Path(summary.path) for summary in index.summaries() if summary.model == model]
    states = [read_run(path) for path in paths[:MOST]]
    return [(state.config, peak) for state in states if (peak := peak_of(state)) is not None]


def peak_of(state: RunState) -> Measured | None:
    """The peak of a run; ``None`` where it was not on a card, took no step, or not with the batch of its settings."""
    if state.model is None or state.last_step is None or not state.model.device.startswith("cuda"):
        return None
    if any(isinstance(each, BatchHalved) or getattr(each, "code", "") == BATCH_SETTLED for each in state.notable):
        return None
    return Measured(
        state.last_step.memory,
        state.started_at,
        state.model.device.removeprefix("cuda").strip(" ()"),
        state.run_id,
        state.dataset.longest if state.dataset else 0,
    )


class Pace(Struct, frozen=True):
    """Tokens a second over the steps of run ``run_id``, evaluations and checkpoints not counted."""

    tokens_per_second: float
    run_id: str


def pace(model: str) -> Pace | None:
    """The pace of the newest run that trained ``model`` on this machine; ``None`` where there is none.

    Args:
        model: as in a located configuration.
    """
    with RunIndex() as index:
        alike = [run for run in index.summaries() if run.model == model and run.steps >= LEAST_STEPS]
    for run in sorted(alike, key=lambda run: -run.started_at)[:LOOKED_AT]:
        try:
            state = read_run(Path(run.path))
        except (BackpropError, OSError):
            continue
        seconds = sum(state.curves.seconds)
        if state.environment.get("host") == os.uname().nodename and seconds and state.tokens_seen:
            return Pace(state.tokens_seen / seconds, run.run_id)
    return None
