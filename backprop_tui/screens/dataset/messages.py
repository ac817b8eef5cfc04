"""What the panes and the threads of the Data screen report to it. Threads touch no widget: they post these."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from backprop.core.errors import ModelLoadError
from textual.message import Message

from backprop_tui.screens.dataset.file import OpenFile

if TYPE_CHECKING:
    from backprop.data.tokenizer import ChatTokenizer


class Opened(Message):
    """A file is open and its first rows are known."""

    def __init__(self, opened: OpenFile) -> None:
        super().__init__()
        self.opened = opened


class Notice(Message):
    """A line for the bottom of the screen. What is known of the file may have changed."""

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.text = text


class GoToLine(Message):
    """Show the row of this line of the file."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line


class LineFound(Message):
    """The row (index from 0) of a line that was asked for."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.row = row


class ScanEnded(Message):
    """A search or a filter has looked at the file: all of it, or until it was stopped."""

    def __init__(self, kind: str, hits: array[int], *, whole: bool) -> None:
        super().__init__()
        self.kind = kind
        self.hits = hits
        self.whole = whole


class ModelChosen(Message):
    """A tokenizer was loaded, or why not."""

    def __init__(self, name: str, tokenizer: ChatTokenizer | None, why: ModelLoadError | None) -> None:
        super().__init__()
        self.name = name
        self.tokenizer = tokenizer
        self.why = why
