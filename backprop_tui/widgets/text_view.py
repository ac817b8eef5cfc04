"""Rows that are scrolled by keys, wheel and bar, drawn like all cells: only what changed is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType

from backprop_tui.text import Row, wrap
from backprop_tui.widgets.cells import Cells, StateCells, cut, pad


class Scroll(Cells, can_focus=True):
    """A window over rows. Subclasses say how many there are and make those that are seen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "by(-1)", "up", show=False),
        Binding("down,j", "by(1)", "down", show=False),
        Binding("pageup", "pages(-1)", "page up", show=False),
        Binding("pagedown", "pages(1)", "page down", show=False),
        Binding("home", "by(-1000000000)", "top", show=False),
        Binding("end", "by(1000000000)", "end", show=False),
    ]
    margin: ClassVar[int] = 0
    """Cells at the right that are kept for the bar although everything is seen."""
    tail: ClassVar[bool] = False
    """Keeps the last row in sight until a person scrolls up."""
    top = 0

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.follows = self.tail

    def total(self) -> int:
        """How many rows there are, as wide as ``text_width``."""
        raise NotImplementedError

    def window(self, first: int, number: int) -> list[Row]:
        """``number`` rows from ``first``, which may be more than there are."""
        raise NotImplementedError

    def head(self) -> list[Row]:
        """Rows above the others that stay when these are scrolled."""
        return []

    @property
    def text_width(self) -> int:
        """Cells of a row beside the bar."""
        return max(1, self.size.width - self.margin)

    @property
    def body_height(self) -> int:
        """Rows that are seen at once."""
        return max(1, self.size.height - len(self.head()))

    def rows(self, width: int, height: int) -> list[Row]:
        head = self.head()
        total, body = self.total(), max(1, height - len(head))
        most = max(0, total - body)
        self.top = most if self.follows else max(0, min(self.top, most))
        shown = self.window(self.top, min(body, total - self.top))
        if most == 0:
            return [*head, *shown]
        size = max(1, round(body * body / total))
        start = round(self.top / most * (body - size))
        thumb, blank = ("▐", "info" if self.has_focus else "muted"), (" ", "text")
        rows = head
        # A wrapped row may end with the space at which it was broken: that one may stand in the margin.
        room = max(self.text_width, width - 1)
        for y, row in enumerate(shown):
            bar = thumb if start <= y < start + size else blank
            rows.append([*pad(cut(row, room), width - 1), bar])
        return rows

    def scroll_by(self, rows: int) -> None:
        """Move the window."""
        most = max(0, self.total() - self.body_height)
        self.top = max(0, min(most, self.top + rows))
        self.follows = self.tail and self.top >= most
        self.redraw()

    def action_by(self, rows: int) -> None:
        self.scroll_by(rows)

    def action_pages(self, pages: int) -> None:
        self.action_by(pages * max(1, self.body_height - 1))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.scroll_by(-2)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.scroll_by(2)

    def on_bar(self, event: events.MouseEvent) -> bool:
        """Whether the mouse is on the bar."""
        at = event.get_content_offset(self)
        return at is not None and at.x >= self.size.width - 1 and self.total() > self.body_height

    def on_mouse_down(self, event: events.MouseDown) -> None:
        if self.on_bar(event):
            self.capture_mouse()
            self._drag(event)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self.app.mouse_captured is self:
            self._drag(event)

    def on_mouse_up(self) -> None:
        if self.app.mouse_captured is self:
            self.release_mouse()

    def _drag(self, event: events.MouseEvent) -> None:
        share = (event.y - len(self.head())) / max(1, self.body_height - 1)
        self.scroll_by(round(share * (self.total() - self.body_height)) - self.top)

    def on_focus(self) -> None:
        self.redraw()

    def on_blur(self) -> None:
        self.redraw()


class TextView(Scroll):
    """Text in rows: those of ``show``, wrapped to the width, or what a subclass makes of the width."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("space", "pages(1)", show=False)]
    margin = 2
    _given: Sequence[Row] = ()
    _content: Sequence[Row] = ()
    _wrapped_at = 0

    def show_rows(self, rows: Sequence[Row]) -> None:
        """Show these from the top. Long texts are better wrapped in a thread before: that they fit costs little."""
        self._given, self._wrapped_at, self.top = rows, 0, 0
        self.redraw()

    def content(self, width: int) -> Sequence[Row]:
        """Every row, ``width`` cells wide."""
        if self._wrapped_at != width:
            self._wrapped_at = width
            self._content = [part for row in self._given for part in wrap(row, width)]
        return self._content

    def total(self) -> int:
        self._content = self.content(self.text_width)
        return len(self._content)

    def window(self, first: int, number: int) -> list[Row]:
        return list(self._content[first : first + number])

    @property
    def text(self) -> str:
        """Everything shown, without inks, and without the breaks of a narrow window where rows were given."""
        return "\n".join("".join(text for text, _ in row) for row in self._given or self.content(self.text_width))


class StateView(TextView, StateCells):
    """Text about one run's state."""
