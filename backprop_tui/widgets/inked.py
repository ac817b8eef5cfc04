"""A scrolled widget that draws single lines in the inks of the theme."""

from __future__ import annotations

from rich.style import Style
from textual.color import Color
from textual.scroll_view import ScrollView

from backprop_tui import themes

STYLES = {
    "": "text",
    "heading": "strong+bold",
    "dim": "muted",
    "good": "good",
    "warning": "warn",
    "error": "bad",
    "system": "warn+bold",
    "user": "info+bold",
    "assistant": "good+bold",
    "tool": "mark+bold",
    "other": "bad+bold",
    "key": "info",
    "string": "good",
    "number": "mark",
    "literal": "warn",
    "special": "mark+bold",
    "plain": "text",
    "plain-other": "text+shade",
    "plain-special": "mark+bold",
    "trained": "trained+light",
    "trained-other": "trained+lighter",
    "trained-special": "mark+bold+light",
}
"""What a piece of text means → its ink, with weight and ground."""
_GROUNDS = {"shade": ("muted", 0.15), "light": ("trained", 0.15), "lighter": ("trained", 0.28)}
"""Grounds mixed from an ink; a theme of sixteen colours has none and uses weight instead."""


class Inked(ScrollView):
    """Styles by name, mixed once for each theme."""

    DEFAULT_CSS = "Inked { overflow-x: hidden; overflow-y: scroll; scrollbar-size-vertical: 1; }"
    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._styles: dict[tuple[str, bool], Style] = {}

    @property
    def line_width(self) -> int:
        """Cells of one line."""
        return self.scrollable_content_region.width

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles.clear()

    def style_of(self, name: str, *, cursor: bool = False) -> Style:
        """The style of a piece, in the line of the cursor or elsewhere."""
        style = self._styles.get((name, cursor))
        if style is None:
            style = self._styles[name, cursor] = self._mix(name, cursor)
        return style

    def _mix(self, name: str, cursor: bool) -> Style:
        ink, *more = STYLES[name].split("+")
        theme = self.app.current_theme
        palette = themes.palette(theme)
        ground = self.background_colors[1]
        style = Style(color=palette[ink], bgcolor=ground.rich_color, bold="bold" in more or None)
        if theme.ansi:
            heavy = "shade" in more or "lighter" in more
            return style + Style(reverse=cursor or None, bold=heavy or style.bold)
        for shade in more:
            if shade in _GROUNDS:
                other, share = _GROUNDS[shade]
                style += Style(bgcolor=ground.blend(Color.from_rich_color(palette[other]), share).rich_color)
        return style + Style(bgcolor=palette["cursor"], bold=True) if cursor else style
