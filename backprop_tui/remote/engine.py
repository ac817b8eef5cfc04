"""``backprop engine --stdio``: what ssh starts on the machine that trains.

It says its version, finds the application that a terminal comes back to or starts one in a process of its own (the
holder), and passes bytes on between that and ssh. When ssh ends it ends, and the holder stays.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import backprop
import click
from backprop.core import paths

from backprop_tui.remote.packets import HEAD, MARK, PROTOCOL, TERMINAL, pack

HOLDER = (sys.executable, "-P", "-m", "backprop_tui.remote.holder")
LONGEST_FOLDER = 80
"""Bytes: the path of a socket has at most 107."""
PATIENCE = 60.0
"""Seconds in which a holder answers: it may have to start, beside a run that is trained."""


@click.command(hidden=True)
@click.option("--stdio", is_flag=True, required=True, help="on standard input and output, for `backprop-tui --host`")
def engine(*, stdio: bool) -> int:
    """The far end of `backprop-tui --host`."""
    line = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that is printed gets among the packets
    _send(line, MARK + json.dumps({"protocol": PROTOCOL, "version": backprop.__version__}).encode() + b"\n")
    if not (head := sys.stdin.buffer.read(HEAD)):
        return 0  # it does not go with this version
    hello = json.loads(sys.stdin.buffer.read(int.from_bytes(head[1:], "big")))
    link, data = _find(hello) or _begin(hello)
    threading.Thread(target=_pass_up, args=(link,), name="keys", daemon=True).start()
    while data:
        _send(line, data)
        data = link.recv(1 << 16)
    return 0


def _send(line: BinaryIO, data: bytes) -> None:
    line.write(data)
    line.flush()


def _pass_up(link: socket.socket) -> None:
    """Pass on what the terminal sends; end when it is gone."""
    try:
        while data := os.read(0, 1 << 16):
            link.sendall(data)
    finally:
        os._exit(0)


def _find(hello: dict[str, Any]) -> tuple[socket.socket, bytes] | None:
    """The application that this terminal comes back to, or the newest that one left: connection and first bytes.

    Whoever asks for something on the command line gets an application of its own.
    """
    folder, session = _folder(), hello["session"]
    left = [] if hello["arguments"] else sorted(folder.glob(f"{_colours(hello['environment'])}-*"), reverse=True)
    return next(filter(None, (_open(path, hello) for path in ([folder / session] if session else left))), None)


def _open(path: Path, hello: dict[str, Any]) -> tuple[socket.socket, bytes] | None:
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(PATIENCE)
    try:
        link.connect(str(path))
        link.sendall(pack(b"H", json.dumps(hello).encode()))
        if first := link.recv(1 << 16):
            link.settimeout(None)
            return link, first
    except ConnectionRefusedError:  # its holder was killed
        path.unlink(missing_ok=True)
    except OSError:
        pass
    link.close()
    return None


def _begin(hello: dict[str, Any]) -> tuple[socket.socket, bytes]:
    """Start a holder in a session of its own, and attach to it."""
    path = _folder() / f"{_colours(hello['environment'])}-{time.time_ns()}"
    environment = {name: value for name, value in os.environ.items() if name not in TERMINAL} | hello["environment"]
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.umask(0o177)
        listening.bind(str(path))
        os.umask(before)
        listening.listen()
        nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        subprocess.Popen(
            [*HOLDER, str(listening.fileno()), str(path), json.dumps(hello)],
            **nowhere,  # type: ignore[call-overload]
            env=environment,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
    if (opened := _open(path, hello | {"session": path.name})) is None:
        raise OSError(f"{path}: the application did not start")
    return opened


def _folder() -> Path:
    """Where the sockets are: this user's alone."""
    folder = paths.state_dir() / "remote"
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        folder = paths.temporary_folder() / "remote"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _colours(environment: dict[str, str]) -> str:
    """How many colours a terminal has: an application keeps those that it was started for."""
    if environment.get("NO_COLOR"):
        return "none"
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "true"
    return "many" if environment.get("TERM", "").endswith(("256color", "kitty")) else "few"
