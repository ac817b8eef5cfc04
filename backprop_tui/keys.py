"""A key as a screen states it: bindings, help, the key bar and the palette are made from these."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from textual.binding import Binding, BindingType


class Key(NamedTuple):
    keys: str
    """As Textual names them, separated by commas."""
    shown: str
    action: str
    label: str
    """A word or two for the key bar."""
    help: str
    rank: int
    """The key bar drops the highest first; 9 is never shown there."""

    @property
    def name(self) -> str:
        """The action without its target and arguments."""
        return self.action.partition("(")[0].rpartition(".")[2]


def bindings(keys: Iterable[Key]) -> list[BindingType]:
    """What Textual needs to know. Leaving works on top of every dialog."""
    return [
        Binding(key.keys, key.action, key.label, show=False, priority=key.name == "interrupt")
        for key in keys
        if key.name != "command_palette"
    ]
