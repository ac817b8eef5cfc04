"""``backprop-tui --host HOST``: the terminal's end. It draws what comes, sends keys and sizes, and comes back when cut.

Neither Textual nor click is loaded here, so that it is there at once.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import backprop
from backprop.core.errors import BackpropError, InputError, MissingDependencyError, RemoteError
from backprop.core.extras import DISTRIBUTION

from backprop_tui.remote.packets import MARK, PROTOCOL, TERMINAL, unpack
from backprop_tui.remote.screen import FullScreen
from backprop_tui.remote.ssh import PLACES, Link, command_line, require_destination
from backprop_tui.terminal import obstacle

LONGEST_WAIT = 30
"""Seconds between two tries, after 1, 2, 4, 8 and 16."""
QUIET = 2.0
"""Seconds after which what ssh says before it is through is for the person: a page to log in on, say."""
AT_ONCE = (b"r", b"\r")
LEAVING = (b"q", b"\x03")
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GREETING = re.compile(MARK + rb"(missing|\{.*\})\n")
_KEPT = 4000


def remote(arguments: list[str]) -> int:
    """Show the application of another machine until it ends or a person leaves; the exit code."""
    from backprop.cli import output

    try:
        host, rest = split_host(arguments)
        require_destination(host)
        if why := "--no-tui or --json" if {"--no-tui", "--json"} & set(rest) else obstacle():
            hint = f"plain lines: ssh {host} backprop {shlex.join(word for word in rest if word != '--no-tui')}"
            raise InputError(f"--host needs a full screen here ({why})", hint=hint)
        print(f"connecting to {host}", file=sys.stderr, flush=True)
        return Client(host, rest).run()
    except BackpropError as error:
        output.show_error(error, as_json=False)
        return error.exit_code


def split_host(arguments: list[str]) -> tuple[str, list[str]]:
    """The machine that ``--host`` names, and the other arguments.

    Raises:
        InputError: it is given twice.
    """
    at = next(i for i, word in enumerate(arguments) if word.partition("=")[0] == "--host")
    _, equals, host = arguments[at].partition("=")
    host, rest = (host, arguments[at + 1 :]) if equals else ("".join(arguments[at + 1 : at + 2]), arguments[at + 2 :])
    if any(word.partition("=")[0] == "--host" for word in rest):
        raise InputError("--host is given twice", hint="give it once")
    return host, [*arguments[:at], *rest]


class Client:
    """One terminal's end, over one ssh after another.

    Args:
        host: the machine, as ssh takes it.
        arguments: for the application there.
    """

    def __init__(self, host: str, arguments: list[str]) -> None:
        from backprop.core.resolve import resolve

        self._host, self._arguments = host, arguments
        self._there = resolve().app().remote_command
        self._screen = FullScreen()
        self._selector = selectors.DefaultSelector()
        self._session = ""
        self._status: int | None = None
        self._farewell = ""
        self._failures = 0
        self._again_at = 0.0
        self._why = ""

    def run(self) -> int:
        """Attach, until the application ends or the person leaves; the exit code."""
        woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for number in (*ENDING, signal.SIGWINCH, signal.SIGCONT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)  # its number comes through the pipe
        self._selector.register(woken, selectors.EVENT_READ, lambda: self._on_signals(os.read(woken, 64)))
        self._connect(asks=True)
        try:
            while self._status is None:
                self._step()
        finally:
            self._screen.leave()
            if self._link is not None:
                self._link.close()
        if self._farewell:
            sys.stdout.write(self._farewell)
        return self._status

    def _step(self) -> None:
        ready = self._selector.select(None if self._is_open else 1.0 if self._screen.is_on else QUIET)
        for key, _ in ready:
            take: Callable[[], None] = key.data
            if self._status is None and key.fd in self._selector.get_map():  # not taken out by the one before
                take()
        if self._screen.is_on and not self._is_open and self._status is None:
            if self._link is None and time.monotonic() >= self._again_at:
                self._connect(asks=False)
            self._say_lost()
        elif not ready and self._link is not None:
            os.write(2, self._link.said)
            self._link.said = b""

    # The line

    def _connect(self, *, asks: bool) -> None:
        self._link: Link | None = Link(command_line(self._host, self._there, asks=asks))
        self._asks, self._is_open, self._is_greeted, self._held = asks, False, False, bytearray()
        self._selector.register(self._link.stdout, selectors.EVENT_READ, partial(self._on_stdout, self._link))
        self._selector.register(self._link.stderr, selectors.EVENT_READ, partial(self._on_stderr, self._link))

    def _on_stderr(self, link: Link) -> None:
        if link.read_errors() == b"":
            self._selector.unregister(link.stderr)

    def _on_stdout(self, link: Link) -> None:
        data = link.stdout.read(1 << 16)
        if not data:
            self._lose(link)
            return
        self._held += data
        if not self._is_greeted:
            if (greeting := _GREETING.search(self._held)) is None:
                del self._held[:-_KEPT]
                return
            self._is_greeted = True
            self._greet(link, greeting[1])
            del self._held[: greeting.end()]
        drawn = 0
        for kind, payload in unpack(self._held):
            drawn += len(payload) if kind == b"D" else 0
            self._take(link, kind, payload)
        if drawn:
            link.send(b"A", drawn.to_bytes(4, "big"))

    def _greet(self, link: Link, line: bytes) -> None:
        """Answer the other end's first line.

        Raises:
            MissingDependencyError: there is no backprop.
            RemoteError: its version does not go with this one (code ``REMOTE_VERSION_MISMATCH``).
        """
        if line == b"missing":
            looked = self._there or f"PATH, {', '.join(PLACES[1:])}"
            raise MissingDependencyError(
                f"there is no backprop on {self._host} (looked at {looked})",
                hint=f'there: python3 -m venv ~/.venv && ~/.venv/bin/pip install "{DISTRIBUTION}[train]"; where it is '
                "somewhere else: backprop config set remote_command PATH",
            )
        theirs = {"protocol": 0, "version": "of an unknown version"}
        with suppress(ValueError, TypeError):
            theirs |= json.loads(line)
        if theirs["protocol"] != PROTOCOL:
            raise RemoteError(
                f"{self._host} has backprop-tui {theirs['version']} with protocol {theirs['protocol']}, this machine "
                f"{backprop.__version__} with protocol {PROTOCOL}",
                hint="install the same version on both",
                code="REMOTE_VERSION_MISMATCH",
                retryable=False,
            )
        hello = {
            "host": self._host,
            "session": self._session,
            # What was asked for is begun once: a run that is on its way is not started again.
            "arguments": [] if self._session else self._arguments,
            "size": self._screen.size(),
            "environment": {name: os.environ[name] for name in TERMINAL if name in os.environ},
        }
        link.send(b"H", json.dumps(hello).encode())

    def _take(self, link: Link, kind: bytes, payload: bytes) -> None:
        if kind == b"D":
            self._screen.write(payload)
        elif kind == b"O":
            self._session = json.loads(payload)["session"]
            self._is_open, self._failures, link.said = True, 0, b""
            if not self._screen.is_on:
                self._enter_screen()
        elif kind == b"P":
            link.send(b"A", bytes(4))
        elif kind == b"Z":
            self._leave_screen()
            os.kill(os.getpid(), signal.SIGSTOP)  # fg goes on here
            self._enter_screen()
            self._tell(b"R")
        elif kind == b"E":
            end = json.loads(payload)
            self._status, self._farewell = end["status"], end["text"]

    def _lose(self, link: Link) -> None:
        """Go on after a cut line: wait and try again, or end where it never was open.

        Raises:
            RemoteError: it never was, though ssh could ask.
        """
        for stream in (link.stdout, link.stderr):
            with suppress(KeyError):
                self._selector.unregister(stream)
        status = link.close()
        was_open, self._is_open, self._link, self._why = self._is_open, False, None, link.last_words()
        if not was_open and self._asks:
            why = self._why or f"ssh ended ({status}) before the application answered"
            raise RemoteError(f"{self._host}: {why}", hint=f"look at it with: ssh {self._host}")
        if not was_open and ("Permission denied" in self._why or "verification failed" in self._why):
            self._leave_screen()
            self._connect(asks=True)  # it has to ask, which needs the terminal
            return
        self._again_at = time.monotonic() + min(2**self._failures, LONGEST_WAIT)
        self._failures += 1

    def _say_lost(self) -> None:
        left = round(self._again_at - time.monotonic())
        when = f"trying again in {left} s" if self._link is None and left > 0 else "trying now"
        why = f" · {self._why.rpartition(': ')[2]}" if self._why else ""
        self._screen.write_last_line(f" connection lost, the run goes on: {when} (r tries now, q leaves){why}")

    def _tell(self, kind: bytes, payload: bytes = b"") -> None:
        if self._link is not None and self._is_open:
            self._link.send(kind, payload)

    # The terminal

    def _enter_screen(self) -> None:
        self._screen.enter()
        self._selector.register(0, selectors.EVENT_READ, self._on_keys)

    def _leave_screen(self) -> None:
        self._selector.unregister(0)
        self._screen.leave()

    def _on_keys(self) -> None:
        data = b""
        with suppress(OSError):  # it is gone
            data = os.read(0, 1 << 16)
        if not data:
            self._status = 128 + signal.SIGHUP
        elif self._is_open:
            self._tell(b"K", data)
        elif data in AT_ONCE:
            self._again_at = 0.0
        elif data in LEAVING:
            self._status = 0
            self._farewell = f"come back with: backprop-tui --host {shlex.quote(self._host)}\n"

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in ENDING:
                self._status = 128 + number
            elif self._screen.is_on and number == signal.SIGCONT:
                self._screen.enter()
                self._tell(b"R")
            elif self._screen.is_on:
                self._tell(b"S", json.dumps(self._screen.size()).encode())
