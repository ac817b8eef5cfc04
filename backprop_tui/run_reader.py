"""The runs for the list of them, read again as far as they may have changed: thousands cost no more than a few."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from backprop.runs.index import RunIndex
from backprop.runs.summary import RunSummary

LIVING = ("starting", "running", "paused")
OUTPUT = Path("output")
"""Where runs are looked for besides those that the index knows."""
SHARE = 0.001
"""Of a core's time, spent on reading every run again."""
PORTION = 0.5
"""Seconds after which runs are handed out though more are to be read."""
PAGE = 60
"""Runs that fill a screen: so many are handed out at once."""


class RunReader:
    """Reads the runs in ``output`` and in the index.

    A run that is over changes only where somebody continues or deletes it. Living runs and those that are seen are
    looked at each time, all of them where a run came or went, and else as seldom as their number wants it.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.trouble = ""
        """What a person should know of the index."""
        self._found: dict[str, RunSummary] = {}
        self._places: object = None
        self._all_again_at = 0.0

    def read(self, seen: Collection[str], some: Callable[[list[RunSummary]], None]) -> list[RunSummary]:
        """Every run as it is now.

        Args:
            seen: the directories of the runs on the screen.
            some: is given the first of many runs while the others are read.
        """
        with RunIndex() as index:
            places = self._look(index)
            if time.monotonic() >= self._all_again_at or places != self._places:
                self._read_all(index, some)
            elif not index.trouble:  # an index in memory knows none of them
                self._read_some(index, {path for path, run in self._found.items() if run.status in LIVING} | {*seen})
            self._places = self._look(index)
            self.trouble = index.trouble
        return list(self._found.values())

    def read_all(self) -> None:
        """Read every run at the next look."""
        self._all_again_at = 0.0

    def _look(self, index: RunIndex) -> object:
        """Another value where a run came or went."""
        try:
            return self.output.stat().st_mtime_ns, index.size()
        except OSError:
            return 0, index.size()

    def _read_some(self, index: RunIndex, paths: set[str]) -> None:
        now = {run.path: run for run in index.each(paths)}
        gone = paths - now.keys()
        self._found = {path: now.get(path, run) for path, run in self._found.items() if path not in gone}

    def _read_all(self, index: RunIndex, some: Callable[[list[RunSummary]], None]) -> None:
        began, busy = time.monotonic(), time.thread_time()
        index.scan(self.output)
        found: dict[str, RunSummary] = {}
        for run in index.each():
            before = self._found.get(run.path)
            found[run.path] = before if before == run else run
            if not self._found and (len(found) == PAGE or time.monotonic() - began > PORTION):
                began = time.monotonic()
                some(list(found.values()))
        self._found = found
        self._all_again_at = time.monotonic() + (time.thread_time() - busy) / SHARE


def last_result() -> str:
    """The directory of the newest run that has a result; empty where there is none."""
    with RunIndex() as index:
        index.scan(OUTPUT)
        return next((run.path for run in index.each() if run.output_path), "")
