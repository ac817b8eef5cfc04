"""The system's own ssh, with the person's configuration, keys, agent and jumps, running the application's far end."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from contextlib import suppress
from io import FileIO
from typing import cast

from backprop.core.errors import InputError, MissingDependencyError

from backprop_tui.remote.packets import MARK, pack

PLACES = ("backprop", "~/.local/bin/backprop", "~/.venv/bin/backprop")
"""Where it is looked for there: ssh gives a command a bare PATH."""
NOTICED = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")
"""So that a cut line is noticed after 15 seconds."""
UNASKED = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
_NO_MACHINE = re.compile(r"(^|[@/])-|\s|[\x00-\x1f]|^$|^ssh://[^/]*:[^/]*@")
_KEPT = 4000


def require_destination(host: str) -> None:
    """Check that ssh can take ``host`` for nothing but a destination, and that it holds no password.

    Raises:
        InputError: it cannot, or does.
    """
    if _NO_MACHINE.search(host):
        hint = "user@host, ssh://user@host:port, or a Host of ~/.ssh/config"
        raise InputError(f"--host {host!r} is no machine", hint=hint)


def command_line(host: str, there: str | None, *, asks: bool) -> list[str]:
    """The words that start ssh.

    Args:
        host: what ``require_destination`` let through.
        there: the path of ``backprop`` on that machine; ``None`` looks in ``PLACES``.
        asks: whether ssh may ask for passwords and about unknown machines, on the terminal.
    """
    places = " ".join(map(_quoted, [there] if there else PLACES))
    script = f'for c in {places}; do command -v "$c" >/dev/null 2>&1 && exec "$c" engine --stdio; done; '
    script += f"echo {MARK.decode()}missing"
    # A RemoteCommand of the configuration would be refused beside this one.
    options = ("-T", "-o", "RemoteCommand=none", *NOTICED, *(() if asks else UNASKED))
    return ["ssh", *options, "--", host, f"sh -c {shlex.quote(script)}"]


def _quoted(path: str) -> str:
    """A path for the shell there, where ``~`` is. In double quotes: single ones are around the whole."""
    home, rest = ("$HOME/", path[2:]) if path.startswith("~/") else ("", path)
    return f'"{home}' + re.sub(r'([\\"$`])', r"\\\1", rest) + '"'


class Link:
    """One ssh, from its start to its end.

    Raises:
        MissingDependencyError: there is none.
    """

    def __init__(self, words: list[str]) -> None:
        pipe = subprocess.PIPE
        try:
            self._process = process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        except FileNotFoundError:
            raise MissingDependencyError("there is no ssh on this machine", hint="install OpenSSH's client") from None
        streams = cast("tuple[FileIO, FileIO, FileIO]", (process.stdin, process.stdout, process.stderr))
        self._stdin, self.stdout, self.stderr = streams
        os.set_blocking(self.stderr.fileno(), False)
        self.said = b""
        """The end of what came on standard error."""

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Send a packet; nothing where the line is cut, which the other direction tells."""
        with suppress(OSError):
            self._stdin.write(pack(kind, payload))

    def read_errors(self) -> bytes | None:
        """Keep what came on standard error, and return it; empty at its end, ``None`` where nothing came."""
        if data := self.stderr.read(_KEPT):
            self.said = (self.said + data)[-_KEPT:]
        return data

    def last_words(self) -> str:
        """The last line that ssh or the other machine said, printable."""
        lines = [line.strip() for line in self.said.decode(errors="replace").splitlines()]
        return "".join(filter(str.isprintable, next(filter(None, reversed(lines)), "")))

    def close(self) -> int:
        """End it; its exit status."""
        for stream in (self._stdin, self.stdout):
            with suppress(OSError):
                stream.close()
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            return self._process.wait()
        finally:
            self.read_errors()
