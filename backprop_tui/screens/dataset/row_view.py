"""The row under the cursor: as a chat, as JSON, or as tokens with the trained ones marked; drawn in a thread."""

from __future__ import annotations

from collections.abc import Callable

from backprop.data.reader import Row as DataRow
from textual.message import Message

from backprop_tui.screens.dataset.row_text import chat_lines, error_lines, raw_lines
from backprop_tui.screens.dataset.rows import RowReader
from backprop_tui.screens.dataset.tokens import Chosen, token_lines
from backprop_tui.text import Row, safe, wrap
from backprop_tui.widgets.text_view import TextView

VIEWS = ("chat", "JSON", "tokens")
_Asked = tuple[RowReader, int, int, int]
"""Reader of the file, row, view and width."""


class RowView(TextView):
    """One row in one of ``VIEWS``.

    Args:
        chosen: the model whose tokens are shown, and the limit.
        findings: what a check said of a line of the file.
    """

    class Drawn(Message):
        """A row, wrapped to the width."""

        def __init__(self, asked: _Asked, lines: list[Row]) -> None:
            super().__init__()
            self.asked = asked
            self.lines = lines

    def __init__(self, chosen: Chosen, findings: Callable[[int], list[Row]], *, id: str) -> None:
        super().__init__(id=id)
        self._chosen, self._findings = chosen, findings
        self.view = 0
        """Which of ``VIEWS`` the row is seen in."""
        self._asked: _Asked | None = None
        """What is shown or on its way."""

    @property
    def as_tokens(self) -> bool:
        return VIEWS[self.view] == "tokens"

    def next_view(self) -> None:
        self.view = (self.view + 1) % len(VIEWS)

    def show_row(self, reader: RowReader, row: int, *, again: bool = False) -> None:
        """Have a row drawn, where it is not the one that is shown, or ``again``."""
        asked = (reader, row, self.view, max(self.text_width, 20))
        if asked != self._asked or again:
            self._asked = asked
            reader.detail(row, lambda found: self._draw(asked, found))

    def _draw(self, asked: _Asked, found: DataRow) -> None:
        reader, _, view, width = asked
        head: Row = [(f"line {found.line}", "strong+bold"), (f"  as {VIEWS[view]}  (v: another view)", "muted")]
        lines = [head, *self._lines(reader, found, VIEWS[view])]
        self.post_message(self.Drawn(asked, [part for line in lines for part in wrap(line, width)]))

    def _lines(self, reader: RowReader, row: DataRow, view: str) -> list[Row]:
        file = reader.opened.file
        if view != "tokens":
            return [*self._findings(row.line), *(chat_lines(row, file) if view == "chat" else raw_lines(row))]
        chosen = self._chosen
        if chosen.tokenizer is None:
            return error_lines(chosen.why_none) if chosen.why_none else [[("reading the tokenizer …", "muted")]]
        head: Row = [("model   ", "muted"), (safe(chosen.model), "text"), ("  (m: another one)", "muted")]
        return [head, *token_lines(row, file, chosen.tokenizer, chosen.limit, brackets=self.app.no_color)]

    def on_row_view_drawn(self, message: Drawn) -> None:
        message.stop()
        if message.asked == self._asked:
            self.show_rows(message.lines)

    def on_resize(self) -> None:
        if self._asked is not None:
            self.show_row(*self._asked[:2])
