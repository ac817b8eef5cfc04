"""Keeps one application on the machine that trains: ``python -m backprop_tui.remote.holder SOCKET_FD PATH HELLO``.

A terminal somewhere is attached to it, or none: then the application goes on with everything on its screen, what it
draws is dropped, and whoever attaches next sees it whole. It ends with the application, which ends when nobody came
for ``WAITS``. Runs have processes of their own and know nothing of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from backprop_tui.remote.packets import HEAD, pack

WAITS = 1800.0
"""Seconds without a terminal after which the application leaves: longer than a lunch, and what is lost then is a
place on a screen. Meanwhile it costs some 100 MB, on a machine whose memory is for training."""
WINDOW = 1 << 16
"""Bytes of drawing on their way, a few full screens. More is dropped and drawn anew later: a slow line shows the
present late, and never the past."""
ANSWERS = 3.0
"""Seconds in which a terminal that is there answers."""
GRACE = 3.0
"""Seconds that the application may take to leave."""
_MOST_SAID = 2000


class Holder:
    """Holds the application that ``hello`` asks for, under the name ``session``."""

    def __init__(self, session: str, hello: dict[str, Any]) -> None:
        self._session, self._hello = session, hello
        self._terminal: asyncio.StreamWriter | None = None
        self._was_seen = False
        self._on_the_way = 0
        self._is_behind = False
        """Drawing was dropped: all of it is wanted when what is on the way has arrived."""
        self._heard = asyncio.Event()
        self._end: dict[str, Any] = {}

    async def run(self, listening: socket.socket) -> None:
        """Hold the application until it ends."""
        self._loop = asyncio.get_running_loop()
        self._wait_alone()
        columns, rows = map(str, self._hello["size"])
        with tempfile.TemporaryFile() as errors:
            self._app = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "backprop_tui.remote_app"),
                *(self._hello["host"], *self._hello["arguments"]),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "COLUMNS": columns, "ROWS": rows},
            )
            assert self._app.stdin is not None
            self._keys = self._app.stdin
            server = await asyncio.start_unix_server(self._attach, sock=listening)
            with suppress(asyncio.IncompleteReadError):
                await self._pass_on()
            self._loop.call_later(GRACE, self._kill)
            status = await self._app.wait()
            if not self._end:
                errors.seek(0)
                said = errors.read()[-_MOST_SAID:].decode(errors="replace")
                self._end = {"status": 2, "text": f"{said}the application ended without a word ({status})\n"}
        server.close()
        if self._terminal is not None:
            self._send(b"E", json.dumps(self._end).encode())
            self._terminal.close()
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(self._terminal.wait_closed(), GRACE)

    async def _pass_on(self) -> None:
        """Send what the application draws to the terminal that is there, until it says farewell."""
        assert self._app.stdout is not None
        while not self._end:
            kind, payload = await _read(self._app.stdout)
            told = json.loads(payload) if kind == b"M" else {}
            if kind == b"D" and self._terminal is not None:
                self._is_behind = self._is_behind or self._on_the_way >= WINDOW
                if not self._is_behind:
                    self._on_the_way += len(payload)
                    self._send(b"D", payload)
            elif told.get("type") == "suspend":
                self._send(b"Z")
            elif told.get("type") == "farewell":
                self._end = told

    def _send(self, kind: bytes, payload: bytes = b"") -> None:
        if self._terminal is not None:
            self._terminal.write(pack(kind, payload))

    def _tell_app(self, kind: str, **more: int) -> None:
        self._keys.write(pack(b"M", json.dumps({"type": kind, **more}).encode()))

    # Terminals

    async def _attach(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one terminal, unless another one is there and this one does not come to take its place."""
        try:
            hello = json.loads((await _read(reader))[1])
            if not hello["session"] and await self._is_somebody_there():
                return
            if self._terminal is not None:
                self._send(b"E", json.dumps({"status": 0, "text": "this screen is in another terminal now\n"}).encode())
                self._terminal.close()
            self._deadline.cancel()
            self._terminal, self._on_the_way, self._is_behind = writer, 0, False
            self._send(b"O", json.dumps({"session": self._session}).encode())
            if self._was_seen:
                self._tell_app("resize", width=hello["size"][0], height=hello["size"][1])
                self._tell_app("repaint")
            self._was_seen = True
            while True:
                self._take(*await _read(reader))
                with suppress(OSError):  # the application has left, which is told at the end of what it says
                    await self._keys.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if self._terminal is writer:
                self._terminal = None
                self._wait_alone()
            writer.close()

    async def _is_somebody_there(self) -> bool:
        """Whether a terminal is attached and answers: a cut line looks open from this end, for hours."""
        self._heard.clear()
        self._send(b"P")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), ANSWERS if self._terminal is not None else 0)
        return self._heard.is_set()

    def _take(self, kind: bytes, payload: bytes) -> None:
        self._heard.set()
        if kind == b"K":
            self._keys.write(pack(b"D", payload))
        elif kind == b"S":
            columns, rows = json.loads(payload)
            self._tell_app("resize", width=columns, height=rows)
        elif kind == b"R":
            self._tell_app("repaint")
        elif kind == b"A":
            self._on_the_way -= int.from_bytes(payload, "big")
            if self._is_behind and self._on_the_way <= 0:
                self._is_behind = False
                self._tell_app("repaint")

    # The end

    def _wait_alone(self) -> None:
        self._deadline = self._loop.call_later(WAITS, self._leave)

    def _leave(self) -> None:
        """Have the application leave; where that would end its work, it is asked again later."""
        self._tell_app("unwatched")
        self._wait_alone()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._app.kill()


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next packet.

    Raises:
        asyncio.IncompleteReadError: there is none any more.
    """
    head = await reader.readexactly(HEAD)
    return head[:1], await reader.readexactly(int.from_bytes(head[1:], "big"))


def main() -> None:
    """Hold what the command line asks for, then take the socket away."""
    descriptor, path, hello = sys.argv[1:]
    try:
        asyncio.run(Holder(Path(path).name, json.loads(hello)).run(socket.socket(fileno=int(descriptor))))
    finally:
        Path(path).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
