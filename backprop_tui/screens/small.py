"""What is shown where the application cannot be."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.screen import ModalScreen

from backprop_tui.widgets.cells import Cells, Row

WIDTH, HEIGHT = 60, 16


class _Need(Cells):
    def rows(self, width: int, height: int) -> list[Row]:
        size = self.app.size
        lines = ["this window is too small", f"needs {WIDTH}x{HEIGHT}, has {size.width}x{size.height}"]
        above = max(0, (height - len(lines)) // 2)
        rows: list[Row] = [[] for _ in range(above)]
        return rows + [[(line[:width].center(width), "text")] for line in lines]


class TooSmall(ModalScreen[None]):
    """Covers everything until the window is large enough. Training and watching go on."""

    def __init__(self) -> None:
        super().__init__(id="small")

    def compose(self) -> ComposeResult:
        yield _Need()
