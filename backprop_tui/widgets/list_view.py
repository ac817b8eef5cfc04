"""A list of any length with a cursor, of which only the visible lines are ever made."""

from __future__ import annotations

from rich.segment import Segment
from textual.binding import Binding
from textual.events import Click
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip

from backprop_tui.widgets.inked import Inked
from backprop_tui.widgets.styled import Line


class LineList(Inked, can_focus=True):
    """``count`` lines, each made by ``line_at`` when it is to be shown."""

    BINDINGS = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move_to(0)", "First", show=False),
        Binding("end", "move_to_end", "Last", show=False),
        Binding("enter", "choose", "Open", show=False),
    ]

    count: reactive[int] = reactive(0, repaint=False)
    cursor: reactive[int] = reactive(0, repaint=False)

    class Moved(Message):
        """The cursor is on another line."""

        def __init__(self, line_list: LineList, index: int) -> None:
            super().__init__()
            self.line_list = line_list
            self.index = index

        @property
        def control(self) -> LineList:
            return self.line_list

    class Chosen(Moved):
        """A line was opened: enter, or a second click."""

    def line_at(self, index: int, width: int) -> Line:
        """The pieces of one line; a subclass says what they are."""
        raise NotImplementedError

    def render_line(self, y: int) -> Strip:
        width = self.line_width
        index = y + self.scroll_offset.y
        if index >= self.count:
            return Strip.blank(width, self.style_of(""))
        cursor = index == self.cursor
        segments = [Segment(text, self.style_of(name, cursor=cursor)) for text, name in self.line_at(index, width)]
        return Strip(segments).adjust_cell_length(width, self.style_of("", cursor=cursor))

    def in_view(self) -> range:
        """The indices of the lines on screen."""
        first = self.scroll_offset.y
        return range(first, min(first + self.size.height, self.count))

    def watch_count(self, count: int) -> None:
        self.virtual_size = Size(0, count)
        if self.cursor >= count:
            self.cursor = max(count - 1, 0)

    def validate_cursor(self, cursor: int) -> int:
        return max(0, min(cursor, self.count - 1))

    def watch_cursor(self, old: int, new: int) -> None:
        self.refresh_line(old)
        self.refresh_line(new)
        self.bring_into_view(new)
        self.post_message(self.Moved(self, new))

    def bring_into_view(self, index: int) -> None:
        """Scroll as little as shows the line; far away, put it in the middle."""
        height = self.size.height
        top = self.scroll_offset.y
        if not height or top <= index < top + height:
            return
        if index < top - height or index > top + 2 * height:
            target = index - height // 2
        else:
            target = index if index < top else index - height + 1
        self.scroll_to(y=max(0, target), animate=False)

    def action_move(self, by: int) -> None:
        self.cursor += by

    def action_page(self, pages: int) -> None:
        self.cursor += pages * max(self.size.height - 1, 1)

    def action_move_to(self, index: int) -> None:
        self.cursor = index

    def action_move_to_end(self) -> None:
        self.cursor = self.count - 1

    def action_choose(self) -> None:
        if self.count:
            self.post_message(self.Chosen(self, self.cursor))

    def on_click(self, event: Click) -> None:
        index = event.y + self.scroll_offset.y
        if index >= self.count:
            return
        if index == self.cursor and event.chain > 1:
            self.action_choose()
        self.cursor = index
