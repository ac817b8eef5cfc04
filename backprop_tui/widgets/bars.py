"""Single rows: a title with something at its right, the titles of panes, and the keys that work here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import events
from textual.message import Message

from backprop_tui.keys import Key, keys_of, shown
from backprop_tui.text import Row
from backprop_tui.widgets.cells import Cells, paragraph, row_width, spread


class Bar(Cells):
    """A row with words at its two ends."""

    _row: tuple[Row, Row] = ([], [])

    def show(self, left: Row, right: Row | None = None) -> None:
        self._row = left, right or []
        self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        return [spread(*self._row, width)]


class Words(Cells):
    """A text on as many rows as it needs, three at most."""

    _text = ""

    def show(self, text: str) -> None:
        self._text = text
        needed = len(self.rows(max(self.size.width, 20), 0))
        if self.styles.height is None or self.styles.height.value != needed:
            self.styles.height = needed
        self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        return paragraph(self._text, width)[:3]


class PaneTabs(Cells):
    """Pane titles; the shown one is marked."""

    @dataclass
    class Chosen(Message):
        name: str

    titles: Sequence[tuple[str, str]] = ()
    """Name and title of each pane."""
    chosen = ""

    def show(self, titles: Sequence[tuple[str, str]], chosen: str) -> None:
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
    """Keys in the last row of a screen; when it is narrow those that matter most stay, and help is called ``more``."""

    keys: Sequence[Key] = ()
    _places: Sequence[tuple[int, Key]] = ()
    """The cell behind each key that is shown."""

    def show(self, keys: Sequence[Key]) -> None:
        self.keys = keys
        self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        taken, room = list[tuple[int, Key]](), width
        # Of keys that matter alike the last ones, which are those of every screen; then whatever fits into the rest.
        for place, key in sorted(enumerate(self.keys), key=lambda item: (item[1].rank, -item[0])):
            size = len(shown(key)) + len(key.label) + 3
            if size <= room:
                taken.append((place, key))
                room -= size
        row: Row = [(" ", "text")]
        places: list[tuple[int, Key]] = []
        for _, key in sorted(taken):
            more = key.id == "everywhere.help" and len(taken) < len(self.keys)
            row += [(shown(key), "key+bold"), (f" {'more' if more else key.label}  ", "muted")]
            places.append((row_width(row), key))
        self._places = places
        return [row]

    async def on_click(self, event: events.Click) -> None:
        for end, key in self._places:
            if event.x < end:
                if key.action:
                    await self.screen.run_action(key.action)
                else:
                    self.app.simulate_key(keys_of(key).partition(",")[0])
                return
