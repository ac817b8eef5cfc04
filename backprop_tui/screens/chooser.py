"""One of several, each with what is known of it; typing narrows the list, or names what is not in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input

from backprop_tui.screens.dialogs import Dialog
from backprop_tui.text import Row, safe
from backprop_tui.widgets.cells import paragraph, row_width
from backprop_tui.widgets.list_view import ListView


class Choice(NamedTuple):
    value: str
    title: str
    note: str = ""


class _Choices(ListView):
    """Those that hold every word that was typed. The keys go to the input above."""

    can_focus = False

    def __init__(self, choices: Sequence[Choice], *, others: bool) -> None:
        super().__init__(id="choices")
        self._words, self._others = "", others
        self.all = self.shown = choices
        self.count = len(choices)
        self._titles = max((len(each.title) for each in choices), default=0) + 2

    def narrow(self, words: str) -> None:
        self._words, wanted = words.strip(), words.lower().split()
        self.shown = [each for each in self.all if all(word in f"{each.title} {each.note}".lower() for word in wanted)]
        self.resize_list(len(self.shown))
        self.cursor = 0

    def head(self) -> list[Row]:
        """Where no choice is left, what enter does then."""
        if self.shown:
            return []
        does = f"enter takes {self._words!r} as it is" if self._others and self._words else "there is nothing to take"
        return paragraph(f"no choice holds this: {does}", max(1, self.size.width), "muted")

    def row_at(self, index: int, width: int) -> Row:
        _, title, note = self.shown[index]
        row: Row = [("  ", "text"), (safe(title), "text")]
        gap = max(1, min(self._titles, width // 2) - row_width(row) + 2)
        return [*row, (" " * gap, "text"), (safe(note), "muted")]

    def under_cursor(self, row: Row, width: int) -> Row:
        return super().under_cursor([("▸ ", "info+bold"), *row[1:]], width)


class Chooser(Dialog[str]):
    """Answers with the chosen value; escape with ``None``.

    Args:
        other: what a text that is none of the choices stands for, in words; without it only they are taken.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", show=False),
        Binding("up,shift+tab", "move(-1)", show=False),
        Binding("down,tab", "move(1)", show=False),
        Binding("pageup", "move(-8)", show=False),
        Binding("pagedown", "move(8)", show=False),
    ]

    def __init__(self, title: str, choices: Sequence[Choice], *, other: str = "") -> None:
        super().__init__()
        self._title, self._other = title, other
        self._list = _Choices(choices, others=bool(other))
        self._entry = Input(id="chooser-input", compact=True, placeholder=other or "type to narrow the list")
        self._entry.cursor_blink = False

    def compose(self) -> ComposeResult:
        with Vertical(id="box") as box:
            box.border_title = self._title
            box.border_subtitle = "enter takes · esc leaves"
            yield self._entry
            yield self._list

    def on_mount(self) -> None:
        self._entry.focus()

    def action_move(self, by: int) -> None:
        self._list.cursor += by

    def on_input_changed(self, event: Input.Changed) -> None:
        self._list.narrow(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if self._list.count:
            self._take()
        elif self._other and event.value.strip():
            self.dismiss(event.value.strip())

    def on_click(self, event: events.Click) -> None:
        """A click outside leaves."""
        if event.widget is self:
            self.dismiss()

    @on(ListView.Chosen)
    def _take(self) -> None:
        """What the cursor is on: the list may have been narrowed to nothing since a row of it was clicked."""
        if self._list.count:
            self.dismiss(self._list.shown[self._list.cursor].value)
