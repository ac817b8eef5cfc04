"""The screens of the application, and the keys of all. A new one is its own module and a line in ``SCREENS``."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any, NamedTuple

from backprop_tui.keys import Key, table


class Entry(NamedTuple):
    """A screen before it is needed: modules are imported when it is opened, or its keys are asked for."""

    name: str
    title: str
    keys: str
    """Module and name of the keys that it states."""
    screen: str
    """Module and name of its class."""

    def load_keys(self) -> Any:
        return resolve_name(f"{__name__}.{self.keys}")

    def load_screen(self) -> Any:
        return resolve_name(f"{__name__}.{self.screen}")


SCREENS = (
    # Reading data needs numpy, which nobody waits for who only looks at runs, or at the help.
    Entry("data", "Data", "dataset.keys:KEYS", "dataset.screen:DataScreen"),
    Entry("configure", "Configure", "configure.keys:KEYS", "configure.screen:ConfigureScreen"),
    Entry("live", "Live", "live:KEYS", "live:LiveScreen"),
    Entry("runs", "Runs", "runs.keys:KEYS", "runs.screen:RunsScreen"),
    Entry("export", "Export", "export.screen:KEYS", "export.screen:ExportScreen"),
    Entry("chat", "Chat", "chat:KEYS", "chat:ChatScreen"),
)
"""In the order of their numbers."""
PANES = (
    Entry("runs", "runs beside each other", "runs.comparison:COMPARING", ""),
    Entry("runs", "the queue of runs", "runs.queue:QUEUED", ""),
)
"""What has keys of its own on a screen."""


def load_keys(section: str) -> None:
    """Have the tables of keys of a screen or a pane known to ``keys.press``."""
    for entry in [entry for entry in SCREENS if entry.name == section] or PANES:
        entry.load_keys()


EVERYWHERE = table(
    "everywhere",
    Key("escape", "esc", "screen.back", "back", "one layer out", 9),
    Key("question_mark,f1", "?", "app.help", "help", "this list", 1),
    Key("ctrl+p", "ctrl+p", "app.command_palette", "palette", "every command by its name; themes", 9),
    Key("ctrl+o", "ctrl+o", "app.jump", "jump", "a letter on every pane: it goes there", 9),
    Key("f2", "f2", "app.cadence", "refresh rate", "draw 4, 2 or 1 times a second", 9),
    Key("f3", "f3", "app.mouse", "mouse", "mouse off, so that the terminal's own selection works, or on", 9),
    Key("q", "q", "app.leave", "leave", "leave; a living run goes on unless you say otherwise", 1),
    Key("ctrl+c", "ctrl+c", "app.interrupt", "interrupt", "the same question; twice: leave, the run goes on", 9),
    Key("ctrl+z", "ctrl+z", "app.suspend_process", "suspend", "back to the shell; fg returns here, the run goes on", 9),
    *(
        Key(str(number), str(number), f"app.go('{entry.name}')", entry.title, f"the {entry.title} screen", 9)
        for number, entry in enumerate(SCREENS, 1)
    ),
)
"""Keys that work on every screen."""
