"""Single rows: a title with something at its right, the titles of panes, and the keys that work here."""

from __future__ import annotations

from textual import events
from textual.message import Message

from backprop_tui.keys import Key
from backprop_tui.text import Row
from backprop_tui.widgets.cells import Cells, row_width, spread


class Bar(Cells):
    """A row with words at its two ends."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._row: tuple[Row, Row] = ([], [])

    def show(self, left: Row, right: Row) -> None:
        self._row = left, right
        self.redraw_for(self._row)

    def rows(self, width: int, height: int) -> list[Row]:
        return [spread(*self._row, width)]


class PaneTabs(Cells):
    """Pane titles; the shown one is marked."""

    class Chosen(Message):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.titles: list[tuple[str, str]] = []
        """Name and title of each pane."""
        self.chosen = ""

    def show(self, titles: list[tuple[str, str]], chosen: str) -> None:
        self.titles, self.chosen = titles, chosen
        self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        row: Row = []
        for name, title in self.titles:
            here = name == self.chosen
            ink = "bad+bold" if name == "problem" else ("info+bold" if here else "muted")
            row += [("▸" if here else " ", ink), (title, ink), ("  ", "text")]
        return [[*row, ("─" * max(0, width - row_width(row)), "rule")]]

    def on_click(self, event: events.Click) -> None:
        x = 0
        for name, title in self.titles:
            x += len(title) + 3
            if event.x < x:
                self.post_message(self.Chosen(name))
                return


class KeyBar(Cells):
    """Keys in the last row of a screen; those that matter most stay when it is narrow."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.keys: list[Key] = []
        self._places: list[tuple[int, Key]] = []

    def show(self, keys: list[Key]) -> None:
        self.keys = keys
        self.redraw_for(keys)

    def rows(self, width: int, height: int) -> list[Row]:
        shown, room = [], width
        # Of keys that matter alike the last ones, which are those of every screen; then whatever fits into the rest.
        places = sorted(range(len(self.keys)), key=lambda place: (self.keys[place].rank, -place))
        for key in (self.keys[place] for place in places):
            size = len(key.shown) + len(key.label) + 3
            if size <= room:
                shown.append(key)
                room -= size
        shown.sort(key=self.keys.index)
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
