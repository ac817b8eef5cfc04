"""Where an end-to-end test works: a tiny model, rows, and the runs started on them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from backprop.runs.directory import RunDirectory
from backprop.runs.state import RunState, read_run
from patience import PATIENCE
from processes import kill_engine
from terminal import Terminal
from tiny_language_model import write_rows

ENDLESS = 1_000_000
"""Steps of a run that a test ends itself."""


def program(name: str) -> str:
    """A console script of the environment that the tests run in."""
    return str(Path(sys.executable).with_name(name))


class Place:
    """A folder to work in with a tiny model and rows, and the runs that were started there."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.output = folder / "out"
        self.rows = write_rows(folder / "rows.jsonl")
        self.plain = ["--data", str(self.rows), "--model", str(model)]
        self.plain += ["--batch-size", "1", "--gradient-accumulation", "1", "--lora-dropout", "0.05"]
        self.flags = [*self.plain, "--lora-r", "2", "--output", str(self.output)]

    def application(self, *argv: str, columns: int = 100, rows: int = 30) -> Terminal:
        return Terminal([program("backprop-tui"), *argv], columns=columns, rows=rows, cwd=self.folder)

    def run(self) -> RunDirectory:
        """The only run, once its directory is there."""
        self.wait_until(lambda: self.output.is_dir() and any(self.output.iterdir()), "a run directory")
        (path,) = self.output.iterdir()
        return RunDirectory(path)

    def state(self) -> RunState:
        return read_run(self.run().path)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come"
            time.sleep(0.05)

    def wait_step(self, step: int) -> int:
        """Wait until the run has taken ``step`` steps; how many it has taken then."""
        self.wait_until(lambda: self.state().step >= step, f"step {step}")
        return self.state().step

    def kill_engines(self) -> None:
        for path in self.output.iterdir() if self.output.is_dir() else ():
            kill_engine(RunDirectory(path))
