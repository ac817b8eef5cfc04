"""Rows by how hard a model finds them, the hardest first; choosing one goes there."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from backprop.core.jobs import RowScore
from textual.message import Message

from backprop_tui.widgets.list_view import LineList
from backprop_tui.widgets.styled import Line

_HEAD = f"{'':>14}{'perplexity':>14}{'loss':>9}{'trained':>10}"


class ScoreList(LineList):
    """Some lines of words, then a line for each row that was scored."""

    class Picked(Message):
        """A row was chosen, by its line in the file."""

        def __init__(self, line: int) -> None:
            super().__init__()
            self.line = line

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._words: list[Line] = []
        self._rows: Sequence[RowScore] = ()
        self._far: Collection[int] = ()
        self._unit = "line"

    def show(self, words: list[Line], rows: Sequence[RowScore], far: Collection[int], unit: str) -> None:
        """Show ``rows`` below ``words``; those whose line is in ``far`` are marked."""
        place = max(self.cursor - len(self._words), 0)
        self._words = [*words, [(_HEAD, "dim")]] if rows else words
        self._rows, self._far, self._unit = rows, far, unit
        self.count = len(self._words) + len(rows)
        self.cursor = len(self._words) + place
        self.refresh()

    def line_at(self, index: int, width: int) -> Line:
        if index < len(self._words):
            return self._words[index]
        row = self._rows[index - len(self._words)]
        mark = "! far from the others" if row.line in self._far else ""
        numbers = f"{row.perplexity:>14,.2f}{row.loss:>9.3f}{row.tokens:>10,}  "
        return [(f"{self._unit} {row.line:,}".rjust(14), "dim"), (numbers, ""), (mark, "warning")]

    def action_choose(self) -> None:
        if self.cursor >= len(self._words) and self.count:
            self.post_message(self.Picked(self._rows[self.cursor - len(self._words)].line))
