"""A short job in an engine process: one request on standard input, messages on standard output, then the end.

Standard input stays open as long as whoever asked is there: a job ends when it does, also one that says nothing for a
while. One that stays for a conversation is told more on it, a line at a time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

import msgspec

from backprop.core.errors import EXIT_INTERRUPTED, EXIT_OK
from backprop.core.jobs import JobProgress, Message, encode_message
from backprop.runs.directory import RunDirectory
from backprop.worker.event_stream import take_stdout
from backprop.worker.setup import end_process, failure, quiet_libraries

Request = TypeVar("Request", bound=msgspec.Struct)
Send: TypeAlias = Callable[[Message], None]
_EVERY = 0.1
"""Seconds between two messages of progress."""
_GRACE = 5.0
"""Seconds in which a job that nobody waits for any more puts in order what it has begun."""


def run_job(
    request: type[Request], work: Callable[[Request, Send], Message | None], *, listens: bool = False
) -> NoReturn:
    """Do ``work`` on the request that comes in, and end the process: the last message is what it returns or raises.

    Args:
        listens: ``work`` reads what follows on standard input itself (``listen``).
    """
    end_process(_answer(request, work, listens))


def paced(send: Send) -> Callable[[str, int, int], None]:
    """Sends what is done, how much of it and of how much: ten times a second at most, and the end of it always."""
    last = 0.0

    def progress(doing: str, done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            send(JobProgress(doing=doing, done=done, total=total))

    return progress


def listen(kind: Any, take: Callable[[Any], object]) -> None:
    """Give ``take`` every further line of standard input as a ``kind``, in a thread.

    Where the input ends, whoever asked has gone, and this process ends too, whatever it is doing.
    """
    decode = msgspec.json.Decoder(kind).decode

    def read() -> None:
        try:
            for line in sys.stdin.buffer:
                take(decode(line))
        finally:
            end_process(EXIT_OK)

    threading.Thread(target=read, name="listen", daemon=True).start()


def _end_with_asker() -> None:
    """Wait for the end of standard input; then interrupt the work, as Ctrl+C would, so that it leaves nothing."""
    sys.stdin.buffer.read()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    time.sleep(_GRACE)
    end_process(EXIT_INTERRUPTED)


def _answer(request: type[Request], work: Callable[[Request, Send], Message | None], listens: bool) -> int:
    private = take_stdout(RunDirectory(Path(sys.argv[1])).log)
    os.set_blocking(private, True)
    quiet_libraries()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's job in the background begins without
    with os.fdopen(private, "wb", buffering=0) as stream:

        def send(message: Message) -> None:
            stream.write(encode_message(message))

        try:
            asked = msgspec.json.decode(sys.stdin.buffer.readline(), type=request)
            if not listens:
                threading.Thread(target=_end_with_asker, name="asker", daemon=True).start()
            last = work(asked, send)
            if last is not None:
                send(last)
        except (KeyboardInterrupt, BrokenPipeError):
            return EXIT_INTERRUPTED
        except Exception as error:  # whatever it is, whoever asked is told
            traceback.print_exc()
            send(failure(error))
    return EXIT_OK
