"""A watched run needs as much memory however long it is, and shows all of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import recorded
from acting import until
from backprop.core import events as ev
from backprop.runs import engine_client
from backprop.runs.state import read_run

from backprop_tui.charts.series import STEPS_AT_ONCE, RunSeries
from backprop_tui.watch import Watch

STEPS = 20_000


def in_one_piece(path: Path) -> RunSeries:
    """The series of a run of which every step is kept."""
    state, series = read_run(path), RunSeries()
    while series.follow(state):
        pass
    return series


def shown(series: RunSeries) -> list[list[object]]:
    return [[step, bucket.total, bucket.count, bucket.smooth] for step, bucket in series.loss.buckets()]


async def test_an_engine_that_takes_a_watched_run_again_is_not_silent_since_the_one_before(output: Path) -> None:
    run = recorded.crashed(output)
    watch = Watch(engine_client.attach(run.directory.path))
    link = watch.link
    await until(lambda: not watch.advance() and watch.state.last_seq == run.seq, "the run")
    watch.close()
    watch.state.alive = False
    watch._inbox.append(([], True, False))
    before = time.time()
    watch.advance()
    assert watch.state.alive
    assert watch.state.silence(before + 9.0) == ""
    assert watch.state.silence(watch.state.awaited_since + 40.0) == "no sign of the engine for 40 s"
    link.detach()


@pytest.mark.parametrize("resumed_from", [STEPS - 5, STEPS // 2, 3, 0])
async def test_a_long_run_that_is_continued_elsewhere_is_shown_whole(output: Path, resumed_from: int) -> None:
    run = recorded.running(output, steps=5)
    path = run.directory.path
    with run.directory.hold_lock():
        watch = Watch(engine_client.attach(path))

        def taken() -> int:
            return 0 if watch.advance() else watch.state.last_seq

        for first in range(6, STEPS, 5_000):
            run.write(*recorded.make_steps(first, min(STEPS, first + 4_999), STEPS))
            await until(lambda: taken() == run.seq, "the steps")
        assert len(watch.state.curves) <= 2 * STEPS_AT_ONCE
        assert shown(watch.series) == shown(in_one_piece(path))
        assert watch.state.smoothed_loss == read_run(path).smoothed_loss

        run.write(ev.RunStarted(config={}, output_dir=str(path), pid=1, resumed_from=resumed_from))
        run.write(*recorded.make_steps(resumed_from + 1, resumed_from + 40, STEPS, seed=8))
        await until(lambda: taken() == run.seq, "the steps that are taken again")
        assert shown(watch.series) == shown(in_one_piece(path))
        watch.close()
