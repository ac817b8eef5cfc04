"""What the panes of the Data screen report to it."""

from __future__ import annotations

from textual.message import Message


class Notice(Message):
    """A line for the bottom of the screen, or none. What is known of the file may have changed."""

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.text = text


class RowsChanged(Message):
    """Other rows are shown, or they mean something else now."""


class GoToLine(Message):
    """Show the row of this line of the file."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
