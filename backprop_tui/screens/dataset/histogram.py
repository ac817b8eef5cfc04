"""The lengths of the rows as bars, with the limit between them: drawn again for the size it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.events import Resize

from backprop_tui.screens.dataset.row_view import RowView
from backprop_tui.widgets.styled import Line


class Histogram(RowView):
    """Shows what ``draw`` makes of width and height."""

    def __init__(self, draw: Callable[[int, int], Sequence[Line]], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._draw = draw

    def redraw(self) -> None:
        """Show the lengths as they are now."""
        if self.line_width:
            self.show(self._draw(self.line_width, self.size.height), self.line_width)

    def on_resize(self, event: Resize) -> None:
        del event
        self.redraw()
