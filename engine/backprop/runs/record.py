"""``run.json``: what a run is."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from backprop.core.events import Moment
from backprop.core.settings import MultiConfig, RunConfig

SCHEMA = 1


class Replays(Struct, kw_only=True):
    """Which run a replay repeats, as it was then."""

    path: str
    run_id: str
    created: Moment
    """When that was begun: the date that a chat template with a date in it writes."""
    overrides: list[str] = []
    """Settings that are meant to be others."""


class RunRecord(Struct, kw_only=True):
    """``run.json``: what the run is. How it went is in the journal."""

    schema: int = SCHEMA
    run_id: str
    kind: str = "train"
    created: Moment
    config: RunConfig
    forked_from: str = ""
    """Folder with the adapter whose weights the run starts from; empty for the usual start."""
    origins: dict[str, str] = {}
    """Where the value of each setting that is no default comes from, in words: a flag, a file and its line …"""
    extended: bool = False
    """The run has been given its present end by an extend: checkpoints from before it have another."""
    replays: Replays | None = None
    multi: MultiConfig | None = None
    """Of a session of several runs: what they share beside ``config``."""
    rewinds: int = 0
    """How often it was rewound: its runs from then on are other ones."""
    tags: list[str] = []
    note: str = ""

    @property
    def parent(self) -> str:
        """The directory of the run that this one was forked from, or replays; empty where it came from none."""
        fork = Path(self.forked_from)
        # The runs of a session start from copies of what it stood at, in a folder of their own.
        return self.replays.path if self.replays else str(fork.parents[1]) if fork.parent.name == "checkpoints" else ""
