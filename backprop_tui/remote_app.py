"""The application on the machine that trains, drawn somewhere else: ``python -m backprop_tui.remote_app HOST …``.

Started by the holder (``remote.holder``) with the words of ``backprop-tui --host HOST …``. It draws on its standard
output in packets; what it would print beside that (errors, usage, its last words) goes to the holder at the end.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from textual import events
from textual.driver import Driver

from backprop_tui import main as local
from backprop_tui.app import BackpropApp
from backprop_tui.remote.packets import pack
from backprop_tui.web.application import PageDriver, end_with_server, write


class RemoteDriver(PageDriver):
    """Textual's web driver for a terminal: it has the focus, can be stopped by Ctrl+Z, and may come back empty."""

    def _write(self, packet: bytes) -> None:  # type: ignore[override]
        if packet != b"__GANGLION__\n":  # no packet: the web driver begins with it
            write(packet)

    @property
    def can_suspend(self) -> bool:
        return True

    def start_application_mode(self) -> None:
        super().start_application_mode()
        del os.environ["COLUMNS"], os.environ["ROWS"]  # the size changes, and engines are started from here
        signal.signal(signal.SIGTSTP, lambda *_: self.write_meta({"type": "suspend"}))
        self._app.call_later(self._app.post_message, events.AppFocus())

    def on_meta(self, packet_type: str, payload: dict[str, object]) -> None:
        if packet_type == "repaint":
            self._app.call_later(self._repaint)  # in the application's thread: no two write at once
        elif packet_type == "unwatched":
            self._app.call_later(self._app.run_action, "leave_unwatched")
        else:
            super().on_meta(packet_type, payload)

    def _repaint(self) -> None:
        self._request_terminal_sync_mode_support()  # it may be another terminal
        self._app.post_message(self.SignalResume())


class RemoteApp(BackpropApp):
    def action_leave_unwatched(self) -> None:
        """Leave because nobody came back, unless work would end with it. Runs go on either way."""
        if not self.losing():
            self.exit()

    def get_driver_class(self) -> type[Driver]:
        return RemoteDriver


def main() -> None:
    """Run the application, then tell its exit code and what it printed."""
    host, *arguments = sys.argv[1:]
    threading.Thread(target=end_with_server, name="holder-watch", daemon=True).start()
    command, printed = f"backprop-tui --host {shlex.quote(host)}", io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        status = local.open_with(arguments, lambda *asked: local.run_app(RemoteApp(*asked), command))
    told: dict[str, Any] = {"type": "farewell", "status": status, "text": printed.getvalue()}
    write(pack(b"M", json.dumps(told).encode()))


if __name__ == "__main__":
    main()
