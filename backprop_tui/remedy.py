"""What an error says beside its words: where it is, and the settings with which its hint would be followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backprop.core.definition import all_settings
from backprop.core.errors import BackpropError

from backprop_tui.text import from_home


def remedy_of(details: Mapping[str, Any]) -> dict[str, Any]:
    """The values of settings that an error proposes; of those that this version knows."""
    found = details.get("remedy")
    return {name: found[name] for name in found if name in all_settings()} if isinstance(found, dict) else {}


def remedy_words(remedy: Mapping[str, Any]) -> str:
    """``max_seq_length 1024``; of a switch ``skip_bad on``."""
    return ", ".join(f"{name} {'on' if value is True else value}" for name, value in remedy.items())


def place_of(error: BackpropError) -> str:
    """The file and line, or the setting, that an error is about; empty where it says none."""
    path, line = str(error.details.get("path", "")), error.details.get("line", 0)
    return f"{from_home(path)}{f':{line}' if line else ''}" if path else str(error.details.get("field", ""))
