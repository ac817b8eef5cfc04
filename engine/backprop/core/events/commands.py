"""What is asked of a running engine."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from backprop.core.events.base import _snake


class Command(Struct, kw_only=True, tag_field="type", tag=_snake):
    """What a person asks of a running engine. Its answer is the event that follows."""


class Pause(Command):
    """Hold after the step in progress; answered by ``paused``."""


class Resume(Command):
    """Go on after a pause; answered by ``resumed``."""


class CheckpointNow(Command, tag="checkpoint"):
    """Save after the step in progress; answered by ``checkpoint_saved`` or ``checkpoint_failed``."""


class Stop(Command):
    """Finish the step, save, end with status ``stopped``, or ``interrupted`` where a signal asked for it."""

    by: Literal["person", "signal"] = "person"


class Abort(Command):
    """End now, without saving; answered by ``run_failed`` with ``RUNTIME_TRAINING_ABORTED``."""


class SampleNow(Command):
    """Answer the configured prompts with the model as it is; answered by ``sample`` events."""


AnyCommand: TypeAlias = Pause | Resume | CheckpointNow | Stop | Abort | SampleNow
_command_decoder: msgspec.json.Decoder[AnyCommand] = msgspec.json.Decoder(AnyCommand)


def decode_command(line: bytes) -> AnyCommand | None:
    """The command in ``line``, or ``None`` where it is none."""
    try:
        return _command_decoder.decode(line)
    except ValueError:
        return None
