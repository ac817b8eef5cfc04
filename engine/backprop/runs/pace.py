"""How fast a model was trained here before: from it the time that a run will take is known ahead."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

from backprop.core.errors import BackpropError
from backprop.runs.describe import duration
from backprop.runs.index import RunIndex
from backprop.runs.state import read_run

LEAST_STEPS = 3
"""Runs of fewer steps say nothing of the pace."""
LOOKED_AT = 5
"""Runs that are read at most."""


class Pace(Struct, frozen=True):
    """Tokens a second over the steps of run ``run_id``, evaluations and checkpoints not counted."""

    tokens_per_second: float
    run_id: str

    def takes(self, tokens: float) -> str:
        """How long a run of so many tokens takes, for people."""
        return f"about {duration(tokens / self.tokens_per_second)}"

    @property
    def source(self) -> str:
        """Where the figure comes from."""
        return f"as fast as run {self.run_id}"


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
