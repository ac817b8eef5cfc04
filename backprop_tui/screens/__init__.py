"""The screens of the application. A new one is its own module and a line in ``SCREENS``."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A screen before it is needed: its module is imported when it is opened, or its keys are asked for."""

    name: str
    title: str
    module: str
    """Has ``KEYS``, and ``make()`` for the screen."""


SCREENS = (
    Entry("live", "Live", "backprop_tui.screens.live"),
    Entry("runs", "Runs", "backprop_tui.screens.runs"),
    Entry("data", "Data", "backprop_tui.screens.dataset"),
)
"""In the order of their numbers."""
