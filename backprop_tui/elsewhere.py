"""What goes on beside what was opened here: runs that are trained, how many are queued, who and where this is."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path
from typing import NamedTuple

from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from backprop.runs.queue import Queue

LOOK_AGAIN = 3.0
"""Seconds between two looks."""


class Elsewhere(NamedTuple):
    living: list[Path]
    """Directories of the runs that an engine works on, the newest first."""
    queued: int


def look() -> Elsewhere:
    """What goes on now; for a thread. Runs that are over are not read."""
    with RunIndex() as index:
        living = [path for path in index.perhaps_living() if RunDirectory(path).is_alive()]
    return Elsewhere(living, Queue().count_waiting())


def place() -> str:
    """``user@host``, and the first card's name; for a thread."""
    from backprop.hardware.devices import info  # nobody waits for it

    try:
        who = f"{getpass.getuser()}@"
    except (KeyError, OSError):  # a user without a name, in a container
        who = ""
    cards = [card.name for card in info().gpus]
    return "  ".join([f"{who}{socket.gethostname()}", *cards[:1]])
