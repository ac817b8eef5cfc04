"""A list of any length with a cursor, of which only the rows that are seen are ever made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.events import Click
from textual.message import Message

from backprop_tui.text import Row
from backprop_tui.widgets.cells import cut, pad
from backprop_tui.widgets.text_view import Scroll


class ListView(Scroll):
    """``count`` rows, each made by ``row_at`` when it is to be seen."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "choose", "open", show=False)]

    @dataclass
    class Moved(Message):
        """The cursor is on another row."""

        view: ListView

        @property
        def control(self) -> ListView:
            return self.view

    class Chosen(Moved):
        """A row was opened: enter, or a second click."""

    count = 0
    _cursor = 0
    _filled = _early = False
    """Whether it is known yet what the list holds, and whether a row was to be opened before."""

    def row_at(self, index: int, width: int) -> Row:
        """The pieces of one row; a subclass says what they are."""
        raise NotImplementedError

    def under_cursor(self, row: Row, width: int) -> Row:
        """The row as it looks where the cursor is; heavier where keys go to the list."""
        ground = "+cursor+bold" if self.has_focus else "+cursor"
        return [(text, ink + ground) for text, ink in pad(row, width)]

    @property
    def cursor(self) -> int:
        return self._cursor

    @cursor.setter
    def cursor(self, index: int) -> None:
        index = max(0, min(index, self.count - 1))
        if index != self._cursor:
            self._cursor = index
            self.bring_into_view(index)
            self.redraw()
            self.post_message(self.Moved(self))

    def resize_list(self, count: int) -> None:
        """There are ``count`` rows now; the cursor stays where that is possible."""
        early, self._filled, self._early = self._early and not self._filled, True, False
        self.count = count
        self.cursor = self._cursor
        self.redraw()
        if early and self.screen.is_current and self.screen.focused is self:
            self.action_choose()

    @property
    def text_width(self) -> int:
        return max(1, self.size.width - (self.count > self.body_height))

    def total(self) -> int:
        return self.count

    def window(self, first: int, number: int) -> list[Row]:
        width = self.text_width
        rows = [cut(self.row_at(index, width), width) for index in range(first, first + number)]
        if 0 <= self._cursor - first < number:
            rows[self._cursor - first] = self.under_cursor(rows[self._cursor - first], width)
        return rows

    def in_view(self) -> range:
        """The indices of the rows that are seen."""
        return range(self.top, min(self.top + self.body_height, self.count))

    def bring_into_view(self, index: int) -> None:
        """Scroll as little as shows the row; far away, put it in the middle."""
        if not self.size:  # how much would be seen is known when it is
            return
        height = self.body_height
        if self.top <= index < self.top + height:
            return
        far = index < self.top - height or index > self.top + 2 * height
        target = index - height // 2 if far else index if index < self.top else index - height + 1
        self.scroll_by(max(0, target) - self.top)

    def on_resize(self) -> None:
        self.bring_into_view(self.cursor)

    def action_by(self, rows: int) -> None:
        self.cursor += rows

    def action_choose(self) -> None:
        """Open the row under the cursor; where the list is about to be filled, then."""
        self._early = not self.count
        if self.count:
            self.post_message(self.Chosen(self))

    def on_click(self, event: Click) -> None:
        at = event.get_content_offset(self)  # a widget may be padded
        if at is None or self.on_bar(event) or at.y < len(self.head()):
            return
        index = at.y - len(self.head()) + self.top
        if index >= self.count:
            return
        if index == self._cursor and event.chain > 1:
            self.action_choose()
        self.cursor = index
