"""Before a run: a dataset fetched, and what the run would be."""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import Struct

from backprop.core.events import DatasetPrepared


class FetchRequest(Struct, kw_only=True):
    """Get a dataset from the Hugging Face Hub."""

    name: str
    """``owner/name``."""


class Fetched(Struct, kw_only=True, tag_field="type", tag="fetched"):
    """A dataset is on this machine, as one file."""

    name: str
    path: str
    revision: str
    """The commit that it was fetched at."""
    split: str
    files: int
    """How many files of the repository it was put together from."""
    bytes: int


class RunPlan(Struct, kw_only=True, tag_field="type", tag="run_plan"):
    """What a run of a configuration would be."""

    config: dict[str, Any]
    """As the engine would resolve it on this machine."""
    origins: dict[str, str] = {}
    """Where the values come from that the engine chose, in words."""
    data: DatasetPrepared
    rows: int
    """Rows that are trained."""
    held_out: int
    steps: int
    steps_per_epoch: int
    rows_per_step: int
    warmup_steps: int
    tokens: int
    """Those of the whole run, trained or not."""
    notes: list[str] = []


PreparingMessage: TypeAlias = Fetched | RunPlan
