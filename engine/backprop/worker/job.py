"""A short job in an engine process: one request on standard input, messages on standard output, then the end.

One that stays for a conversation is told more, a line at a time, and ends with whoever tells it.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

import msgspec

from backprop.core.errors import EXIT_INTERRUPTED, EXIT_OK
from backprop.core.jobs import Message, encode_message
from backprop.runs.directory import RunDirectory
from backprop.worker.event_stream import take_stdout
from backprop.worker.setup import end_process, failure, quiet_libraries

Request = TypeVar("Request", bound=msgspec.Struct)
Send: TypeAlias = Callable[[Message], None]


def run_job(request: type[Request], work: Callable[[Request, Send], None]) -> NoReturn:
    """Do ``work`` on the request that comes in, and end the process. What it raises is sent as the last message."""
    end_process(_answer(request, work))


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


def _answer(request: type[Request], work: Callable[[Request, Send], None]) -> int:
    private = take_stdout(RunDirectory(Path(sys.argv[1])).log)
    os.set_blocking(private, True)
    quiet_libraries()
    with os.fdopen(private, "wb", buffering=0) as stream:

        def send(message: Message) -> None:
            stream.write(encode_message(message))

        try:
            work(msgspec.json.decode(sys.stdin.buffer.readline(), type=request), send)
        except (KeyboardInterrupt, BrokenPipeError):
            return EXIT_INTERRUPTED
        except Exception as error:  # whatever it is, whoever asked is told
            traceback.print_exc()
            send(failure(error))
    return EXIT_OK
