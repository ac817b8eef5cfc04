"""The engine's way out: its private event stream, and the thread that writes events.

Whatever a library prints, from Python or from C, lands in ``engine.log``: descriptors 1 and 2 point there before
anything else is imported, and the real standard output is known to this module alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import stat
import sys
import threading
import time
from pathlib import Path

from backprop.core.events import Event, Heartbeat
from backprop.core.redaction import redact
from backprop.runs.journal import JournalWriter

HEARTBEAT = 10.0
"""Seconds of silence after which the engine says that it is alive."""


class _RedactedLog(io.TextIOWrapper):
    """A text stream that blacks out secrets. On a full disk it loses text: what a library prints must not end a run."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(redact(text))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def take_stdout(log: Path) -> int:
    """Keep the real standard output for events and send everything that is printed to ``log``.

    Returns:
        A private descriptor of what was standard output, not inherited by child processes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    private = os.dup(1)
    # A named pipe in its place must not hold up the engine: it is refused without waiting for a reader.
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    sys.stdout = _RedactedLog(os.fdopen(1, "wb", buffering=0, closefd=False), encoding="utf-8", write_through=True)
    sys.stderr = _RedactedLog(os.fdopen(2, "wb", buffering=0, closefd=False), encoding="utf-8", write_through=True)
    mode = os.fstat(private).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        os.set_blocking(private, False)
    return private


class EventPipe:
    """Offers lines to whoever reads. Nobody, or somebody slow, costs lines and never time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self._broken = False

    def offer(self, line: bytes) -> None:
        """Write ``line`` if the pipe takes it. A line that was begun is ended before another starts."""
        if self._broken:
            return
        try:
            if self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
                if self._rest:
                    return
            self._rest = line[os.write(self._descriptor, line) :]
        except BlockingIOError:
            pass  # full: the journal has the line, and the reader will see the gap
        except OSError:
            self._broken = True  # nobody reads any more


class EventWriter:
    """Stamps events and writes them in a thread: the journal first, then the pipe.

    ``emit`` only puts the event on a queue, so training never waits for a disk or a reader.
    """

    def __init__(self, journal: JournalWriter, pipe: EventPipe, run_id: str) -> None:
        self._journal = journal
        self._pipe = pipe
        self._run_id = run_id
        self._seq = journal.seq
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="events", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Stamp ``event`` and have it written. Safe from any thread."""
        with self._lock:
            self._seq += 1
            event.run_id, event.seq, event.time = self._run_id, self._seq, time.time()
            self._queue.put(event)

    def close(self) -> None:
        """Write everything that waits and make it survive a power cut."""
        self._queue.put(None)
        self._thread.join()
        self._journal.write_pending()
        self._journal.flush()
        self._journal.close()

    def _write_all(self) -> None:
        patience = None  # The first event tells of the start, however long that takes.
        while True:
            try:
                event = self._queue.get(timeout=patience)
            except queue.Empty:
                self.emit(Heartbeat())
                continue
            if event is None:
                return
            patience = HEARTBEAT
            self._pipe.offer(self._journal.append(event))
