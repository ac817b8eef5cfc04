"""What events cost: on the training thread, and over a whole run that is watched or not.

    python benchmarks/events.py            # cost of emitting one event, by who reads the pipe
    python benchmarks/events.py --runs     # the same run watched and unwatched, in turn (minutes)

The first part times ``EventWriter.emit``, which is all that the training thread does, with nobody, a stopped reader and
a live reader on the pipe, and the time until every line is in the journal. The second part runs the embedded model's
demo data and compares the median seconds of a step, as the engine itself measured them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

from backprop.core.events import Step
from backprop.core.settings import RunConfig
from backprop.runs import link
from backprop.runs.directory import RunDirectory
from backprop.runs.journal import JournalWriter
from backprop.runs.state import RunState, read_run
from backprop.train.stream import EventPipe, EventWriter

EVENTS = 20_000
ROUNDS = 5


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


def run_once(watched: bool, output: Path, steps: int) -> RunState:
    from backprop.demo import demo_config

    config: RunConfig = demo_config(str(output))
    config.steps, config.sample_prompts = steps, []
    started = link.start(config)
    if watched:
        state = RunState()
        while not started.over:
            for event in started.read(0.25):
                state.apply(event)
    else:
        started.detach()
        started.wait()
    return read_run(RunDirectory(started.directory.path).path)


def watched_and_not(steps: int, rounds: int) -> None:
    print(f"median seconds of a step, {steps} steps of the demo, watched and unwatched in turn")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        run_once(True, Path(folder), 5)  # warm-up: caches of the model and the rows
        for number in range(rounds):
            order = (True, False) if number % 2 == 0 else (False, True)
            seconds = {}
            for watched in order:
                state = run_once(watched, Path(folder), steps)
                seconds[watched] = statistics.median(list(state.curves.seconds)[3:])
            ratios.append(seconds[True] / seconds[False])
            print(f"  watched {seconds[True]:.4f}  unwatched {seconds[False]:.4f}  ratio {ratios[-1]:.4f}")
    print(f"  median ratio {statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", action="store_true", help="also compare whole runs")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cost_of_an_event()
    if options.runs:
        watched_and_not(options.steps, options.rounds)
