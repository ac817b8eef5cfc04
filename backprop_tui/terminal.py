"""Whether a full screen can work here, going on after a stop, and leaving for certain when the terminal goes.

Textual draws on standard error and reads standard input. Where these are no terminal it would start and never end;
where the terminal goes away while SIGHUP is ignored (nohup, sudo) it spins. So the first is asked before, and the
second is watched by a thread of its own.
"""

from __future__ import annotations

import locale
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.driver import Driver

LOOK = 1.0
"""Seconds between two looks at whether the terminal is still there."""
GRACE = 3.0
"""Seconds that an orderly exit may take before the process is ended for certain."""


def obstacle() -> str:
    """Why a full screen cannot work here, in a few words; empty where it can."""
    for descriptor, name in ((0, "standard input"), (1, "standard output"), (2, "standard error")):
        if not os.isatty(descriptor):
            return f"{name} is no terminal"
    if os.environ.get("TERM", "dumb") in ("dumb", ""):
        return "TERM is dumb"
    encoding = getattr(sys.stderr, "encoding", None) or locale.getpreferredencoding(False)
    if encoding.replace("-", "").lower() != "utf8":
        return f"the encoding is {encoding}, not UTF-8"
    return ""


def leave_on_signals(leave: Callable[[int], None]) -> None:
    """Call ``leave`` with the number of a SIGTERM or SIGHUP. Where it does not end the process in time, end it."""

    def told(number: int, _: object) -> None:
        _end_in(GRACE, 128 + number)
        leave(number)

    signal.signal(signal.SIGTERM, told)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, told)


def watch_terminal() -> None:
    """End the process when its terminal is gone: nothing can be drawn and no key can come any more."""

    def look() -> None:
        while os.isatty(2):
            time.sleep(LOOK)
        os._exit(128 + signal.SIGHUP)

    threading.Thread(target=look, name="terminal-watch", daemon=True).start()


def switch_mouse(driver: Driver) -> bool:
    """Turn reporting of the mouse on or off; whether it is on now. A driver starts and stops as it stands then."""
    on = not driver._mouse
    driver._mouse = True  # else it would write neither
    change = getattr(driver, "_enable_mouse_support" if on else "_disable_mouse_support", None)
    if change is not None:
        change()
    driver._mouse = on
    return on


def _end_in(seconds: float, status: int) -> None:
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()


def continuing_driver() -> type[Driver]:
    """A terminal driver that also goes on in order after a stop it was not told of.

    Textual's driver leaves the full screen on SIGTSTP and enters it again on SIGCONT. A process stopped by SIGSTOP (a
    debugger, ``kill -STOP``) gets SIGCONT alone: Textual then enters a second time, with two threads reading the keys
    and the raw mode kept as the one to restore, so that leaving waits for a key for ever. Here the first screen is left
    before the second is entered.
    """
    from textual.drivers.linux_driver import LinuxDriver

    class ContinuingDriver(LinuxDriver):
        def _sigcont_application(self, *_: object) -> None:
            if not self._auto_restart:
                return
            if not self._must_signal_resume:
                self.suspend_application_mode()
                self._must_signal_resume = True
            self.resume_application_mode()

    return ContinuingDriver
