"""Who may open the application in a browser: asked of every request, before anything starts because of it.

Another site's page may send requests here (their ``Origin`` tells), or have its own name point here (the ``Host``
tells), and so may anybody who reaches the port (the password tells).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import secrets
import socket
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

COOKIE = "backprop"
FREE_GUESSES = 5
"""Wrong passwords in a row, after which guesses are taken one at a time, each ``DELAY`` seconds later."""
DELAY = 1.0


class Guard:
    """Lets requests through that come from this server's own page and know the password.

    Args:
        host: the address that the server listens on.
        password: ``USER:PASSWORD``; ``None`` where none is asked for.
    """

    def __init__(self, host: str, password: str | None) -> None:
        self._beyond = not is_loopback(host)
        self._names = {"localhost", host.lower()}
        if self._beyond:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        self._password = None if password is None else hashlib.sha256(password.encode()).digest()
        self._ticket = secrets.token_urlsafe(32)
        self._wrong = 0
        self._guessing = asyncio.Lock()

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what is not from the page (403), does not know the password (401), or guesses it too fast (429)."""
        if why := self._foreign(request):
            logging.getLogger("backprop.web").warning("refused: %s", why)
            raise web.HTTPForbidden(text=f"{why}\n")
        if not await self._is_known(request):
            asks = {"WWW-Authenticate": 'Basic realm="backprop", charset="UTF-8"'}
            raise web.HTTPUnauthorized(text="the password of `backprop ui` is needed\n", headers=asks)
        return await handler(request)

    def admit(self, response: web.StreamResponse) -> None:
        """Give the page a ticket: not every browser sends a password with a websocket."""
        if self._password is not None:
            response.set_cookie(COOKIE, self._ticket, httponly=True, samesite="Strict")

    def _foreign(self, request: web.Request) -> str:
        """Why a request is not from this server's page; empty where it is."""
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if not self._is_ours(host):
            return f"the host {host!r} is not this server"
        if origin is None:
            return "there is no Origin: its page opens the application" if "Upgrade" in request.headers else ""
        # No page chooses these headers. The second is of a proxy, which was asked by that name.
        own = {host.lower(), request.headers.get("X-Forwarded-Host", host).lower()}
        scheme, _, site = origin.lower().partition("://")
        return "" if scheme in ("http", "https") and site in own else f"the origin {origin!r} is another site"

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._names or ipaddress.ip_address(name).is_loopback or self._beyond
        except ValueError:
            return False

    async def _is_known(self, request: web.Request) -> bool:
        ticket = request.cookies.get(COOKIE, "").encode(errors="surrogateescape")
        if self._password is None or hmac.compare_digest(ticket, self._ticket.encode()):
            return True
        code = request.headers.get("Authorization", "").removeprefix("Basic ")
        if not code:
            return False
        if self._wrong >= FREE_GUESSES and self._guessing.locked():
            raise web.HTTPTooManyRequests(text="somebody is guessing the password: try again\n")
        async with self._guessing:
            if self._wrong >= FREE_GUESSES:
                await asyncio.sleep(DELAY)
            try:
                given = base64.b64decode(code, validate=True)
            except binascii.Error:
                given = b""
            known = hmac.compare_digest(hashlib.sha256(given).digest(), self._password)
            self._wrong = 0 if known else self._wrong + 1
        return known


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone.

    Raises:
        OSError: there is no such address.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in found)
