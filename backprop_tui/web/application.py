"""The application in a page: ``python -P -m backprop_tui.web.application [SCREEN [RUN]]``, started by the web server.

It draws on its standard output for xterm.js, tells the server where it is, and ends with the server.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from pathlib import Path
from typing import Any

from textual.app import App
from textual.driver import Driver
from textual.drivers.web_driver import WebDriver

from backprop_tui.app import BackpropApp


def write(packet: bytes) -> None:
    """Write a packet whole: a pipe whose reader is slow takes a part."""
    while packet:
        packet = packet[os.write(1, packet) :]


class PageDriver(WebDriver):
    """Textual's own ends a packet where the pipe is full."""

    def __init__(self, app: App[Any], **more: Any) -> None:
        super().__init__(app, **more)
        del self._write

    def _write(self, packet: bytes) -> None:  # type: ignore[override]
        write(packet)


class WebApp(BackpropApp):
    """The application that begins on ``screen`` with ``run``, where the page showed them before."""

    CSS_PATH = "../app.tcss"

    def __init__(self, screen: str = "", run: str = "") -> None:
        super().__init__(attach=Path(run) if run and Path(run).is_dir() else None)
        self._begins_on = screen
        self._told_place: list[str] = []

    def get_driver_class(self) -> type[Driver]:
        return PageDriver

    def on_mount(self) -> None:
        super().on_mount()
        if self._begins_on:
            self.call_after_refresh(self.switch_mode, self._begins_on)

    def flush(self) -> None:
        super().flush()
        place = [self.current_mode, *([str(self.watched.path)] if self.watched is not None else [])]
        if place != self._told_place and isinstance(self._driver, WebDriver):
            self._told_place = place
            self._driver.write_meta({"type": "place", "place": place})


def end_with_server() -> None:
    """End this process when its standard input is closed: nobody sees it any more."""
    poll = select.poll()
    poll.register(0, 0)  # a hang-up is told unasked
    poll.poll()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_server, name="server-watch", daemon=True).start()
    WebApp(*sys.argv[1:]).run()
