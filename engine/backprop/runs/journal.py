"""The journal of a run: one event a line, append only, the truth about what happened.

A crash can tear the last line. A reader passes over what is no whole event and says where; a writer that continues
the journal ends the torn line first, so that nothing after it is lost.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from msgspec import Struct, field

from backprop.core.events import AnyEvent, Event, decode_event, encode

_TAIL = 1 << 16


class Journal(Struct):
    """What was read: the events in order, and the numbers of lines that are no whole event."""

    events: list[AnyEvent] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)


def read(path: Path) -> Journal:
    """Read a whole journal. A missing one is empty. A torn last line is left out and is no damage."""
    journal = Journal()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return journal
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        event = decode_event(line)
        if event is not None:
            journal.events.append(event)
        elif line.strip():
            journal.damaged.append(number)
    return journal


class Follower:
    """Reads a journal as it grows, each event once."""

    def __init__(self, path: Path, after: int = 0) -> None:
        """Deliver events with ``seq`` above ``after``."""
        self._path = path
        self._after = after
        self._offset = 0
        self._rest = b""

    def poll(self) -> list[AnyEvent]:
        """Whole new events since the last call; empty when nothing was added."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return []
        if not chunk:
            return []
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        found = [event for line in lines if (event := decode_event(line)) is not None and event.seq > self._after]
        if found:
            self._after = found[-1].seq
        return found

    def skip_to(self, seq: int) -> None:
        """Leave out events up to ``seq``: they were delivered another way."""
        self._after = max(self._after, seq)


class JournalWriter:
    """Appends events, continuing the numbering of what is there. One writer at a time: the run's lock sees to it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._pending = b""
        self.seq = self._last_seq()
        """Number of the last event written."""

    def _last_seq(self) -> int:
        size = os.fstat(self._descriptor).st_size
        if size == 0:
            return 0
        if os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")
        tail = b""
        while len(tail) < size:
            want = min(_TAIL, size - len(tail))
            tail = os.pread(self._descriptor, want, size - len(tail) - want) + tail
            for line in reversed(tail.split(b"\n")[1 if len(tail) < size else 0 :]):
                if (event := decode_event(line)) is not None:
                    return event.seq
        return 0

    def append(self, event: Event) -> bytes:
        """Write ``event`` as the next line and return the line. The caller stamped ``seq`` as ``self.seq + 1``.

        On a full disk the line waits in memory and goes first next time: training does not stop for it.
        """
        line = encode(event)
        self.seq = event.seq
        self._pending += line
        self.write_pending()
        return line

    def write_pending(self) -> bool:
        """Try to write what waits; whether nothing waits any more."""
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._descriptor, self._pending) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
        return not self._pending

    def flush(self) -> None:
        """Make everything written so far survive a power cut."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)
