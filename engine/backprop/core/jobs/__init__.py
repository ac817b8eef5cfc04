# ruff: noqa: F403, F405
"""Short work of an engine process beside training: what is asked on its standard input, what it says on its stream.

A job gets one request as a line of JSON on standard input and answers with messages, one JSON object a line. It has no
journal: when nobody reads any more it ends.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from backprop.core.events import ModelLoading, RunFailed, Warning  # noqa: A004
from backprop.core.jobs.chat import *
from backprop.core.jobs.export import *
from backprop.core.jobs.preparing import *
from backprop.core.jobs.publishing import *
from backprop.core.jobs.scoring import *


class JobProgress(Struct, kw_only=True, tag_field="type", tag="progress"):
    """How far a job is: ``done`` of ``total`` in whatever ``doing`` counts; ``total`` 0 when not known."""

    doing: str
    done: int = 0
    total: int = 0


Message: TypeAlias = (
    ChatMessage
    | ScoringMessage
    | PreparingMessage
    | ExportMessage
    | PublishingMessage
    | JobProgress
    | ModelLoading
    | Warning
    | RunFailed
)

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode_message(message: Message) -> bytes:
    """One JSON line, newline included."""
    return msgspec.json.encode(message) + b"\n"


def decode_message(line: bytes) -> Message:
    """The message in ``line``.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _decoder.decode(line)
