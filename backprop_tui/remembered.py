"""What the application remembers of how a person left it: one small file for each thing."""

from __future__ import annotations

import contextlib

from backprop.core.files import write_file
from backprop.core.paths import state_dir


def recall(name: str) -> str:
    """What was remembered under ``name``; empty where nothing was."""
    try:
        return (state_dir() / name).read_text().strip()
    except (OSError, ValueError):
        return ""


def remember(name: str, value: str) -> None:
    """Keep a person's choice for the next time, where it can be kept."""
    with contextlib.suppress(OSError):
        state_dir().mkdir(parents=True, exist_ok=True)
        write_file(state_dir() / name, value.encode())
