"""What goes on beside what was opened here: runs that are trained, how many are queued, who and where this is."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from backprop.core.errors import BackpropError
from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from backprop.runs.queue import Queue
from textual.app import App

from backprop_tui.watch import Watch

LOOK_AGAIN = 3.0
"""Seconds between two looks."""


class Elsewhere:
    """Looked at in a thread while the application runs; runs that are over are not read.

    Args:
        opened: the runs that were opened here.
        tell: says something of a run that was not.

    Attributes:
        watches: the runs that were not opened here.
        queued: how many runs wait for their turn.
        place: as ``place``.
    """

    def __init__(self, app: App[Any], opened: Callable[[], list[Watch]], tell: Callable[[Watch, str], object]) -> None:
        self._app, self._opened, self._tell = app, opened, tell
        self.watches: list[Watch] = []
        self.queued, self.place = 0, ""
        self._looked = False

    def look(self) -> None:
        """Look, and again after a while."""

        def work() -> None:
            living: list[Path] = []
            with suppress(OSError):  # the next look may be luckier
                self.place = self.place or place()
                with RunIndex() as index:
                    living = [path for path in index.perhaps_living() if RunDirectory(path).is_alive()]
                self.queued = Queue().count_waiting()
            self._app.call_from_thread(self._take, living)

        self._app.run_worker(work, thread=True, exit_on_error=False)

    def _take(self, living: list[Path]) -> None:
        first, self._looked = not self._looked, True
        for watch in [watch for watch in self.watches if not watch.live and watch.path not in living]:
            self.watches.remove(watch)
            watch.close()
        known = (*self._opened(), *self.watches)
        for path in (path for path in living if not any(watch.shows(path) for watch in known)):
            try:
                watch = Watch(engine_client.attach(path))
            except BackpropError:  # it was deleted just now
                continue
            self.watches.append(watch)
            if not first:
                self._tell(watch, "is being trained")
        self._app.set_timer(LOOK_AGAIN, self.look)

    @property
    def living(self) -> list[Watch]:
        """Those that are known to be trained."""
        return [watch for watch in self.watches if watch.live and watch.was_alive]


def place() -> str:
    """``user@host``, and the first card's name."""
    from backprop.hardware.devices import info  # nobody waits for it

    try:
        who = f"{getpass.getuser()}@"
    except (KeyError, OSError):  # a user without a name, in a container
        who = ""
    cards = [card.name for card in info().gpus]
    return "  ".join([f"{who}{socket.gethostname()}", *cards[:1]])
