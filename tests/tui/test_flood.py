"""A key is answered on every screen, however much an engine has to say."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import loop_at_rest
import made_events
import pytest
import recorded
from acting import key_of, seen, text_of, until
from backprop.runs import engine_client
from patience import PATIENCE

from backprop_tui.app import BackpropApp
from backprop_tui.screens import SCREENS, Entry
from backprop_tui.screens.base import OpenRun
from backprop_tui.screens.dialogs import Help


@pytest.fixture
def flooding(output: Path) -> Iterator[recorded.Recorder]:
    """A living run whose engine writes steps as fast as it can."""
    run = recorded.running(output, steps=5)
    over = threading.Event()

    def write() -> None:
        for first in itertools.count(6, 500):
            if over.is_set():
                return
            run.write(*(made_events.step(number, total=10**7) for number in range(first, first + 500)))
            over.wait(0.02)

    with run.directory.hold_lock():
        thread = threading.Thread(target=write)
        thread.start()
        yield run
        over.set()
        thread.join()


@pytest.mark.parametrize(("size", "screens"), [((80, 24), SCREENS), ((140, 45), SCREENS[::-1])])
async def test_every_screen_answers_a_key_under_a_flood_of_events(
    flooding: recorded.Recorder,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    screens: tuple[Entry, ...],
) -> None:
    monkeypatch.setattr(loop_at_rest, "LONGEST", 0.1)  # its writer computes without end
    async with BackpropApp(attach=flooding.directory.path).run_test(size=size) as pilot:
        app = await seen(pilot, 1_000)
        for entry in screens:
            taken = app.watched.state.last_seq if app.watched else 0
            if app.focused is not None and app.focused.id == "entry":
                await pilot.press("escape")  # a line in which digits are text
            await pilot.press(key_of(entry.name))
            await until(lambda name=entry.name: app.current_mode == name, entry.name)  # type: ignore[misc]
            if app.focused is not None and app.focused.id == "entry":
                await pilot.press("escape")
            await pilot.press("question_mark")
            await until(lambda: isinstance(app.screen, Help), f"the help on {entry.name}")
            await pilot.press("escape")
            await until(lambda: not isinstance(app.screen, Help), f"{entry.name} again")
            await until(lambda then=taken: app.watched is not None and app.watched.state.last_seq > then, "more events")  # type: ignore[misc]


async def test_a_run_that_is_slow_to_begin_holds_up_no_key_and_is_begun_once(output: Path) -> None:
    run = recorded.finished_demo(output)
    go_on, begun = threading.Event(), list[Path]()

    def begin() -> engine_client.EngineClient:
        begun.append(run.directory.path)
        assert go_on.wait(PATIENCE)
        return engine_client.attach(run.directory.path)

    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        app = pilot.app
        assert isinstance(app, BackpropApp)
        app.post_message(OpenRun(begin))
        app.post_message(OpenRun(begin))
        await until(lambda: bool(begun), "its beginning")
        await pilot.press("question_mark")
        await until(lambda: isinstance(app.screen, Help), "the help")
        await pilot.press("escape")
        assert len(begun) == 1
        go_on.set()
        await until(lambda: app.current_mode == "live", "the run")
        app.post_message(OpenRun(begin))
        await until(lambda: len(begun) == 2, "another one, when the first was begun")


async def test_deleting_several_runs_says_how_far_it_is_and_is_stopped(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded.finished_demo(output)
    recorded.failed(output)
    go_on, asked = threading.Event(), list[Path]()

    def slowly(path: Path) -> None:
        asked.append(path)
        assert go_on.wait(PATIENCE)

    monkeypatch.setattr("backprop_tui.screens.runs.screen.delete_run", slowly)
    async with BackpropApp().run_test(size=(100, 24)) as pilot:
        app = pilot.app
        assert isinstance(app, BackpropApp)
        await until(lambda: "3f2a9c1b" in text_of(app), "the runs")
        await pilot.press("space", "space", "x", "d")
        await until(lambda: bool(asked), "the first one")
        app.flush()
        await until(lambda: "deleting 1 of 2, esc stops" in text_of(app), "how far it is")
        await pilot.press("escape")
        go_on.set()
        app.flush()
        await until(lambda: "deleting" not in text_of(app), "the end")
        assert len(asked) == 1
