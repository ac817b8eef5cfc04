"""The palette, and what it finds besides keys: runs, datasets that were opened, presets; read when it is opened."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from backprop.core.datasets import recent_datasets
from backprop.core.presets import TRAINING_PRESETS
from backprop.runs import engine_client
from backprop.runs.index import RunIndex
from textual.app import App
from textual.await_complete import AwaitComplete
from textual.command import CommandList, CommandPalette, DiscoveryHit, Hit, Hits, Provider
from textual.message import Message
from textual.worker import Worker

from backprop_tui.screens.base import ConfigureRun, OpenRun, ShowOn
from backprop_tui.text import fit, from_home, safe, short_path

_RUNS = 20
"""The newest are named."""
_EDGES = 6
"""Cells of the window that a line cannot have."""


class Palette(CommandPalette):
    """Textual's, which keys and clicks of one burst would break: it is left once, and moves when it is drawn."""

    def dismiss(self, result: None = None) -> AwaitComplete:
        return super().dismiss(result) if self.app.screen is self else AwaitComplete()

    def _action_command_list(self, action: str) -> None:
        if any(commands.scrollable_content_region for commands in self.query(CommandList)):
            super()._action_command_list(action)

    def run_worker(self, *args: Any, **how: Any) -> Worker[Any]:
        """Its search may still go on when it is left, and then finds no list: that ends nothing."""
        return super().run_worker(*args, **{**how, "exit_on_error": False})

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        event.stop()

    def _action_cursor_down(self) -> None:
        if self.query(CommandList):
            super()._action_cursor_down()


def in_one_line(title: str, app: App[Any]) -> str:
    """As much of it as the palette has room for."""
    return fit(safe(title), app.size.width - _EDGES).rstrip()


class Known(NamedTuple):
    title: str
    message: Message
    """What choosing it asks of the application."""


def known() -> Iterator[Known]:
    """Everything that is known by a name; reads files."""
    with RunIndex() as index:
        for run in index.summaries(limit=_RUNS):
            path = Path(run.path)
            names = filter(None, (run.name, short_path(run.model), "←", short_path(run.dataset)))
            title = f"Watch {run.run_id}  {run.status:<8} {' '.join(names)}"
            yield Known(title, OpenRun(partial(engine_client.attach, path), path))
    for data in recent_datasets():
        yield Known(f"Open {from_home(data)}", ShowOn("data", data, 0))
    for name, preset in TRAINING_PRESETS.items():
        yield Known(f"Preset {name}: {preset.remark}", ConfigureRun({"preset": name}))


class KnownByName(Provider):
    """Lines of the palette for them."""

    async def startup(self) -> None:
        self._known = await asyncio.to_thread(lambda: list(known()))

    async def discover(self) -> Hits:
        for title, message in self._known:
            line = in_one_line(title, self.app)
            yield DiscoveryHit(line, partial(self.app.post_message, message), text=line)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for title, message in self._known:
            if score := matcher.match(title):
                line = in_one_line(title, self.app)
                yield Hit(score, matcher.highlight(line), partial(self.app.post_message, message), text=line)
