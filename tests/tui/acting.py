"""Waiting for the application in tests: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from patience import PATIENCE
from textual.pilot import Pilot

from backprop_tui.app import BackpropApp
from backprop_tui.keys import press
from backprop_tui.screens.runs.screen import RunsScreen
from backprop_tui.watch import Watch


async def until(condition: Callable[[], bool], what: str = "the condition") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.01)


async def seen(pilot: Pilot[None], seq: int) -> BackpropApp:
    """Wait until the watched run is taken in up to event ``seq`` and drawn."""
    app = pilot.app
    assert isinstance(app, BackpropApp)
    await until(lambda: app.watched is not None and app.watched.state.last_seq >= seq, f"event {seq}")
    await pilot.pause()
    app.flush()
    await pilot.pause()
    return app


async def ended(pilot: Pilot[None]) -> BackpropApp:
    """Wait until the watched run is known to be over and drawn."""
    app = pilot.app
    assert isinstance(app, BackpropApp)
    await until(lambda: app.watched is not None and over(app.watched), "the end")
    await pilot.pause()
    app.flush()
    await pilot.pause()
    return app


def over(watch: Watch) -> bool:
    """Whether all is known of a run that is over, its last words too, or why it cannot be read."""
    return watch.state.ended and not watch.state.alive and (watch._over or watch.error is not None)


def key_of(screen: str) -> str:
    """The key that opens a screen."""
    return press(f"everywhere.{screen}")


def text_of(app: BackpropApp) -> str:
    """What the screen shows, as text."""
    return "\n".join(strip.text.rstrip() for strip in app.screen._compositor.render_strips())


def shown_path(screen: RunsScreen) -> str:
    """Directory of the run that the list shows in detail."""
    return screen._shown_state.path if screen._shown_state else ""
