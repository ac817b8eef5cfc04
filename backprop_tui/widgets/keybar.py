"""The keys that work here, in the last row; those that matter most stay when it is narrow. Clickable."""

from __future__ import annotations

from textual import events

from backprop_tui.keys import Key
from backprop_tui.widgets.cells import Cells, Row


class KeyBar(Cells):
    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.keys: list[Key] = []
        self._places: list[tuple[int, Key]] = []

    def show(self, keys: list[Key]) -> None:
        if keys != self.keys:
            self.keys = keys
            self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        shown = list(self.keys)
        while shown and sum(len(k.shown) + len(k.label) + 3 for k in shown) > width:
            shown.remove(max(shown, key=lambda k: k.rank))
        row: Row = [(" ", "text")]
        self._places = []
        x = 1
        for key in shown:
            row += [(key.shown, "key+bold"), (f" {key.label}  ", "muted")]
            x += len(key.shown) + len(key.label) + 3
            self._places.append((x, key))
        return [row]

    async def on_click(self, event: events.Click) -> None:
        for end, key in self._places:
            if event.x < end:
                await self.screen.run_action(key.action)
                return
