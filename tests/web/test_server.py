"""What the real server answers, and to whom; what a page that comes and goes starts and ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from backprop.core.confinement import CONFINED
from web_pages import KNOWN, USER, Served

from backprop_tui.web import guard
from backprop_tui.web.server import FILES, MOST_SESSIONS

WS = f"/ws/{'a' * 32}"


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_the_page_names_no_other_address_and_reaches_none(served: Served, client: aiohttp.ClientSession) -> None:
    for name in FILES:
        async with client.get(f"{served.url}/{name}", headers=KNOWN) as answer:
            assert answer.status == 200
            policy = dict(part.split(maxsplit=1) for part in answer.headers["Content-Security-Policy"].split("; "))
            assert policy.pop("default-src") == policy.pop("frame-ancestors") == "'none'"
            assert {word for words in policy.values() for word in words.split()} <= {
                *("'self'", "'none'", "data:", "'unsafe-inline'")
            }
            assert "'unsafe-inline'" not in policy["script-src"]
            if name.startswith("page") or not name:
                assert re.findall(r"//\w[^\s\"']*", (await answer.text()).replace("// ", "")) == []
    for hidden in ("static/", "ws/", "guard.py", "../guard.py", "download/x"):
        async with client.get(f"{served.url}/{hidden}", headers=KNOWN) as answer:
            assert answer.status == 404, hidden


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({**KNOWN, "Origin": "{url}", "Host": "evil.example"}, 403),
        ({**KNOWN, "Origin": "http://evil.example"}, 403),
        ({**KNOWN, "Origin": "http://localhost:1"}, 403),
        ({**KNOWN, "Origin": "null"}, 403),
        (KNOWN, 403),
        ({**KNOWN, "Origin": "http://evil.example", "X-Forwarded-Host": "good.example"}, 403),
        ({"Origin": "{url}"}, 401),
        ({"Origin": "{url}", "Authorization": aiohttp.encode_basic_auth(USER, "open: sesami")}, 401),
        ({"Origin": "{url}", "Authorization": "Basic ?"}, 401),
        ({"Origin": "{url}", "Cookie": "backprop=guess"}, 401),
    ],
)
async def test_who_is_not_the_page_is_refused_and_nothing_starts(
    served: Served, client: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    headers = {name: value.format(url=served.url) for name, value in headers.items()}
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.ws_connect(served.url + WS, headers=headers)
    assert (refused.value.status, served.applications) == (status, [])
    if status == 401:
        async with client.get(served.url, headers=headers) as page:
            assert page.status == status
    async with client.get(served.url, headers=KNOWN) as page:  # the right one: what was guessed is forgotten
        assert page.status == 200


def test_a_request_without_a_host_is_refused(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", int(served.port))) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 403 " in connection.recv(64)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost:9000", "Origin": "http://localhost:9000"},
        {"Host": "[::1]:80", "Origin": "http://[::1]:80"},
        {"X-Forwarded-Host": "train.example", "Origin": "https://train.example"},
    ],
    ids=("ssh -L", "another port", "a proxy with a name"),
)
async def test_a_page_that_came_by_another_port_is_let_in_by_its_ticket(
    served: Served, client: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with client.get(served.url, headers=headers | KNOWN) as page:
        ticket = page.cookies[guard.COOKIE]
    assert (ticket["httponly"], ticket["samesite"]) == (True, "Strict")
    cookie = {"Cookie": f"{guard.COOKIE}={ticket.value}"}
    async with client.ws_connect(served.url + WS, headers=headers | cookie) as page:
        await served.wait_for_applications(1)
    await served.wait_for_applications(0)


async def test_after_five_wrong_passwords_guesses_wait_and_go_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waited, begun, go_on = [], asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        begun.set()
        await go_on.wait()

    monkeypatch.setattr(guard, "asyncio", SimpleNamespace(sleep=sleep, Lock=asyncio.Lock))

    async def page(_: web.Request) -> web.Response:
        return web.Response()

    application = web.Application(middlewares=[guard.Guard("127.0.0.1", "a:b").check])
    application.router.add_get("/", page)
    async with TestClient(TestServer(application)) as client:

        async def status(password: str) -> int:
            async with client.get("/", headers={"Authorization": aiohttp.encode_basic_auth("a", password)}) as answer:
                return answer.status

        assert [await status("c") for _ in range(guard.FREE_GUESSES)] == [401] * 5
        assert waited == []
        slow = asyncio.create_task(status("b"))
        await begun.wait()
        assert await status("b") == 429
        go_on.set()
        assert (await slow, waited) == (200, [guard.DELAY])
        assert (await status("b"), waited) == (200, [guard.DELAY])


async def test_the_eleventh_page_is_refused_and_its_application_does_not_start(served: Served) -> None:
    async with AsyncExitStack() as pages:
        for _ in range(MOST_SESSIONS):
            await pages.enter_async_context(served.page())
        await served.wait_for_applications(MOST_SESSIONS)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await pages.enter_async_context(served.page())
        assert (refused.value.status, len(served.applications)) == (503, MOST_SESSIONS)
    await served.wait_for_applications(0)
    async with served.page() as page:
        await page.wait_for("Welcome")


async def test_a_page_returns_to_its_screen_and_its_application_ends_with_it(served: Served) -> None:
    tab = "b" * 32
    async with served.page(tab) as page:
        await page.wait_for("Welcome")
        environment = served.applications[0].environ()
        assert environment[CONFINED] == environment["BACKPROPAGATE_RUN__OUTPUT_DIR"] == str(served.root)
        await page.press("2")
        await page.wait_for("batch_size")
        for malformed in ("{", "[]", "[1]", '["stdin", 3]', '["resize", {}]', '["resize", {"width": "x"}]', '["what"]'):
            await page.socket.send_str(malformed)
        await page.socket.send_json(["resize", {"width": 90, "height": 28}])
        await page.socket.send_json(["ping", "1"])
        while (message := await page.socket.receive()).type != aiohttp.WSMsgType.TEXT:
            assert message.type == aiohttp.WSMsgType.BINARY
        assert message.json() == ["pong", "1"]
    await served.wait_for_applications(0)
    async with served.page(tab) as page:
        await page.wait_for("batch_size")
        await page.press("q")
        assert (await wait_closed(page)).type == aiohttp.WSMsgType.CLOSE
    await served.wait_for_applications(0)


async def wait_closed(page: Any) -> aiohttp.WSMessage:
    while (message := await page.socket.receive()).type == aiohttp.WSMsgType.BINARY:
        pass
    return message


async def test_an_application_that_hangs_is_ended_with_its_page(served: Served) -> None:
    async with served.page() as page:
        await page.wait_for("Welcome")
        served.applications[0].send_signal(signal.SIGSTOP)
    await served.wait_for_applications(0)


async def test_an_application_ends_with_a_server_that_is_killed(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "backprop_tui.web.application"],
        stdin=reading,
        stdout=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80", "ROWS": "24"},
        cwd=tmp_path,
    )
    os.close(reading)
    assert process.stdout is not None
    assert process.stdout.readline() == b"__GANGLION__\n"
    os.close(writing)
    process.stdout.read()
    assert process.wait(60) == 1
