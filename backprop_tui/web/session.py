"""One page's application: a process of its own that ends with the page, and what the page is told of it."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path

from aiohttp import WSMessage, WSMsgType, web
from backprop.core.confinement import CONFINED
from backprop.core.definition import settings
from backprop.core.settings_sources import PASSWORD
from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager

APPLICATION = "backprop_tui.web.application"
GRACE = 1.5
"""Seconds that the application may take to leave."""
_MOST_CELLS = 1000


class Session(AppService):
    """The application of one websocket.

    Args:
        place: the screen and the run that the page showed last; empty where it is new.
        root: the directory that may be written to.
    """

    def __init__(self, socket: web.WebSocketResponse, place: list[str], root: Path) -> None:
        super().__init__(
            APPLICATION,
            write_bytes=socket.send_bytes,
            write_str=socket.send_str,
            close=socket.close,  # type: ignore[arg-type]  # what it returns is not looked at
            download_manager=DownloadManager(),
        )
        self._place, self._root = place, root

    async def _open_app_process(self, width: int = 80, height: int = 24) -> asyncio.subprocess.Process:
        environment = self._build_environment(width, height)
        environment |= {CONFINED: str(self._root), settings()["output_dir"].variable: str(self._root)}
        for name in (PASSWORD, "TMUX", "SSH_CONNECTION"):  # of the terminal that the server was started in
            environment.pop(name, None)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", APPLICATION, *self._place),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._process, self._stdin = process, process.stdin
        return process

    async def run(self) -> None:
        """Pass on what the application draws until it ends; then the page is told so."""
        await super().run()
        await self.remote_close()

    async def on_meta(self, data: bytes) -> None:
        """Take what the application says of itself: where it is. It has no other business with the browser."""
        told = json.loads(data)
        if told["type"] == "place":
            self._place[:] = told["place"]

    async def take(self, message: WSMessage) -> None:
        """Pass on what the page sends: keys, its size, whether it has the focus. What is malformed is left out."""
        if message.type != WSMsgType.TEXT:
            return
        with suppress(ValueError, TypeError, KeyError, IndexError):
            kind, *rest = json.loads(message.data)
            if kind == "stdin" and isinstance(rest[0], str):
                await self.send_bytes(rest[0].encode())
            elif kind == "resize":
                await self.set_terminal_size(cells(rest[0]["width"], 80), cells(rest[0]["height"], 24))
            elif kind in ("focus", "blur"):
                await self.send_meta({"type": kind})
            elif kind == "ping":
                await self.remote_write_str(json.dumps(["pong", rest[0]]))

    async def end(self) -> None:
        """Have the application leave; kill it where it does not in time. Engines are in sessions of their own."""
        assert self._process is not None
        leaving = asyncio.gather(self.stop(), self._process.wait())
        if not (await asyncio.wait({leaving}, timeout=GRACE))[0]:
            self._process.kill()
        await leaving


def cells(given: object, default: int) -> int:
    """A number of columns or rows that a page asks for, within reason."""
    text = str(given)
    return max(1, min(int(text), _MOST_CELLS)) if text.isdecimal() else default
