"""The row under the cursor: as a chat, as JSON, or as tokens with the trained ones marked; drawn in a thread."""

from __future__ import annotations

from collections.abc import Callable

from backprop.data.reader import Row as DataRow

from backprop_tui.keys import press
from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.row_text import chat_lines, error_lines, raw_lines
from backprop_tui.screens.dataset.tokens import Chosen, token_lines
from backprop_tui.screens.tasks import Task, Tasks
from backprop_tui.text import Row, marked, safe, wrap
from backprop_tui.widgets.text_view import TextView

VIEWS = ("chat", "JSON", "tokens")


class RowView(TextView):
    """One row in one of ``VIEWS``.

    Args:
        chosen: the model whose tokens are shown, and the limit.
        findings: what a check said of a line of the file.
        words: what is searched for: it is marked, and the first place of it is in sight.
    """

    view = 0
    """Which of ``VIEWS`` the row is seen in."""
    _asked: tuple[OpenFile, int, int, int] | None = None
    """File, row, view and width of what is shown or on its way."""

    def __init__(
        self, chosen: Chosen, findings: Callable[[int], list[Row]], words: Callable[[], str], tasks: Tasks, *, id: str
    ) -> None:
        super().__init__(id=id)
        self._chosen, self._findings, self._words, self._tasks = chosen, findings, words, tasks

    def next_view(self) -> None:
        self.view = (self.view + 1) % len(VIEWS)

    def show_row(self, opened: OpenFile, row: int, *, again: bool = False) -> None:
        """Have a row drawn, where it is not the one that is shown, or ``again``."""
        view, width = VIEWS[self.view], max(self.text_width, 20)
        asked = (opened, row, self.view, width)
        if asked == self._asked and not again:
            return
        self._asked, words = asked, self._words()

        def draw(task: Task[list[Row]]) -> list[Row] | None:
            if task.stopped():
                return None
            found = opened.row(row)
            head: Row = [
                (f"{opened.source.unit} {found.line:,}", "strong+bold"),
                (f"  as {view}  ({press('data.view')}: another view)", "muted"),
            ]
            lines = self._lines(opened, found, view)
            # What is said of the tokens stands above them, before an empty row, and is not the row's own text.
            said = lines.index([]) if view == "tokens" and [] in lines else 0
            lines[said:] = [marked(line, words) for line in lines[said:]]
            return [part for line in (head, *lines) for part in wrap(line, width)]

        self._tasks.begin("row", "", draw, self._take)

    def _take(self, lines: list[Row]) -> None:
        self.show_rows(lines)
        hit = next((at for at, line in enumerate(lines) if any(ink.endswith("+hit") for _, ink in line)), 0)
        if hit >= self.body_height:
            self.scroll_by(hit - self.body_height // 2)

    def _lines(self, opened: OpenFile, row: DataRow, view: str) -> list[Row]:
        file = opened.file
        if view != "tokens":
            return [*self._findings(row.line), *(chat_lines(row, file) if view == "chat" else raw_lines(row))]
        chosen = self._chosen
        if chosen.tokenizer is None:
            return error_lines(chosen.why_none) if chosen.why_none else [[("reading the tokenizer …", "muted")]]
        another = f"  ({press('data.model')}: another one)"
        head: Row = [("model   ", "muted"), (safe(chosen.model), "text"), (another, "muted")]
        lines = token_lines(
            *(row, file, chosen.tokenizer, chosen.limit),
            rows=chosen.rows,
            traces=chosen.traces,
            brackets=self.app.no_color,
        )
        return [head, *lines]

    def show_none(self) -> None:
        """No row is under the cursor."""
        self._tasks.forget("row")
        self._asked = None
        self.show_rows([])

    def on_resize(self) -> None:
        if self._asked is not None:
            self.show_row(*self._asked[:2])
