"""The journal of a run: one event a line, append only, the truth about what happened.

A crash can tear the last line. A reader passes over what is no whole event and says where; a writer that continues
the journal ends the torn line first, so that nothing after it is lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct, field

from backprop.core.events import AnyEvent, Event, decode_event, encode
from backprop.core.files import MOST_BYTES, open_regular

_TAIL = 1 << 16
_MOST = 1 << 31
"""Bytes of a journal that are read: more than a year of steps."""
_PORTION = 1 << 24
"""Bytes that a follower takes in at once."""


class Journal(Struct):
    """What was read: the events of one run in order, and what is wrong with the file."""

    events: list[AnyEvent] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    """Numbers of the lines that are no whole event."""
    strangers: dict[str, int] = field(default_factory=dict)
    """Events of other runs, counted by run id."""
    problem: str = ""
    """Why the file could not be read, or not to its end; empty where it was, or is missing."""


def read(path: Path, run_id: str = "", take: Callable[[AnyEvent], object] | None = None) -> Journal:
    """Read a whole journal. A missing one is empty. A torn last line is left out and is no damage.

    Args:
        run_id: the run it should be of; open: the run of the first event.
        take: is given each event, and none is kept: those of a long run take many times its journal's bytes.
    """
    journal = Journal()
    take = take or journal.events.append
    try:
        for number, line in _lines(path):
            event = decode_event(line) if line is not None else None
            if event is None:
                if line is None or line.strip():
                    journal.damaged.append(number)
                continue
            run_id = run_id or event.run_id
            if event.run_id == run_id:
                take(event)
            else:
                journal.strangers[event.run_id] = journal.strangers.get(event.run_id, 0) + 1
    except FileNotFoundError:
        journal.problem = "it points to nothing" if path.is_symlink() else ""
    except OSError as error:
        journal.problem = error.strerror or str(error)
    return journal


def owner(path: Path) -> str:
    """The run that the first event of a journal is of; empty where there is no event.

    Raises:
        OSError: it cannot be read, or is no regular file. A missing one has no owner.
    """
    try:
        for _, line in _lines(path):
            if line is not None and (event := decode_event(line)) is not None:
                return event.run_id
    except FileNotFoundError:
        if path.is_symlink():
            raise
    return ""


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Whole lines with their numbers; ``None`` for one that is longer than any event."""
    number = taken = 0
    whole = True
    with os.fdopen(open_regular(path), "rb") as file:
        while line := file.readline(MOST_BYTES):
            taken += len(line)
            if taken > _MOST:
                raise OSError(errno.EFBIG, f"it is larger than {_MOST >> 30} GiB: the rest is not read", str(path))
            ends = line.endswith(b"\n")
            if ends:
                number += 1
                yield number, line if whole else None
            whole = ends


class Follower:
    """Reads a journal as it grows, each event of its run once."""

    def __init__(self, path: Path, run_id: str = "") -> None:
        """Deliver the events of ``run_id``; empty: of the run that the first event names."""
        self._path = path
        self._after = 0
        self._run_id = run_id
        self._inode = 0
        self._offset = 0
        self._rest = b""

    def poll(self) -> list[AnyEvent]:
        """Whole new events since the last call; empty when nothing was added, or the file cannot be read."""
        found: list[AnyEvent] = []
        while not found and (chunk := self._read()):
            self._offset += len(chunk)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > MOST_BYTES:
                self._rest = b"\0"  # no event: whatever ends this line, it is passed over
            for line in lines:
                if (event := decode_event(line)) is not None and event.seq > self._after:
                    self._run_id = self._run_id or event.run_id
                    if event.run_id == self._run_id:
                        found.append(event)
                        self._after = event.seq
        return found

    def _read(self) -> bytes:
        try:
            with os.fdopen(open_regular(self._path), "rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode:  # at first, and where it was removed and begun anew
                    self._inode, self._offset, self._rest = inode, 0, b""
                file.seek(self._offset)
                return file.read(_PORTION) if self._offset < _MOST else b""
        except OSError:
            return b""

    def skip_to(self, seq: int) -> None:
        """Leave out events up to ``seq``: they were delivered another way."""
        self._after = max(self._after, seq)


class JournalWriter:
    """Appends events, continuing the numbering of what is there. One writer at a time: the run's lock sees to it.

    A journal that is deleted meanwhile is begun anew; a reader sees from the numbers that events are missing.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            OSError: it cannot be opened, or is no regular file.
        """
        self._path = path
        self._descriptor = self._open()
        self._pending = b""
        self.seq = self._last_seq()
        """Number of the last event written."""

    def _open(self) -> int:
        return open_regular(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def _last_seq(self) -> int:
        size = os.fstat(self._descriptor).st_size
        if size == 0:
            return 0
        if os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")
        start = max(0, size - _TAIL)
        tail = os.pread(self._descriptor, size - start, start)
        for line in reversed(tail.split(b"\n")[1 if start else 0 :]):
            if (event := decode_event(line)) is not None:
                return event.seq
        return max((event.seq for event in read(self._path).events), default=0)

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
            if os.fstat(self._descriptor).st_nlink == 0:
                self._begin_anew()
            while self._pending:
                self._pending = self._pending[os.write(self._descriptor, self._pending) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
        return not self._pending

    def _begin_anew(self) -> None:
        with contextlib.suppress(OSError):  # the directory is gone too, or something else took the name
            new = self._open()
            os.close(self._descriptor)
            self._descriptor = new

    def flush(self) -> None:
        """Make everything written so far survive a power cut."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; what waits in memory is lost."""
        os.close(self._descriptor)
