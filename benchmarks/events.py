"""What events cost: on the training thread, and to steps of 300 ms that are watched or not.

    python benchmarks/events.py            # cost of emitting one event, by who reads the pipe
    python benchmarks/events.py --watch    # the same steps without events, with them, and with the application attached

The first part times ``EventWriter.emit``, which is all that the training thread does, with nobody, a stopped reader and
a live reader on the pipe, and the time until every line is in the journal. The second part takes steps of a fixed work
on one core, as a run on a graphics card does, in short blocks of three kinds in turn: nothing is emitted; events go
into the journal of a run; and ``backprop-tui --attach`` draws them in a pseudo-terminal of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

# One core, as a run on a card: what the application costs where all are busy is the scheduler's business.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import psutil
from backprop.core.events import RunStarted, Step
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.journal import JournalWriter
from backprop.worker.event_stream import EventPipe, EventWriter

EVENTS = 20_000
ROUNDS = 5
STEP = 0.3
"""Seconds of a step that is watched or not."""
BLOCK = 5
"""Steps of a kind in turn: short, because a shared machine drifts by more than what is measured."""


def step(number: int) -> Step:
    return Step(
        step=number,
        total_steps=EVENTS,
        loss=1.234567,
        learning_rate=2e-4,
        grad_norm=0.5678,
        tokens_per_second=1234.5,
        tokens_seen=number * 512,
        epoch=number / EVENTS,
        trained_tokens=230,
        samples_seen=number,
        seconds=0.3,
        memory=2_000_000_000,
    )


def emit_all(reader: str, folder: Path) -> tuple[float, float]:
    """Microseconds of one ``emit`` on the calling thread, and until one event is written, with ``reader``."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    if reader == "gone":
        os.close(read_end)
    if reader == "live":
        threading.Thread(target=_drain, args=(read_end,), daemon=True).start()
    writer = EventWriter(JournalWriter(folder / f"{reader}.jsonl"), EventPipe(write_end), "benchmark")
    events = [step(number) for number in range(EVENTS)]
    spent, begun = 0.0, time.perf_counter()
    for event in events:
        before = time.perf_counter()
        writer.emit(event)
        spent += time.perf_counter() - before
        if event.step % 100 == 0:
            time.sleep(0.001)  # let the writing thread have its turn, as a training step does
    writer.close()
    total = time.perf_counter() - begun
    os.close(write_end)
    return 1e6 * spent / EVENTS, 1e6 * total / EVENTS


def _drain(descriptor: int) -> None:
    while os.read(descriptor, 1 << 16):
        pass


def cost_of_an_event() -> None:
    print(f"one event, microseconds, median of {ROUNDS} rounds of {EVENTS} (min to max)")
    found: dict[str, list[tuple[float, float]]] = {"gone": [], "stopped": [], "live": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for reader, results in found.items():
                place = Path(folder) / str(number)
                place.mkdir(exist_ok=True)
                results.append(emit_all(reader, place))
    for reader, results in found.items():
        emit = [r[0] for r in results]
        print(
            f"  reader {reader:8} emit {statistics.median(emit):6.2f} ({min(emit):.2f} to {max(emit):.2f})"
            f"   until written {statistics.median(r[1] for r in results):6.1f}"
        )
    per_step = statistics.median(r[0] for r in found["live"])
    print(f"  of a step of 300 ms that is {100 * per_step / 300_000:.4f} %")


class Work:
    """A fixed amount of work on one core, of about ``STEP`` seconds."""

    def __init__(self) -> None:
        self._matrix = np.random.default_rng(0).random((256, 256), dtype=np.float32)
        self._times = 1
        self._times = max(1, round(STEP / min(self.once() for _ in range(50))))

    def once(self) -> float:
        """Do it; the seconds it took."""
        began = time.perf_counter()
        for _ in range(self._times):
            self._matrix @ self._matrix
        return time.perf_counter() - began


def attach(run: Path) -> subprocess.Popen[bytes]:
    """The application in a pseudo-terminal that somebody else reads, once its first screen is there."""
    spawn = f"import pty; pty.spawn(['backprop-tui', '--attach', {str(run)!r}])"
    size = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "COLUMNS": "120", "LINES": "40"}
    application = subprocess.Popen(
        [sys.executable, "-c", spawn],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **size, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    time.sleep(3.0)
    return application


def watched_and_not(cycles: int) -> None:
    """Take blocks of steps in turn: silent, with events, and with events that the application draws."""
    work = Work()
    found: dict[str, list[float]] = {"no events": [], "events": [], "events, application attached": []}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("CACHE", "DATA", "CONFIG"):
            os.environ[f"XDG_{kind}_HOME"] = f"{folder}/{kind}"
        directory = RunDirectory.create(RunConfig(data="rows.jsonl", output_dir=f"{folder}/output"))
        with directory.hold_lock():
            pipe = EventPipe(os.open(os.devnull, os.O_WRONLY))
            writer = EventWriter(JournalWriter(directory.journal), pipe, "benchmark")
            writer.emit(RunStarted(config={}, output_dir=str(directory.path), pid=os.getpid()))
            terminal = attach(directory.path)
            (application,) = psutil.Process(terminal.pid).children()
            number = 0
            try:
                for cycle in range(cycles):
                    names = list(found)
                    for name in names[cycle % 3 :] + names[: cycle % 3]:
                        # A stopped application takes no time of any core.
                        application.resume() if name.endswith("attached") else application.suspend()
                        seconds = []
                        for _ in range(BLOCK):
                            number += 1
                            began = time.perf_counter()
                            work.once()
                            if name != "no events":
                                writer.emit(step(number))
                            seconds.append(time.perf_counter() - began)
                        found[name].append(statistics.median(seconds))
                drawing = sum(application.cpu_times()[:2])
            finally:
                writer.close()
                application.kill()
                terminal.wait()
    print(f"median milliseconds of a step, {cycles} blocks of {BLOCK} steps of each kind, in turn, on one core")
    for name, medians in found.items():
        more = [100 * (one / none - 1) for one, none in zip(medians, found["no events"], strict=True)]
        low, middle, high = statistics.quantiles(more, n=4) if name != "no events" else (0.0, 0.0, 0.0)
        error = 1.25 * statistics.stdev(more) / len(more) ** 0.5  # of a median
        print(
            f"  {name:30}{1000 * statistics.median(medians):8.2f}   beside no events: "
            f"{middle:+.2f} % ± {error:.2f} (quartiles {low:+.2f} to {high:+.2f})"
        )
    print(f"  the application took {drawing:.1f} s of another core to start and to draw")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watch", action="store_true", help="also compare steps that are watched and not (minutes)")
    parser.add_argument("--cycles", type=int, default=60, help="blocks of each kind")
    options = parser.parse_args()
    cost_of_an_event()
    if options.watch:
        watched_and_not(options.cycles)
