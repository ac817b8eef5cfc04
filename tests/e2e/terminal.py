"""A real terminal for tests: a program in a pseudo-terminal, its screen read by pyte.

::

    with Terminal(["backprop-tui"], columns=80, rows=24) as terminal:
        terminal.wait_for("Runs")
        terminal.send("d")

The program runs in a session of its own with the pseudo-terminal as its controlling terminal, as under ssh.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte
from patience import PATIENCE

KEYS = {
    "enter": "\r",
    "escape": "\x1b",
    "tab": "\t",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "right": "\x1b[C",
    "left": "\x1b[D",
    "ctrl+c": "\x03",
    "ctrl+q": "\x11",
    "ctrl+z": "\x1a",
    "page_up": "\x1b[5~",
    "page_down": "\x1b[6~",
}


class Terminal:
    """A program in a pseudo-terminal of ``columns`` by ``rows``."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 24,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start ``argv``. ``env`` is added to this process's environment; ``TERM`` is ``xterm-256color``."""
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.bytes_received = 0
        self.last_read_at = 0.0
        """``time.perf_counter`` when output came last."""
        self.output = bytearray()
        """Everything the program wrote, as it came."""
        self._master, slave = pty.openpty()
        self._set_size(columns, rows)
        outside = ("NO_COLOR", "COLORTERM", "SSH_CONNECTION", "TMUX", "STY")
        environment = {k: v for k, v in os.environ.items() if k not in outside}
        environment |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", "COLUMNS": "", "LINES": "", **(env or {})}
        environment = {k: v for k, v in environment.items() if v != ""}
        self.process = subprocess.Popen(
            list(argv),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 (one ioctl: nothing that a thread could hold)
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self._answered = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, seconds: float = 0.0) -> int:
        """Take what the program writes within ``seconds``; the number of bytes."""
        before = self.bytes_received
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            if self._master < 0 or not select.select([self._master], [], [], left)[0]:
                return self.bytes_received - before
            if not self._take():
                return self.bytes_received - before

    def read_once(self, timeout: float) -> int:
        """Wait for the next piece of output and take it; 0 when none came or the terminal is closed."""
        before = self.bytes_received
        if self._master >= 0 and select.select([self._master], [], [], timeout)[0]:
            self._take()
        return self.bytes_received - before

    def _take(self) -> bool:
        try:
            data = os.read(self._master, 1 << 16)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno == errno.EIO:  # the last program let go of the terminal
                return False
            raise
        self.last_read_at = time.perf_counter()
        self.bytes_received += len(data)
        self.output += data
        self._stream.feed(data)
        self._answer(data)
        return bool(data)

    def _answer(self, data: bytes) -> None:
        """Reply to the questions that a real terminal answers."""
        if b"\x1b[6n" in data:
            os.write(self._master, f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R".encode())

    def wait_until(self, condition: Callable[[], bool], timeout: float = PATIENCE, what: str = "the condition") -> None:
        """Take output until ``condition()`` holds.

        Raises:
            AssertionError: it does not within ``timeout`` seconds; the message holds the screen.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {timeout:g} s; the screen:\n{self.text}")
            if self.read_once(0.1) == 0 and self.process.poll() is not None:
                self.read(0.2)
                if condition():
                    return
                raise AssertionError(
                    f"the program ended ({self.process.returncode}) before {what}; the screen:\n{self.text}"
                )

    def wait_for(self, text: str, timeout: float = PATIENCE) -> None:
        """Take output until ``text`` is on the screen (on one line)."""
        self.wait_until(lambda: text in self.text, timeout, repr(text))

    def wait_written(self, text: str, since: int) -> None:
        """Take output until ``text`` was written behind ``since`` bytes: it may be gone from the screen by then."""
        self.wait_until(lambda: text.encode() in self.output[since:], what=repr(text))

    def wait_gone(self, text: str, timeout: float = PATIENCE) -> None:
        """Take output until ``text`` is no longer on the screen."""
        self.wait_until(lambda: text not in self.text, timeout, f"the going of {text!r}")

    def wait_exit(self, timeout: float = PATIENCE) -> int:
        """Take output until the program ends; its exit status."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"the program did not end within {timeout:g} s; the screen:\n{self.text}")
            self.read_once(0.05)
        self.read(0.2)
        return int(self.process.returncode)

    @property
    def lines(self) -> list[str]:
        """The screen's rows, blanks at their ends left out."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """The whole screen."""
        return "\n".join(self.lines)

    def send(self, keys: str) -> None:
        """Type ``keys``: a name of ``KEYS``, or the characters themselves."""
        os.write(self._master, KEYS.get(keys, keys).encode())

    def resize(self, columns: int, rows: int) -> None:
        """Change the size; the program is told by SIGWINCH as by a real terminal."""
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def is_clean(self) -> bool:
        """Whether the program put back what it changed: main screen, visible cursor, no mouse reports."""
        pairs = ((b"\x1b[?1049h", b"\x1b[?1049l"), (b"\x1b[?25l", b"\x1b[?25h"), (b"\x1b[?1000h", b"\x1b[?1000l"))
        return all(self.output.rfind(on) <= self.output.rfind(off) for on, off in pairs)

    @property
    def echoes(self) -> bool:
        """Whether the terminal's line discipline is back to normal (typed characters are echoed)."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the program (not to its children)."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def hang_up(self) -> None:
        """Close the terminal's window: the session gets SIGHUP, later writes fail."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def close(self) -> None:
        """End the program and give everything back."""
        if self.process.poll() is None:
            self.kill()
        self.process.wait(10)
        self.hang_up()


def _take_terminal() -> None:
    """In the child: make the pseudo-terminal the controlling terminal of the new session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
