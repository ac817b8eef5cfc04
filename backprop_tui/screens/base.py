"""Screens that send exactly the cells that changed.

Textual's own partial update sends, for a changed stretch, everything from the widget's left edge to the stretch's end.
Here the stretch alone is sent. This replaces one method of Textual's compositor; the rest of it is used as it is.
"""

from __future__ import annotations

from rich.console import Console
from rich.control import Control
from textual._compositor import ChopsUpdate, Compositor
from textual.screen import Screen


class _ExactUpdate(ChopsUpdate):
    def render_segments(self, console: Console) -> str:
        sequences: list[str] = []
        for y, start, end in self.spans:
            for chop_end, (chop_start, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                left, right = max(start, chop_start), min(end, chop_end)
                if strip is None or left >= right:
                    continue
                sequences.append(Control.move_to(left, y).segment.text)
                sequences.append(strip.crop(left - chop_start, right - chop_start).render(console))
        return "".join(sequences)


class _SparingCompositor(Compositor):
    def render_partial_update(self) -> ChopsUpdate | None:
        update = super().render_partial_update()
        return None if update is None else _ExactUpdate(update.chops, update.spans, update.chop_ends)


class SparingScreen(Screen[None]):
    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._compositor = _SparingCompositor()
