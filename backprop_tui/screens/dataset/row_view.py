"""Styled text of any length to scroll through: a row as a chat, as JSON, as tokens; the statistics of a file."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from textual.binding import Binding
from textual.events import Resize
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from backprop_tui.widgets.inked import Inked
from backprop_tui.widgets.styled import Line, wrap


class RowView(Inked, can_focus=True):
    """Lines of pieces, wrapped to the width, drawn one by one."""

    BINDINGS = [
        Binding("up,k", "scroll_up", "Up", show=False),
        Binding("down,j", "scroll_down", "Down", show=False),
        Binding("pageup", "page_up", "Page up", show=False),
        Binding("pagedown,space", "page_down", "Page down", show=False),
        Binding("home", "scroll_home", "Top", show=False),
        Binding("end", "scroll_end", "End", show=False),
    ]

    class WidthChanged(Message):
        """The lines shown were wrapped for another width."""

        def __init__(self, view: RowView) -> None:
            super().__init__()
            self.view = view

        @property
        def control(self) -> RowView:
            return self.view

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: Sequence[Line] = ()
        self._source: Sequence[Line] | None = None
        """The lines before they were wrapped, where that is done here."""
        self._wrapped_at = 0

    def show(self, lines: Sequence[Line], width: int) -> None:
        """Show lines that were wrapped for ``width``, from the top."""
        self._source = None
        self._put(lines, width)

    def _put(self, lines: Sequence[Line], width: int) -> None:
        self._lines = lines
        self._wrapped_at = width
        self.virtual_size = Size(0, len(lines))
        self.scroll_to(y=0, animate=False)
        self.refresh()
        self._compare_width()

    def show_wrapped(self, lines: Sequence[Line]) -> None:
        """Show a few lines, wrapped here at any width. For long texts wrap in a thread and use ``show``."""
        self._source = lines
        width = max(self.line_width, 20)
        self._put([part for line in lines for part in wrap(line, width)], width)

    @property
    def text(self) -> str:
        """Everything shown, without styles."""
        return "\n".join("".join(text for text, _ in line) for line in self._lines)

    def on_resize(self, event: Resize) -> None:
        del event
        self._compare_width()

    def _compare_width(self) -> None:
        if self._lines and self.line_width and self.line_width != self._wrapped_at:
            self._wrapped_at = self.line_width
            if self._source is not None:
                self.show_wrapped(self._source)
            else:
                self.post_message(self.WidthChanged(self))

    def render_line(self, y: int) -> Strip:
        index = y + self.scroll_offset.y
        width = self.line_width
        plain = self.style_of("")
        if index >= len(self._lines):
            return Strip.blank(width, plain)
        segments = [Segment(text, self.style_of(name)) for text, name in self._lines[index]]
        return Strip(segments).adjust_cell_length(width, plain)
