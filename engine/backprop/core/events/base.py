"""What every event has, and the kinds of number that they are made of."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

SCHEMA = 1
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
"""A number of things: what a double still holds exactly, so that every reader of JSON reads the same."""
Moment: TypeAlias = Annotated[float, Meta(ge=0, le=253402300799)]
"""Seconds since the Unix epoch (UTC), until the year 9999."""


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Event(Struct, kw_only=True, tag_field="type", tag=_snake):
    """Fields of every event. The engine's writer stamps them; whoever creates an event leaves them out."""

    schema: int = SCHEMA
    run_id: str = ""
    seq: Count = 0
    time: Moment = 0.0

    @property
    def type(self) -> str:
        """The tag, as in JSON."""
        return str(self.__struct_config__.tag)
