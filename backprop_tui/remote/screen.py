"""The terminal that a person sits at: the full screen entered and left, whatever happens in between."""

from __future__ import annotations

import os
import termios
import tty
from contextlib import suppress
from typing import Any

_MODES = ("1049", "1000", "1003", "1015", "1006", "1004", "2004")
"""Alternate screen; mouse, as Textual asks for it; focus; bracketed paste."""
ENTER = "".join(f"\x1b[?{mode}h" for mode in _MODES) + "\x1b[?25l\x1b[?7l"
LEAVE = "\x1b[?2026l\x1b[?7h" + "".join(f"\x1b[?{mode}l" for mode in reversed(_MODES)) + "\x1b[?25h"


class FullScreen:
    """The terminal on descriptors 0 and 1."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    @property
    def is_on(self) -> bool:
        """Whether it is a full screen now."""
        return self._before is not None

    def enter(self) -> None:
        """Make it a full screen; again, where something else had the terminal meanwhile."""
        self._before = self._before or termios.tcgetattr(0)
        tty.setraw(0, termios.TCSANOW)
        self.write(ENTER.encode())

    def leave(self) -> None:
        """Give it back as it was. Nothing happens where it was given back, or is gone."""
        before, self._before = self._before, None
        if before is not None:
            self.write(LEAVE.encode())
            with suppress(termios.error):
                termios.tcflush(0, termios.TCIFLUSH)  # replies that were asked for are no words for the shell
                termios.tcsetattr(0, termios.TCSANOW, before)

    def write(self, data: bytes) -> None:
        """Draw; nothing where the terminal is gone, which its keys tell."""
        with suppress(OSError):
            while data:
                data = data[os.write(1, data) :]

    def write_last_line(self, text: str) -> None:
        """Lay a reversed line over the last row."""
        columns, rows = self.size()
        line = text[: columns - 1].ljust(columns - 1)
        self.write(f"\x1b[?2026l\x1b[{rows};1H\x1b[0;7m{line}\x1b[0m".encode())

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        with suppress(OSError):
            size = os.get_terminal_size(1)
            return size.columns or 80, size.lines or 24
        return 80, 24
