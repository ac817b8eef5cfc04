"""Pictures of every screen at the two sizes that matter, compared cell by cell and colour by colour.

``pytest tests/tui/test_pictures.py --snapshot-update`` takes them anew: look at each before you keep it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import recorded
from acting import ended, seen, shown_path, until
from backprop.core import events as ev
from textual.pilot import Pilot

from backprop_tui.app import BackpropApp
from backprop_tui.screens.runs.screen import RunsScreen

SMALL, LARGE = (80, 24), (120, 40)
Compare = Callable[..., bool]
pytestmark = pytest.mark.usefixtures("fixed_clock")


@pytest.fixture(autouse=True)
def true_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "truecolor")


@pytest.fixture
def living(output: Path) -> Iterator[recorded.Recorder]:
    run = recorded.running(output)
    with run.directory.hold_lock():
        yield run


def after(*keys: str, seq: int = 0) -> Callable[[Pilot[None]], Awaitable[None]]:
    """Wait for the run (for its end where ``seq`` is 0), then press keys."""

    async def act(pilot: Pilot[None]) -> None:
        await (seen(pilot, seq) if seq else ended(pilot))
        await pilot.press(*keys)
        await pilot.pause()

    return act


async def listed(pilot: Pilot[None]) -> None:
    screen = pilot.app.screen
    assert isinstance(screen, RunsScreen)
    await until(lambda: screen.found is not None, "the runs")
    await until(lambda: shown_path(screen) == screen.chosen_path, "the detail")
    await pilot.pause()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_live(living: recorded.Recorder, snap_compare: Compare, size: tuple[int, int]) -> None:
    app = BackpropApp(attach=living.directory.path)
    assert snap_compare(app, run_before=after(seq=living.seq), terminal_size=size)


def test_live_while_the_model_is_fetched(output: Path, snap_compare: Compare) -> None:
    run = recorded.Recorder(output, "aaaabbbbcccc", recorded.demo_like(output))
    with run.directory.hold_lock():
        run.write(
            ev.RunStarted(config={"model": "smollm2-135m", "data": "d.jsonl", "steps": 60}, output_dir="", pid=1),
            ev.PhaseChanged(phase="preparing_data"),
            ev.PhaseChanged(phase="loading_model"),
            ev.ModelLoading(model="smollm2-135m", stage="download", done=33_000_000, total=93_000_000),
        )
        app = BackpropApp(attach=run.directory.path)
        assert snap_compare(app, run_before=after(seq=run.seq), terminal_size=SMALL)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_answers_before_and_after(output: Path, snap_compare: Compare, size: tuple[int, int]) -> None:
    run = recorded.finished_demo(output)
    app = BackpropApp(attach=run.directory.path)
    assert snap_compare(app, run_before=after("tab"), terminal_size=size)


def test_what_is_trained(output: Path, snap_compare: Compare) -> None:
    run = recorded.finished_demo(output)
    app = BackpropApp(attach=run.directory.path)
    assert snap_compare(app, run_before=after("tab", "tab"), terminal_size=SMALL)


def test_a_failed_run(output: Path, snap_compare: Compare) -> None:
    run = recorded.failed(output)
    app = BackpropApp(attach=run.directory.path)
    assert snap_compare(app, run_before=after(), terminal_size=LARGE)


def test_an_engine_that_is_gone(output: Path, snap_compare: Compare) -> None:
    run = recorded.crashed(output)
    app = BackpropApp(attach=run.directory.path)
    assert snap_compare(app, run_before=after(), terminal_size=SMALL)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_runs(output: Path, snap_compare: Compare, size: tuple[int, int]) -> None:
    recorded.one_of_each(output)
    assert snap_compare(BackpropApp(), run_before=listed, terminal_size=size)


def test_no_runs_yet(snap_compare: Compare) -> None:
    assert snap_compare(BackpropApp(), run_before=listed, terminal_size=SMALL)


def test_the_question_on_leaving(living: recorded.Recorder, snap_compare: Compare) -> None:
    app = BackpropApp(attach=living.directory.path)
    assert snap_compare(app, run_before=after("q", seq=living.seq), terminal_size=SMALL)


def test_sixteen_colours(living: recorded.Recorder, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "standard")
    app = BackpropApp(attach=living.directory.path)
    assert snap_compare(app, run_before=after(seq=living.seq), terminal_size=SMALL)


def test_without_colour(output: Path, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    recorded.one_of_each(output)
    assert snap_compare(BackpropApp(), run_before=listed, terminal_size=SMALL)


@pytest.mark.parametrize(("size", "colour"), [(SMALL, False), ((140, 45), True)])
def test_runs_beside_each_other(
    output: Path, snap_compare: Compare, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], colour: bool
) -> None:
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    recorded.one_of_each(output)

    async def compare(pilot: Pilot[None]) -> None:
        await listed(pilot)
        await pilot.press(*["space"] * 5, "v")
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: len(screen._comparison.plot.runs) == 5, "the curves")
        await pilot.pause()

    assert snap_compare(BackpropApp(), run_before=compare, terminal_size=size)
