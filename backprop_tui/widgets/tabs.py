"""A row of pane titles; the shown one is marked. Clickable."""

from __future__ import annotations

from textual import events
from textual.message import Message

from backprop_tui.widgets.cells import Cells, Row, row_width


class PaneTabs(Cells):
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
