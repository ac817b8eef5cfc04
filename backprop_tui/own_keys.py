"""The user's own keys: a table ``[keys]`` in ``keys.toml`` beside the settings file, ``live.pause = "P"``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from backprop.core.errors import BackpropError
from backprop.core.settings_sources import keys_file, parsed
from textual.binding import Binding
from textual.keys import Keys, _normalize_key_list, key_to_character

from backprop_tui.keys import Key
from backprop_tui.screens import EVERYWHERE, PANES, SCREENS
from backprop_tui.text import from_home
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.text_view import Scroll

_MODIFIERS = {"ctrl", "shift", "alt"}
_NAMES = {key.value for key in Keys}


def own_keys() -> tuple[dict[str, str], list[str]]:
    """Keys by the id of what they do, and what is wrong in the file, a sentence each: that part of it is left out."""
    path = keys_file()
    if not os.path.lexists(path):
        return {}, []
    try:
        values, line_of = parsed(path)
    except BackpropError as error:
        return {}, [error.message]
    tables, problems, chosen, places = all_keys(), list[str](), dict[str, str](), dict[str, str]()
    known = {key.id: key for keys in tables.values() for key in keys if key.id}
    for parts, value in _flat(values):
        name, place = ".".join(parts[1:]), f"{from_home(str(path))}:{line_of(*parts)}"
        if parts[0] != "keys" or name not in known:
            near = next(iter(difflib.get_close_matches(name or parts[0], known, n=1, cutoff=0.4)), "")
            near = f": did you mean {near}?" if near else ": `backprop-tui --keys` lists them"
            problems.append(f"{place}: there is no key {'.'.join(parts) if parts[0] != 'keys' else name}{near}")
        elif not isinstance(value, str) or (wrong := _unknown(value)) is not None:
            what = f"there is no {wrong!r} on a keyboard" if isinstance(value, str) else "a key is a text"
            problems.append(f'{place}: {name}: {what}; such as "P", "f5", "ctrl+x", "up,k"')
        else:
            chosen[name], places[name] = _normalize_key_list(value), place
    while (clash := _clash(tables, chosen)) is not None:
        name, key, other = clash
        problems.append(f"{places[name]}: {name}: {key} is taken by {other}")
        del chosen[name]
    return chosen, problems


def all_keys() -> dict[str, tuple[Key, ...]]:
    """The keys of each screen, and of what has keys of its own on one, by its title."""
    return {entry.title: entry.load_keys() for entry in (*SCREENS, *PANES)} | {"everywhere": EVERYWHERE}


def listed(chosen: Mapping[str, str]) -> Iterator[str]:
    """Every key with its id and meaning, as the lines of a ``keys.toml``; what is as by default is a comment."""
    yield f"# your own keys: uncomment and change, in {from_home(str(keys_file()))}"
    yield "[keys]"
    for title, keys in all_keys().items():
        yield f"\n# {title}"
        for key in keys:
            if key.id:
                mark = "" if key.id in chosen else "# "
                yield f'{mark}{key.id} = "{chosen.get(key.id, key.keys)}"  # {key.help}'


def _flat(values: dict[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, *above, name)
        else:
            yield (*above, name), value


def _unknown(value: str) -> str | None:
    """The first of these keys that no keyboard has; ``None`` where there is none."""
    for key in _normalize_key_list(value).split(","):
        *modifiers, last = key.split("+")
        if not set(modifiers) <= _MODIFIERS or not (last in _NAMES or key_to_character(last)):
            return key
    return None


def _clash(tables: dict[str, tuple[Key, ...]], chosen: dict[str, str]) -> tuple[str, str, str] | None:
    """The first chosen key that something else has in the same place: the id, the key, and who has it."""
    moving = {key: "moving in lists" for each in (*Scroll.BINDINGS, *ListView.BINDINGS) for key in _keys(each)}
    for title, keys in tables.items():
        here = keys if title == "everywhere" else (*keys, *EVERYWHERE)
        if title == "everywhere":
            here = (*keys, *(key for other in tables.values() for key in other))
        for key in keys:
            for each in chosen.get(key.id, "").split(",") if key.id in chosen else ():
                taken = {one: other.id for other in here if other.id != key.id for one in _of(other, chosen)}
                if each in (taken | moving):
                    return key.id, each, (taken | moving)[each]
    return None


def _of(key: Key, chosen: dict[str, str]) -> list[str]:
    return chosen.get(key.id, key.keys).split(",")


def _keys(binding: Any) -> list[str]:
    return binding.key.split(",") if isinstance(binding, Binding) else []
