# ruff: noqa: F403, F405
"""The contract between the engine process and everything that looks at a run.

An engine says what happens as events, one JSON object a line: first into the run's journal
(``events.jsonl``), then to its standard output. It listens to commands, one JSON object a line. The application,
the plain output, the history, library callbacks and trackers know a run by these messages alone.

Every event has:

``type``     the tag: the class name in snake_case
``schema``   version of this contract (``SCHEMA``); a reader ignores types and keys that it does not know
``run_id``   the run
``seq``      1, 2, 3 … without gaps within a run, across resumes
``time``     seconds since the Unix epoch (UTC)

Units are SI or named in the field: seconds, bytes, tokens, degrees Celsius, watts. A loss or norm that is not finite is
``null``. Keys are added over time, never renamed.
"""

from __future__ import annotations

from typing import TypeAlias, get_args

import msgspec
from msgspec import Struct

from backprop.core.events.base import *
from backprop.core.events.commands import *
from backprop.core.events.inputs import *
from backprop.core.events.machine import *
from backprop.core.events.multi_run import *
from backprop.core.events.run import *
from backprop.core.events.training import *
from backprop.core.files import too_deep


class Unknown(Event):
    """Stands in a reader for an event of a type that this version does not know, or of a newer form."""


AnyEvent: TypeAlias = RunEvent | InputEvent | TrainingEvent | MachineEvent | SessionEvent | Unknown


class _Stamp(Struct):
    type: str
    run_id: str
    seq: Count
    time: Moment
    schema: int = SCHEMA


_KNOWN = frozenset(str(kind.__struct_config__.tag) for kind in get_args(AnyEvent))
_encoder = msgspec.json.Encoder()
_event_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_stamp_decoder: msgspec.json.Decoder[_Stamp] = msgspec.json.Decoder(_Stamp)


def encode(message: Event | Command) -> bytes:
    """One JSON line, newline included. Characters that break lines are escaped by JSON itself."""
    return _encoder.encode(message) + b"\n"


def decode_event(line: bytes) -> AnyEvent | None:
    """The event in ``line``, or ``None`` where the line is torn or no event."""
    if too_deep(line):
        return None
    try:
        return _event_decoder.decode(line)
    except ValueError:
        pass
    try:
        stamp = _stamp_decoder.decode(line)
    except ValueError:
        return None
    if stamp.schema <= SCHEMA and stamp.type in _KNOWN:
        return None
    return Unknown(run_id=stamp.run_id, seq=stamp.seq, time=stamp.time)
