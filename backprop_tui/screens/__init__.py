"""The screens of the application. A new one is its own module and a line in ``SCREENS``."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any, NamedTuple


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
    Entry("live", "Live", "live:KEYS", "live:LiveScreen"),
    Entry("runs", "Runs", "runs:KEYS", "runs:RunsScreen"),
    # Reading data needs numpy, which nobody waits for who only looks at runs, or at the help.
    Entry("data", "Data", "dataset.keys:KEYS", "dataset.screen:DataScreen"),
)
"""In the order of their numbers."""
