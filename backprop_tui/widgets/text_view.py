"""Rows that can be scrolled by keys and wheel, drawn like all cells: only what changed is sent."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType

from backprop_tui.widgets.cells import Cells, Row, cut, row_width


class ScrollPane(Cells, can_focus=True):
    """Subclasses give all their rows; ``tail`` keeps the last row in sight until a person scrolls up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "by(-1)", "up", show=False),
        Binding("down,j", "by(1)", "down", show=False),
        Binding("pageup", "pages(-1)", "page up", show=False),
        Binding("pagedown,space", "pages(1)", "page down", show=False),
        Binding("home", "to_top", "top", show=False),
        Binding("end", "to_end", "end", show=False),
    ]
    tail: ClassVar[bool] = False

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.top = 0
        self.follows = self.tail

    def content(self, width: int) -> list[Row]:
        """Every row, ``width`` cells wide."""
        raise NotImplementedError

    def rows(self, width: int, height: int) -> list[Row]:
        content = self.content(width - 2)
        most = max(0, len(content) - height)
        self.top = most if self.follows else max(0, min(self.top, most))
        shown = content[self.top : self.top + height]
        if most == 0:
            return shown
        size = max(1, round(height * height / len(content)))
        start = round(self.top / most * (height - size))
        rows = []
        for y, row in enumerate(shown):
            row = cut(row, width - 2)
            inside = start <= y < start + size
            thumb = ("▐", ("info" if self.has_focus else "muted") if inside else "rule")
            rows.append([*row, (" " * (width - 1 - row_width(row)), "text"), thumb if inside else (" ", "text")])
        return rows

    def action_by(self, rows: int) -> None:
        most = max(0, len(self.content(self.size.width - 2)) - self.size.height)
        self.top = max(0, min(most, self.top + rows))
        self.follows = self.tail and self.top >= most
        self.redraw()

    def action_pages(self, pages: int) -> None:
        self.action_by(pages * max(1, self.size.height - 1))

    def action_to_top(self) -> None:
        self.action_by(-(1 << 30))

    def action_to_end(self) -> None:
        self.action_by(1 << 30)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_by(-2)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_by(2)

    def on_focus(self) -> None:
        self.redraw()

    def on_blur(self) -> None:
        self.redraw()
