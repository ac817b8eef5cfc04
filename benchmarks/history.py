"""What a long history costs: ``python benchmarks/history.py [--runs 10000]``.

Made runs in one output directory, known to an index of their own. Prints how long adding one takes, the time of
``backprop list-runs`` as a process, of the same work without starting Python, and of the first page of the Runs screen.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "tui"), str(ROOT / "tests" / "fixtures")]

from backprop.cli.main import main as cli  # noqa: E402
from backprop.runs.index import RunIndex  # noqa: E402
from recorded import Recorder, demo_like, ev, make_steps  # noqa: E402

from backprop_tui.run_reader import RunReader  # noqa: E402

ROUNDS = 7


def make(output: Path, number: int) -> Path:
    """A finished run of five steps; each started a minute after the one before."""
    run = Recorder(output, f"{number * 2654435761 % 2**48:012x}", demo_like(output), 1.7e9 + 60 * number)
    end = ev.RunFinished(
        status="done", steps=5, final_loss=1.0, output_path="/x", duration_seconds=7.0, samples_seen=20
    )
    start = ev.RunStarted(config={"model": "m", "data": "/d/rows.jsonl"}, output_dir=str(run.directory.path), pid=1)
    run.write(start, *make_steps(1, 5, 5), end)
    return run.directory.path


def median(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Milliseconds by the clock."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        found.append(1000 * (time.perf_counter() - began))
    return statistics.median(found)


def report(name: str, value: float, limit: float | None = None) -> None:
    verdict = "" if limit is None else f"   (at most {limit:g}: {'yes' if value <= limit else 'NO'})"
    print(f"{name:<58}{value:>9.1f} ms{verdict}")


def list_runs(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli(["list-runs", *arguments]) == 0


def first_page(output: Path) -> None:
    """Until the Runs screen is handed runs to show, in an application that was started anew."""
    began = time.perf_counter()
    pages: list[float] = []
    RunReader(output).read([], lambda runs: pages.append(time.perf_counter()))
    first.append(1000 * ((pages[0] if pages else time.perf_counter()) - began))


first: list[float] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for kind in ("CACHE", "DATA", "CONFIG"):
            os.environ[f"XDG_{kind}_HOME"] = str(home / kind)
        os.chdir(home)
        for number in range(count):
            make(home / "output", number)
        began = time.perf_counter()
        with RunIndex() as index:
            index.scan(home / "output")
            found = sum(1 for _ in index.each())
        assert found == count
        report(f"an index over {count:,} runs made from their directories", 1000 * (time.perf_counter() - began))
        paths = iter([make(home / "elsewhere", count + number) for number in range(3 * ROUNDS)])

        def add() -> None:
            with RunIndex() as index:
                index.add(next(paths))

        report("adding one, opening the index included", median(add, 3 * ROUNDS), 5)
        report("list-runs, Python started already", median(list_runs), 300)
        report("  the same, sorted by loss", median(lambda: list_runs("--sort", "loss")))
        command = [sys.executable, "-m", "backprop.cli.main", "list-runs"]
        report("list-runs as a process", median(lambda: subprocess.run(command, capture_output=True, check=True)))
        command[-1] = "config"
        report(
            "  of which `config` takes too: starting Python",
            median(lambda: subprocess.run(command, capture_output=True, check=False)),
        )
        median(lambda: first_page(home / "output"))
        report("first page of the Runs screen", statistics.median(first), 300)


if __name__ == "__main__":
    main()
