"""A key as a screen states it: bindings, help, the key bar and the palette are made from these."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pkgutil import resolve_name
from typing import NamedTuple

from textual.binding import Binding, BindingType
from textual.keys import format_key


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
    id: str = ""
    """By which a person gives it other keys; empty for those that stay."""

    @property
    def name(self) -> str:
        """The action without its target and arguments."""
        return self.action.partition("(")[0].rpartition(".")[2]


_STAY = ("interrupt", "command_palette")
_known: dict[str, Key] = {}
"""Every key that a person can change, by its id."""
_own: dict[str, str] = {}
"""The person's own keys, by the same."""


def table(section: str, *keys: Key) -> tuple[Key, ...]:
    """Keys with their ids: the section and the label, ``live.previous-pane``."""
    words = (re.sub(r"[^a-z0-9]+", "-", key.label.lower()).strip("-") for key in keys)
    found = tuple(
        key._replace(id="" if key.name in _STAY else f"{section}.{word}") for key, word in zip(keys, words, strict=True)
    )
    _known.update((key.id, key) for key in found if key.id)
    return found


def take_own(chosen: Mapping[str, str]) -> None:
    """Show these keys, by id, in place of those of the tables."""
    _own.clear()
    _own.update(chosen)


def keys_of(key: Key) -> str:
    """The keys that do it: the person's own, or those of the table."""
    return _own.get(key.id, key.keys)


def shown(key: Key) -> str:
    """The key as it is shown."""
    return format_key(keys_of(key).partition(",")[0]) if key.id in _own else key.shown


def press(id: str) -> str:
    """The key with this id as it is shown: for every sentence that names one."""
    if id not in _known:  # its screen was not opened yet
        resolve_name("backprop_tui.screens:load_keys")(id.partition(".")[0])
    return shown(_known[id])


def bindings(keys: Iterable[Key]) -> list[BindingType]:
    """What Textual needs to know. Leaving works on top of every dialog."""
    return [
        Binding(key.keys, key.action, key.label, show=False, priority=key.name == "interrupt", id=key.id or None)
        for key in keys
        if key.name != "command_palette"
    ]
