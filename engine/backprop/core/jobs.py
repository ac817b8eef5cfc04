"""Short work of an engine process beside training: what is asked on its standard input, what it says on its stream.

A job gets one request as JSON on standard input and answers with messages, one JSON object a line. It has no journal:
when nobody reads any more it ends.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from backprop.core.events import ModelLoading, RunFailed, Sample


class GenerateRequest(Struct, kw_only=True):
    """Ask a run's model. Answers are greedy."""

    run: str
    """The run's directory."""
    prompts: list[str]
    base: bool = False
    """Whether the model without the adapter is asked too."""
    max_tokens: int = 256


class Delta(Struct, kw_only=True, tag_field="type", tag="delta"):
    """A piece of the answer to prompt number ``index``, as it comes; the whole follows as a ``sample``."""

    index: int
    tuned: bool
    text: str


Message: TypeAlias = Delta | Sample | ModelLoading | RunFailed

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
