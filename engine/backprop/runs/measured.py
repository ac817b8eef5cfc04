"""What runs really took of a card's memory, for the next one of the same shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from backprop.core.events import BATCH_SETTLED, BatchHalved
from backprop.core.settings import RunConfig
from backprop.runs.describe import moment
from backprop.runs.index import RunIndex
from backprop.runs.state import RunState, read_run

MOST = 20
"""Runs of a model that are looked at, the newest first."""


class Measured(Struct, frozen=True):
    """The peak of a run: bytes that torch had allocated, without what CUDA takes for itself."""

    bytes: int
    date: float
    """Seconds since the epoch."""
    card: str
    run_id: str
    longest: int
    """Tokens of its longest row, before anything was cut."""

    def __str__(self) -> str:
        """In words, its bytes in the unit that cards are sold by."""
        size = f"{self.bytes / 2**30:.1f} GiB"
        return f"{size} on {moment(self.date)[:10]} on {self.card}, rows up to {self.longest}"


Peaks = Sequence[tuple[Mapping[str, Any], Measured]]
"""What runs took, each with its resolved settings."""


def measured_peaks(model: str) -> Peaks:
    """The peaks of the newest runs of ``model`` on a card, the newest first."""
    with RunIndex() as index:
        paths = [Path(summary.path) for summary in index.summaries() if summary.model == model]
    states = [read_run(path) for path in paths[:MOST]]
    return [(state.config, peak) for state in states if (peak := peak_of(state)) is not None]


def of_shape(peaks: Peaks, shape: Mapping[str, Any]) -> Measured | None:
    """The first of the peaks that a run with all these settings had."""
    usual = to_builtins(RunConfig(data=""))  # what earlier versions did where they had no such setting
    return next((peak for config, peak in peaks if shape.items() <= {**usual, **config}.items()), None)


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
