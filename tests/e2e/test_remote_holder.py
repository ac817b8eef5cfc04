"""What keeps an application of ``--host`` on its machine, met at its socket: a slow line, nobody there, its own end."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyte
import pytest
from backprop.core import paths
from patience import PATIENCE
from processes import living

from backprop_tui.remote import engine, holder
from backprop_tui.remote.packets import pack, unpack
from backprop_tui.remote_app import RemoteApp

HELLO = {"host": "box", "session": "", "arguments": [], "size": [200, 50], "environment": {"TERM": "xterm-256color"}}


class Attached:
    """A terminal's end of the line, which answers when it is told to."""

    def __init__(self, link: socket.socket, data: bytes) -> None:
        self._link, self._held = link, bytearray(data)
        self._screen = pyte.Screen(200, 50)
        self._stream = pyte.ByteStream(self._screen)
        self.drawn = 0
        """Bytes of drawing that were not answered."""
        self.largest = 0
        self.other: list[tuple[bytes, bytes]] = []
        self._link.settimeout(0.05)

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        self._link.sendall(pack(kind, payload))

    def answer(self) -> None:
        """Say that what came is drawn."""
        self.send(b"A", self.drawn.to_bytes(4, "big"))
        self.drawn = 0

    def read_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come; the screen:\n{self.text}"
            with suppress(TimeoutError):
                self._held += self._link.recv(1 << 20)
            for kind, payload in unpack(self._held):
                if kind == b"D":
                    self._stream.feed(payload)
                    self.drawn += len(payload)
                    self.largest = max(self.largest, len(payload))
                else:
                    self.other.append((kind, payload))

    def ask(self) -> None:
        """Have the holder ask whether this terminal is there: the question comes behind all that it sent."""
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(self._link.getpeername())
            other.sendall(pack(b"H", json.dumps(HELLO).encode()))
            asked = len(self.other)
            self.read_until(lambda: (b"P", b"") in self.other[asked:], "the question")
            self.send(b"A", bytes(4))
            other.settimeout(PATIENCE)
            assert other.recv(1) == b""

    def close(self) -> None:
        self._link.close()


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Attached]]:
    """Attach to a new application, or to the one that is there where ``begin`` is no."""
    monkeypatch.chdir(tmp_path)
    state = tempfile.mkdtemp(prefix="state-", dir="/tmp")  # its path is as short as that of a socket has to be
    monkeypatch.setenv("XDG_STATE_HOME", state)
    before = set(psutil.Process().children())

    def attached(*, begin: bool) -> Attached | None:
        found = engine._begin(HELLO) if begin else engine._find(HELLO)
        return None if found is None else Attached(*found)

    yield attached
    for process in set(psutil.Process().children()) - before:
        process.kill()
        process.wait()
    shutil.rmtree(state)


def test_a_slow_line_is_sent_a_bounded_part_and_then_the_present(attach: Callable[..., Attached]) -> None:
    line = attach(begin=True)
    line.read_until(lambda: "Welcome to backprop" in line.text, "the application")
    line.answer()
    while line.drawn < holder.WINDOW:
        before = line.drawn
        line.send(b"R")
        line.read_until(lambda at=before: line.drawn > at, "a drawing")
    full = line.drawn
    for number in range(5):
        line.send(b"K", b"1")
        line.send(b"S", json.dumps([200, 50 - number]).encode())
        line.send(b"K", b"\x1a")  # what it does is told, and behind what the other keys made
        line.read_until(lambda stops=number + 1: line.other.count((b"Z", b"")) == stops, "the stop")
    line.ask()
    assert line.drawn == full < holder.WINDOW + line.largest
    assert "No dataset is open" not in line.text
    line.answer()
    line.read_until(lambda: "No dataset is open" in line.text, "the present")


def test_one_terminal_is_not_given_what_another_one_has_unless_that_is_silent(attach: Callable[..., Attached]) -> None:
    first = attach(begin=True)
    first.read_until(lambda: "Welcome to backprop" in first.text, "the application")
    again = attach(begin=False)  # the first one never answers what it is asked
    first.read_until(lambda: first.other[-1:] != [] and first.other[-1][0] == b"E", "the end")
    assert json.loads(first.other[-1][1]) == {"status": 0, "text": "this screen is in another terminal now\n"}
    again.read_until(lambda: "Welcome to backprop" in again.text, "the whole screen")
    again.close()


def test_a_second_terminal_is_refused_while_the_first_one_answers(attach: Callable[..., Attached]) -> None:
    first = attach(begin=True)
    first.read_until(lambda: "Welcome to backprop" in first.text, "the application")
    first.ask()
    first.answer()
    first.send(b"K", b"1")
    first.read_until(lambda: "No dataset is open" in first.text, "the Data screen")


def test_the_socket_is_for_this_user_alone_and_goes_with_the_application(attach: Callable[..., Attached]) -> None:
    line = attach(begin=True)
    line.read_until(lambda: "Welcome to backprop" in line.text, "the application")
    (path,) = engine._folder().iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    line.send(b"K", b"q")
    line.read_until(lambda: line.other[-1:] != [] and line.other[-1][0] == b"E", "the end")
    assert json.loads(line.other[-1][1])["status"] == 0
    line.read_until(lambda: not path.exists(), "the socket's going")


def test_the_socket_of_a_killed_holder_is_taken_away(attach: Callable[..., Attached]) -> None:
    line = attach(begin=True)
    line.read_until(lambda: "Welcome to backprop" in line.text, "the application")
    (path,) = engine._folder().iterdir()
    (child,) = living(psutil.Process().children(), str(path))
    (application,) = child.children()
    child.kill()
    child.wait()
    application.wait(PATIENCE)
    assert attach(begin=False) is None
    assert not path.exists()


def test_an_application_that_nobody_came_back_to_leaves(attach: Callable[..., Attached], monkeypatch: Any) -> None:
    code = "from backprop_tui.remote import holder\nholder.WAITS = 0.5\nholder.main()"
    monkeypatch.setattr(engine, "HOLDER", (sys.executable, "-P", "-c", code))
    line = attach(begin=True)
    line.read_until(lambda: "Welcome to backprop" in line.text, "the application")
    (path,) = engine._folder().iterdir()
    line.close()
    deadline = time.monotonic() + PATIENCE
    while path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_application_that_dies_says_what_it_said_last(attach: Callable[..., Attached]) -> None:
    line = attach(begin=True)
    line.read_until(lambda: "Welcome to backprop" in line.text, "the application")
    (path,) = engine._folder().iterdir()
    (child,) = living(psutil.Process().children(), str(path))
    (application,) = child.children()
    application.send_signal(signal.SIGABRT)
    line.read_until(lambda: line.other[-1:] != [] and line.other[-1][0] == b"E", "the end")
    end = json.loads(line.other[-1][1])
    assert end["status"] == 2
    assert f"ended without a word ({-signal.SIGABRT})" in end["text"]


def test_a_state_directory_with_a_long_path_is_no_place_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "state_dir", lambda: Path("/" + "long/" * 40))
    assert engine._folder() == paths.temporary_folder() / "remote"


def test_what_is_printed_at_the_far_end_is_not_on_its_line() -> None:
    code = "from backprop_tui.remote import engine\nengine._find = lambda hello: exit(print('noise'))\nengine.engine()"
    words = [sys.executable, "-c", code, "--stdio"]
    done = subprocess.run(words, input=pack(b"H", b"{}"), capture_output=True, check=True)
    assert b"noise" in done.stderr
    assert json.loads(done.stdout.removeprefix(b"backprop-engine ")) == {"protocol": 1, "version": "0.1.0"}


async def test_an_application_that_is_alone_with_an_export_stays_until_that_is_done() -> None:
    app = RemoteApp()
    async with app.run_test():
        work = ["An export goes on"]
        app._made[0].losing = lambda: "".join(work)  # type: ignore[method-assign]
        await app.run_action("leave_unwatched")
        assert app.is_running
        assert not app._exit
        work.clear()
        await app.run_action("leave_unwatched")
        assert app._exit
