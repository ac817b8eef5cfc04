"""The keys, from the one table."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen

from backprop_tui.charts.timeline import MARKS
from backprop_tui.keys import keys_of
from backprop_tui.text import wrap
from backprop_tui.widgets.cells import Row, heading
from backprop_tui.widgets.text_view import ScrollPane

TITLES = {"live": "Live", "runs": "Runs", "data": "Data", "everywhere": "everywhere"}


class KeyList(ScrollPane):
    def __init__(self, first: str) -> None:
        super().__init__(id="keys")
        self.order = sorted(TITLES, key=lambda where: (where != first, where != "everywhere"))

    def content(self, width: int) -> list[Row]:
        rows: list[Row] = []
        for where in self.order:
            rows.append(heading(TITLES[where], width))
            for key in keys_of(where):
                lines = wrap(key.help, width - 12)
                rows.append([(f"{key.shown:>9}  ", "key+bold"), (lines[0], "text")])
                rows += [[(" " * 11, "text"), (line, "text")] for line in lines[1:]]
            rows.append([])
        rows.append(heading("marks under the loss", width))
        rows += [[(f"{mark.sign:>9}  ", mark.ink), (mark.meaning, "text")] for mark in MARKS]
        return rows


class Help(ModalScreen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,f1", "dismiss", show=False)]

    def __init__(self, where: str) -> None:
        super().__init__(id="help")
        self.where = where

    def compose(self) -> ComposeResult:
        with Vertical(id="box") as box:
            box.border_title = "keys"
            box.border_subtitle = "esc closes"
            yield KeyList(self.where)

    def on_mount(self) -> None:
        self.query_one(KeyList).focus()
