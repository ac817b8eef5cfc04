"""``backprop ui``: the application in a web browser."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import time
from typing import Any

import click
from backprop.cli import output
from backprop.cli.options import json_and_verbose, setting_options
from backprop.core.confinement import confined_directory
from backprop.core.definition import require_all
from backprop.core.errors import EXIT_INTERRUPTED, InputError
from backprop.core.extras import require_modules
from backprop.core.files import read_regular
from backprop.core.paths import expand
from backprop.core.resolve import resolve
from backprop.core.settings_sources import PASSWORD

WARNED = 5.0
"""Seconds in which a person can still take it back that everybody may come in."""


@click.command
@click.option("--port", type=click.IntRange(0, 65535), default=7862, show_default=True, help="0 takes a free one")
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", help="the address to listen on")
@click.option("--share", is_flag=True, help="listen on every address of this machine, as --host 0.0.0.0")
@click.option("--auth", metavar="USER:PASSWORD", help="ask for these; @FILE names a file that holds them")
@setting_options("ui_output_dir")
@json_and_verbose
def ui(*, port: int, host: str, share: bool, auth: str | None, as_json: bool, verbose: bool, **given: Any) -> int:
    """Serve the application to web browsers on this machine; Ctrl+C ends it, and no run.

    From elsewhere: ssh -L 7862:localhost:7862 USER@HOST, then http://localhost:7862.
    """
    require_modules("the application in a browser", "web", "textual_serve")
    from backprop_tui.web.guard import is_loopback
    from backprop_tui.web.server import Server

    host = "0.0.0.0" if share else host
    password, found = password_from(auth), resolve(given)
    require_all(found.errors)
    root = confined_directory(found.app().ui_output_dir)
    try:
        local = is_loopback(host)
    except OSError as error:
        raise InputError(f"--host {host}: {error.strerror}", hint="name an address of this machine") from None
    if password is None and not local:
        if found.app().require_auth_for_share:
            hint = f"--auth user:password, --auth @FILE, or {PASSWORD}"
            message = f"listening on {host} lets others in who have not been asked for a password"
            raise InputError(message, hint=hint, code="INPUT_AUTH_REQUIRED")
        output.narrate(
            f"WARNING: everybody who reaches {host} can read your files and train as you, without a password, because "
            f"require_auth_for_share is off ({found.origins['require_auth_for_share']}). Ctrl+C within 5 seconds.",
            "error",
        )
        time.sleep(WARNED)

    def ready(port: int) -> None:
        machine = socket.gethostname()
        facts = {
            "url": f"http://{f'[{host}]' if ':' in host else machine if share else host}:{port}",
            "output_dir": str(root),
        }
        output.answer(facts, as_json, lambda _: output.line(f"the application is at {facts['url']}"))
        sys.stdout = sys.stderr  # what an application prints as it fails is no part of the answer
        output.narrate(f"what is written from there lies in {root}; Ctrl+C ends this, and no run")
        if local:
            output.narrate(f"from elsewhere: ssh -L {port}:localhost:{port} {machine}, then http://localhost:{port}")
        else:
            output.narrate("nothing on the way is encrypted: ssh -L, or a proxy with TLS, is safer", "warning")
        if password is None:
            output.narrate("every user of this machine can open it; --auth asks for a password", "warning")

    try:
        asyncio.run(Server(host, port, password, root).run(ready))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        raise InputError(f"{host}:{port}: {os.strerror(error.errno)}", hint="choose another --port") from None
    return EXIT_INTERRUPTED


def password_from(auth: str | None) -> str | None:
    """``USER:PASSWORD`` from the command line, a file or the environment; ``None`` where it is in none of them.

    Raises:
        InputError: it has another form, or the file cannot be read.
    """
    if auth is not None and auth.startswith("@"):
        path = expand(auth[1:])
        try:
            auth = read_regular(path).decode().strip()
        except (OSError, ValueError) as error:
            raise InputError(f"--auth: {path} cannot be read: {error}", hint="one line, USER:PASSWORD") from None
    elif auth is not None:
        output.narrate("every user of this machine can see a command line: --auth @FILE keeps the password", "warning")
    else:
        auth = os.environ.get(PASSWORD) or None
    user, colon, password = (auth or "").partition(":")
    if auth is not None and not (user and colon and password):
        raise InputError("--auth takes a user and a password with a colon between them", hint="--auth user:password")
    return auth
