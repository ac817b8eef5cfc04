"""The web server of ``backprop ui``: its own page, the files of that page, and a process for each page that is open."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import aiohttp
from aiohttp import web
from backprop.core.errors import BackpropError

from backprop_tui.web.guard import Guard
from backprop_tui.web.session import Session, cells

MOST_SESSIONS = 10
FOR_A_SLOT = 2.0
"""Seconds that a page waits for one that is being closed: a reload needs no slot of its own."""
_HERE, _SERVED = Path(__file__).parent, Path(str(files("textual_serve"))) / "static"
FILES = {
    "": _HERE / "page.html",
    "page.css": _HERE / "page.css",
    "page.js": _HERE / "page.js",
    "textual.js": _SERVED / "js" / "textual.js",
    "xterm.css": _SERVED / "css" / "xterm.css",
    "font.ttf": _SERVED / "fonts" / "RobotoMono-VariableFont_wght.ttf",
}
"""Everything that is served."""
HEADERS = {
    # xterm.js makes styles of its own.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src data:; font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server:
    """Serves the application to browsers; ``root`` is the directory that its sessions may write to."""

    def __init__(self, host: str, port: int, password: str | None, root: Path) -> None:
        self._host, self._port, self._root = host, port, root
        self._asks = password is not None
        self._guard = Guard(host, password)
        self._places: dict[str, list[str]] = defaultdict(list)
        """What each browser tab showed last."""
        self._slots = asyncio.Semaphore(MOST_SESSIONS)
        self._open: set[web.WebSocketResponse] = set()

    async def run(self, ready: Callable[[int], None]) -> None:
        """Serve until SIGINT or SIGTERM; ``ready`` is called with the port once the rules were seen to hold.

        Raises:
            OSError: the port is taken, or there is no such address.
            BackpropError: the password is not asked for (code ``RUNTIME_UI_AUTH_NOT_ENFORCED``).
        """
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        application = web.Application(middlewares=[self._guard.check])
        application.add_routes([web.get("/ws/{tab:[0-9a-f]{32}}", self._show), web.get("/{name:[a-z.]*}", self._file)])
        application.on_response_prepare.append(_add_headers)
        application.on_shutdown.append(self._close)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
            if self._asks:
                await self._require_enforced(*runner.addresses[0][:2])
            ready(runner.addresses[0][1])
            await ended.wait()
        finally:
            await runner.cleanup()

    async def _require_enforced(self, host: str, port: int) -> None:
        """See that this very server asks a stranger for the password, also where applications are started."""
        headers = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}", "Upgrade": "websocket"}
        async with aiohttp.ClientSession(f"http://{f'[{host}]' if ':' in host else host}:{port}") as stranger:
            for address in ("/", f"/ws/{'0' * 32}"):
                async with stranger.get(address, headers=headers) as answer:
                    if answer.status != web.HTTPUnauthorized.status_code:
                        raise BackpropError(
                            f"the server answers without the password (status {answer.status})",
                            hint="nothing is served; this is a defect in the program",
                            code="RUNTIME_UI_AUTH_NOT_ENFORCED",
                        )

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if (path := FILES.get(name := request.match_info["name"])) is None:
            raise web.HTTPNotFound
        response = web.FileResponse(path)
        if not name:
            self._guard.admit(response)
        return response

    async def _show(self, request: web.Request) -> web.StreamResponse:
        """The application in a page, until one of the two ends."""
        if not (socket := web.WebSocketResponse(heartbeat=15)).can_prepare(request):
            raise web.HTTPBadRequest(text="this address is for a websocket\n")
        try:
            await asyncio.wait_for(self._slots.acquire(), FOR_A_SLOT)
        except TimeoutError:
            raise web.HTTPServiceUnavailable(text=f"{MOST_SESSIONS} pages are open already\n") from None
        try:
            await socket.prepare(request)
            self._open.add(socket)
            session = Session(socket, self._places[request.match_info["tab"]], self._root)
            await session.start(cells(request.query.get("width"), 80), cells(request.query.get("height"), 24))
            try:
                async for message in socket:
                    await session.take(message)
            finally:
                await session.end()
        finally:
            self._open.discard(socket)
            self._slots.release()
        return socket

    async def _close(self, _: web.Application) -> None:
        await asyncio.gather(*(socket.close() for socket in self._open))


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
