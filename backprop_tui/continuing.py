"""A terminal driver that also goes on in order after a stop it was not told of.

Textual's driver leaves the full screen on SIGTSTP and enters it again on SIGCONT. A process stopped by SIGSTOP (a
debugger, ``kill -STOP``) gets SIGCONT alone: Textual then enters a second time, with two threads reading the keys and
the raw mode kept as the one to restore, so that leaving waits for a key for ever. Here the first screen is left before
the second is entered.
"""

from __future__ import annotations

from textual.drivers.linux_driver import LinuxDriver


class ContinuingDriver(LinuxDriver):
    def _sigcont_application(self, *_: object) -> None:
        if not self._auto_restart:
            return
        if not self._must_signal_resume:
            self.suspend_application_mode()
            self._must_signal_resume = True
        self.resume_application_mode()
