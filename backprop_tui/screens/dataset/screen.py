"""The Data screen: open any dataset, see every row as it will be trained, know what is wrong with it."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType

from backprop_tui import keys
from backprop_tui.screens.dataset.clean import DataCleaning
from backprop_tui.widgets.keybar import KeyBar


class DataScreen(DataCleaning):
    """Browse and check one dataset file."""

    CSS_PATH = "screen.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [*keys.bindings("data")]

    def compose(self) -> ComposeResult:
        yield from super().compose()
        yield KeyBar(id="keybar")

    def flush(self) -> None:
        super().flush()
        self.query_one(KeyBar).show(self._useful_keys())

    def _useful_keys(self) -> list[keys.Key]:
        """Keys that do something now."""
        inside = self.has_class("-inside")
        if self.opened is None:
            first: tuple[str, ...] = ("open",)
        elif self.side.current == "lengths" and inside:
            first = ("limit", "ask_limit", "model", "back")
        elif inside:
            first = ("back", "next_view", "step")
        else:
            first = ()
        if self.jobs:
            first = (*first, "stop_work")
        mine = keys.keys_of("data")
        found = [key._replace(rank=1) for key in mine if key.name in first and key.keys != "N"]
        if self.opened is not None:
            found += [key for key in mine if key.name not in (*first, "stop_work") and key.rank != 9]
        elsewhere = (key for key in keys.keys_of("everywhere") if key.action != "app.go('data')")
        return [*found, *(key for key in elsewhere if key.rank != 9)]
