"""The Data screen: open any dataset, see every row as it will be trained, know what is wrong with it."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType

from backprop_tui import keys
from backprop_tui.screens.data_cleaning import DataCleaning
from backprop_tui.widgets.keybar import KeyBar


class DataScreen(DataCleaning):
    """Browse and check one dataset file."""

    CSS_PATH = "data.tcss"
    HORIZONTAL_BREAKPOINTS: ClassVar[list[tuple[int, str]] | None] = [(0, "-narrow"), (120, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [*keys.bindings("data")]

    def compose(self) -> ComposeResult:
        yield from super().compose()
        yield KeyBar(id="keybar")

    def flush(self) -> None:
        super().flush()
        self.query_one(KeyBar).show(self._useful_keys())

    def _useful_keys(self) -> list[keys.Key]:
        """Keys that do something now."""
        if self.opened is None:
            useful: tuple[str, ...] = ("open", "stop_work") if self.jobs else ("open",)
        elif self.side.current == "lengths" and self.has_class("-inside"):
            useful = ("limit", "ask_limit", "model", "stop_work", "back")
        else:
            useful = ()
        found = []
        for key in keys.keys_of("data"):
            if useful and key.name in useful:
                found.append(key._replace(rank=min(key.rank, 5)))
            elif not useful and key.rank != 9 and (key.name != "stop_work" or self.jobs):
                found.append(key)
        return [
            *found,
            *(key for key in keys.keys_of("everywhere") if key.rank != 9 and key.action != "app.go('data')"),
        ]
