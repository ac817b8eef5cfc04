"""The runner of the queue (``runs.queue``): a process of its own that starts one engine after another.

Engines outlive it as they outlive every face; the next runner waits for the one that it finds at work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from backprop.core.errors import BackpropError
from backprop.core.events import Gpu
from backprop.core.files import exclusive
from backprop.core.settings import RunConfig
from backprop.hardware.gpu import GPUMonitor
from backprop.hardware.thermal import thresholds
from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory, is_run
from backprop.runs.index import RunIndex
from backprop.runs.queue import Entry, Queue
from backprop.runs.state import ENDED, read_run

_LOOK_AGAIN = 5.0
"""Seconds between two looks at what holds up the next entry."""
_FULL = 0.3
"""Of a card's memory in use: somebody is on it, where the driver does not say who."""


class Obstacles:
    """What a run should wait for: a hot card, one that is taken, another run."""

    def __init__(self) -> None:
        self._monitor = GPUMonitor()
        self._other: RunDirectory | None = None
        """The run that was found at work."""

    def __call__(self, config: RunConfig) -> str:
        """Why a run with these settings should not begin now, in words; empty where it may."""
        readings = self._monitor.read() if config.backend != "cpu" else []
        limit = thresholds(config).warning
        for card in used_cards(readings, config.processes):
            if card.temperature is not None and card.temperature >= limit:
                return f"GPU {card.index} is at {card.temperature:.0f} °C; it has to be below {limit:.0f} °C"
            share = (card.memory_used or 0) / (card.memory_total or 1)
            if card.other_processes or (card.other_processes is None and share > _FULL):
                return f"GPU {card.index} is taken: other processes compute on it, {share:.0%} of its memory are in use"
        if self._other is None or not self._other.is_alive():
            with RunIndex() as index:
                living = (RunDirectory(Path(run.path)) for run in index.each() if run.status not in ENDED)
                self._other = next(living, None)
        return f"run {self._other.run_id} is being trained" if self._other else ""


def used_cards(cards: list[Gpu], number: int) -> list[Gpu]:
    """Those of all cards that a run on ``number`` of them uses: the first that CUDA shows."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if all(each.strip().isdigit() for each in shown):
        cards = [cards[int(each)] for each in shown if int(each) < len(cards)]
    return cards[:number]


def serve(
    queue: Queue, obstacle: Callable[[RunConfig], str], pause: Callable[[], object], lock: int | None = None
) -> None:
    """Train what waits, one after another, until nothing does; at once where another runner lives.

    Args:
        obstacle: why a run with these settings should not begin now; empty where it may.
        pause: waits until it is to be asked again.
        lock: the open file ``queue.runner``, where whoever started this runner has locked it.
    """
    with ExitStack() as held:
        try:
            runner = held.enter_context(exclusive(queue.runner, wait=False)) if lock is None else lock
        except BlockingIOError:
            return
        if lock is not None:
            held.callback(os.close, lock)
        os.ftruncate(runner, 0)
        while True:
            for entry in queue.read().running:
                work(queue, entry)
            with queue.editing():
                now = queue.read()
                if now.idle:
                    held.close()  # whoever adds an entry after this finds no runner
                    return
            reason = obstacle(now.waiting[0].config)
            os.ftruncate(runner, 0)
            os.pwrite(runner, reason.encode(), 0)
            if reason:
                pause()
            else:
                queue.claim(now.waiting[0].run_id)


def work(queue: Queue, entry: Entry) -> None:
    """Train a claimed entry, or learn how its run ended where an earlier runner began it."""
    directory = RunDirectory(entry.directory)
    try:
        with exclusive(queue.path("running", entry.run_id)) as lock:  # which an earlier runner's engine may hold
            if not is_run(directory.path) or not read_run(directory.path).last_seq:
                RunDirectory.create(entry.config, origins=entry.origins, run_id=entry.run_id)
                with RunIndex() as index:
                    index.add(directory.path)
                engine = engine_client.launch(directory, "start", holding=(lock,))
                engine.detach()
                engine.wait()
            state = read_run(directory.path)
        status = state.status if state.ended else "crashed"
        message = f"`backprop resume {entry.run_id}` goes on" if status == "crashed" else ""
        message = state.failed.message if state.failed else message
    except (BackpropError, OSError) as error:
        status, message = "failed", str(error)
    queue.finish(entry, status, message)


if __name__ == "__main__":
    serve(Queue(), Obstacles(), lambda: time.sleep(_LOOK_AGAIN), lock=0)
