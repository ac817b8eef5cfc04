"""Keys: bindings, help, the key bar and the palette are made from what each screen states, and from ``EVERYWHERE``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from textual.binding import Binding, BindingType

from backprop_tui.screens import SCREENS


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


EVERYWHERE = (
    Key("escape", "esc", "screen.back", "back", "one layer out", 9),
    Key("question_mark,f1", "?", "app.help", "help", "this list", 1),
    Key("ctrl+p", "ctrl+p", "app.command_palette", "palette", "every command by its name; themes", 9),
    Key("f2", "f2", "app.cadence", "refresh rate", "draw 4, 2 or 1 times a second", 9),
    Key("q,ctrl+q", "q", "app.leave", "leave", "leave; a living run goes on unless you say otherwise", 1),
    Key("ctrl+c", "ctrl+c", "app.interrupt", "leave", "the same question; twice: leave, the run goes on", 9),
    Key(
        "ctrl+z",
        "ctrl+z",
        "app.suspend_process",
        "suspend",
        "back to the shell; fg returns here, the run goes on meanwhile",
        9,
    ),
    *(
        Key(str(number), str(number), f"app.go('{entry.name}')", entry.title, f"the {entry.title} screen", 3)
        for number, entry in enumerate(SCREENS, 1)
    ),
)


def bindings(keys: Iterable[Key]) -> list[BindingType]:
    """What Textual needs to know. Leaving works on top of every dialog."""
    return [
        Binding(key.keys, key.action, key.label, show=False, priority=key.name == "interrupt")
        for key in keys
        if key.name != "command_palette"
    ]
