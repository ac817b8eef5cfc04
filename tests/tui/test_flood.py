"""A key is answered on every screen, however much an engine has to say."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import made_events
import pytest
import recorded
from acting import key_of, seen, until

from backprop_tui.app import BackpropApp
from backprop_tui.screens import SCREENS
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


@pytest.mark.parametrize("size", [(80, 24), (140, 45)])
async def test_every_screen_answers_a_key_under_a_flood_of_events(
    flooding: recorded.Recorder, size: tuple[int, int]
) -> None:
    async with BackpropApp(attach=flooding.directory.path).run_test(size=size) as pilot:
        app = await seen(pilot, 1_000)
        for entry in (*SCREENS, *reversed(SCREENS)):
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
