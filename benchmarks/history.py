"""What a long history costs: ``python benchmarks/history.py [--runs 10000]``.

Made runs in one output directory, known to an index of their own. Prints how long adding one takes, the time of
``backprop list-runs`` as a process and without starting Python, and of the first page of the Runs screen.
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

import msgspec  # noqa: E402
from backprop.cli.main import main as cli  # noqa: E402
from backprop.runs.index import RunIndex  # noqa: E402
from backprop.runs.record import RunRecord  # noqa: E402
from recorded import demo_like, ev, make_steps  # noqa: E402

from backprop_tui.run_reader import RunReader  # noqa: E402

ROUNDS = 7


def make(output: Path, number: int) -> Path:
    """A finished run of five steps; each started a minute after the one before."""
    run_id, created = f"{number * 2654435761 % 2**48:012x}", 1.7e9 + 60 * number
    path = output / run_id
    path.mkdir(parents=True)
    record = RunRecord(run_id=run_id, created=created, config=demo_like(output))
    (path / "run.json").write_bytes(msgspec.json.encode(record))
    os.utime(path / "run.json", (created, created))
    start = ev.RunStarted(config=msgspec.to_builtins(record.config), output_dir=str(path), pid=1)
    end = ev.RunFinished(
        status="done", steps=5, final_loss=1.0, output_path="/x", duration_seconds=7.0, samples_seen=20
    )
    with (path / "events.jsonl").open("wb") as file:
        for seq, event in enumerate((start, *make_steps(1, 5, 5), end), 1):
            event.run_id, event.seq, event.time = run_id, seq, created + seq
            file.write(ev.encode(event))
    return path


def measure(name: str, work: Callable[[], object], rounds: int = ROUNDS, limit: float | None = None) -> None:
    """Print the median of ``rounds``: milliseconds by the clock, and of a core's time, which others do not change."""
    clock, core = [], []
    for _ in range(rounds):
        began, busy = time.perf_counter(), time.process_time()
        work()
        clock.append(1000 * (time.perf_counter() - began))
        core.append(1000 * (time.process_time() - busy))
    found = statistics.median(clock)
    verdict = "" if limit is None else f"   (at most {limit:g}: {'yes' if found <= limit else 'NO'})"
    print(f"{name:<58}{found:>9.1f} ms, {statistics.median(core):.1f} of a core{verdict}", flush=True)


def list_runs(*arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli(["list-runs", *arguments]) == 0


class _Shown(Exception):
    """The first page is there."""


def first_page(output: Path) -> None:
    """Until the Runs screen is handed runs to show, in an application that was started anew."""

    def show(_: object) -> None:
        raise _Shown

    with contextlib.suppress(_Shown):
        RunReader(output).read([], show)


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

        def index_all() -> None:
            with RunIndex() as index:
                index.scan(home / "output")
                assert sum(1 for _ in index.each()) == count

        measure(f"an index over {count:,} runs made from their directories", index_all, 1)
        paths = iter([make(home / "elsewhere", count + number) for number in range(3 * ROUNDS)])

        def add() -> None:
            with RunIndex() as index:
                index.add(next(paths))

        measure("adding one, opening the index included", add, 3 * ROUNDS, 5)
        measure("list-runs, without starting Python", list_runs, limit=300)
        measure("  the same sorted by loss: every run is looked at", lambda: list_runs("--sort", "loss"))
        measure("first page of the Runs screen", lambda: first_page(home / "output"), limit=300)
        command = [sys.executable, "-m", "backprop.cli.main", "list-runs"]
        measure("list-runs as a process", lambda: subprocess.run(command, capture_output=True, check=True))
        command[-1] = "--help"
        measure("  of these to start Python", lambda: subprocess.run(command, capture_output=True, check=True))


if __name__ == "__main__":
    main()
