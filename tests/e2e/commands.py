"""The command line as a script uses it: started, read event by event, its engine stopped where a test wants it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backprop.runs import journal
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from patience import PATIENCE
from processes import kill_engine


class Command:
    """``backprop …`` with its standard output read as JSON Lines. What it says beside that is in ``said``."""

    def __init__(self, argv: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> None:
        self._said = folder / f"said-{time.monotonic_ns()}.txt"
        with self._said.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("backprop")), *argv],
                cwd=folder,
                env={**os.environ, **(env or {})},
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come, to the end of the command."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read up to the first event that is wanted, and return it."""
        for event in self.events():
            if wanted(event):
                return event
        raise AssertionError(f"the command ended first: {self.said}")

    def finish(self) -> tuple[int, list[dict[str, Any]]]:
        """Exit status, and the events not read yet."""
        rest = list(self.events())
        return self.process.wait(PATIENCE), rest

    @property
    def said(self) -> str:
        return self._said.read_text()


def kill_engine_while_saving(directory: RunDirectory) -> Path:
    """``kill -9`` at a moment when a checkpoint is half written; the folder that it leaves."""
    pid = directory.lock_holder().pid
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if not _staged(directory):
            continue
        # Held still, it is looked at again: the save may have ended in between.
        os.kill(pid, signal.SIGSTOP)
        if staged := _staged(directory):
            kill_engine(directory)
            return staged[0]
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("no save was met half way")


def _staged(directory: RunDirectory) -> list[Path]:
    return list(directory.checkpoints.glob(".step-*.partial"))


def losses(directory: RunDirectory) -> list[tuple[int, float]]:
    """Step and loss as the fold of the journal has them: steps taken again after a resume are there once."""
    curves = read_run(directory.path).curves
    return list(zip(curves.step, curves.loss, strict=True))


def leftovers(directory: RunDirectory) -> list[str]:
    """Names in the run's directory that no finished run has."""
    return [path.name for path in directory.path.rglob("*") if path.name.endswith((".partial", ".deleting"))]


def sequence(directory: RunDirectory) -> list[int]:
    """The number of every event in the journal, none of them damaged."""
    read = journal.read(directory.journal)
    assert read.damaged == []
    return [event.seq for event in read.events]
