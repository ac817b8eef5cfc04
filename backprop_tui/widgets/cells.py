"""A widget of fixed size that sends to the terminal only the cells that changed; and rows put together.

Textual repaints a widget whole and does not compare with what is on the terminal. ``Cells`` keeps the rows it drew
last, and asks for the changed stretch of the changed rows alone: a number that ticks costs a few bytes.
"""

from __future__ import annotations

from itertools import zip_longest

from backprop.runs.state import RunState
from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from backprop_tui import themes
from backprop_tui.text import Row, safe, wrap_text

_JUMP = 8
"""Unchanged cells between two changes that are sent anyway: moving the cursor costs about as much."""
_GROUNDS = {
    **{"shade": ("muted", 0.15), "light": ("trained", 0.15), "lighter": ("trained", 0.28)},
    **{"warm": ("bad", 0.15), "hot": ("bad", 0.35)},
    "hit": ("mark", 0.45),
    "here": ("info", 0.45),
}
"""Grounds mixed from an ink; a theme of sixteen colours has none and uses weight instead."""


class Cells(Widget):
    """Subclasses draw ``rows()``; whoever changed what they show calls ``redraw()``."""

    DEFAULT_CSS = "Cells { width: 1fr; background: transparent; }"
    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._drawn: list[Row] = []
        self._drawn_size = Size(0, 0)
        self._inks: dict[str, Style] = {}
        self._seen: object = None

    def rows(self, width: int, height: int) -> list[Row]:
        """What to show in ``width`` by ``height`` cells: at most ``height`` rows."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw again and send what changed. Hidden widgets wait until they are shown."""
        size = self.size
        if not size or not self.is_attached:
            return
        new = fitted(self.rows(size.width, size.height), size.height)
        old = self._drawn
        self._drawn = new
        if self._drawn_size != size or len(old) != len(new):
            self._drawn_size = size
            self.refresh()
            return
        changed = [
            Region(start, y, length, 1)
            for y, (before, after) in enumerate(zip(old, new, strict=True))
            if before != after
            for start, length in changed_stretches(before, after, size.width)
        ]
        if changed:
            self.refresh(*changed)

    def redraw_for(self, seen: object) -> None:
        """Draw again where what is shown is another than the last time."""
        if seen != self._seen:
            self._seen = seen
            self.redraw()

    def on_resize(self) -> None:
        self.redraw()

    def notify_style_update(self) -> None:
        """A new theme: every cell is another colour."""
        super().notify_style_update()
        self._drawn_size = Size(0, 0)
        self._inks.clear()

    def render_line(self, y: int) -> Strip:
        if y >= len(self._drawn) or self._drawn_size != self.size:
            self._drawn, self._drawn_size = fitted(self.rows(*self.size), self.size.height), self.size
        return self.strip(self._drawn[y]) if y < len(self._drawn) else Strip.blank(self.size.width)

    def strip(self, row: Row) -> Strip:
        """A row as Textual draws it, exactly as wide as the widget."""
        segments: list[Segment] = []
        before = ""
        for text, ink in row:
            # A blank shows no ink: it takes its neighbour's, and the terminal is spared the change.
            blank = segments and text.isspace() and not has_ground(ink) and not has_ground(before)
            style = segments[-1].style if blank else self.ink(ink)
            if text:
                segments.append(Segment(text if text.isprintable() else safe(text), style))
                before = ink
        return Strip(Segment.simplify(segments)).adjust_cell_length(self.size.width, self.ink("text"))

    def ink(self, name: str) -> Style:
        """The style of an ink on this widget's ground."""
        style = self._inks.get(name)
        if style is None:
            style = self._inks[name] = self._mix(name)
        return style

    def _mix(self, name: str) -> Style:
        base, *more = name.split("+")
        theme = self.app.current_theme
        palette = themes.palette(theme)
        ground = self.background_colors[1]
        if theme.ansi:
            if grounds := {"cursor", "hit", "here"} & set(more):
                return Style(bgcolor=ground.rich_color, reverse=grounds != {"cursor", "hit"})
            more = ["bold" if word in ("shade", "lighter", "hot") else word for word in more]
        for word in () if theme.ansi else more:
            if word in _GROUNDS:
                other, share = _GROUNDS[word]
                ground = ground.blend(Color.from_rich_color(palette[other]), share)
        back = palette["cursor"] if "cursor" in more and "hit" not in more else ground.rich_color
        bold, underlined = "bold" in more or None, "underline" in more or None
        return Style(color=palette[base or "text"], bgcolor=back, bold=bold, underline=underlined)


def has_ground(ink: str) -> bool:
    """Whether a blank in this ink is seen."""
    return any(word in ink for word in ("+cursor", "+shade", "+light", "+underline", "+hit", "+warm", "+hot", "+here"))


class StateCells(Cells):
    """``show`` gives a run's state, ``None`` where no run is open; it is the same object while the run goes on."""

    state: RunState | None = None

    def show(self, state: RunState | None) -> None:
        self.state = state
        self.redraw()


def fitted(rows: list[Row], height: int) -> list[Row]:
    """Exactly ``height`` rows."""
    return (rows + [[] for _ in range(height - len(rows))])[:height]


def changed_stretches(before: Row, after: Row, width: int) -> list[tuple[int, int]]:
    """First cell and length of what changed in a row; the whole row where it holds characters of two cells."""
    old = [(char, ink) for text, ink in before for char in text]
    new = [(char, ink) for text, ink in after for char in text]
    if any(cell_len(text) != len(text) for text, _ in (*before, *after)):
        return [(0, width)]
    found: list[tuple[int, int]] = []
    for x, (a, b) in enumerate(zip_longest(old[:width], new[:width], fillvalue=(" ", ""))):
        if a == b or (a[0] == b[0] == " " and not has_ground(a[1] + b[1])):
            continue
        if found and x - sum(found[-1]) < _JUMP:
            found[-1] = (found[-1][0], x + 1 - found[-1][0])
        else:
            found.append((x, 1))
    return found


def row_width(row: Row) -> int:
    return sum(cell_len(text) for text, _ in row)


def spread(left: Row, right: Row, width: int) -> Row:
    """``left`` and ``right`` at the two ends of ``width`` cells; the left one is cut when there is no room."""
    room = max(0, width - row_width(right) - 1)
    left = cut(left, room)
    return [*left, (" " * (width - row_width(left) - row_width(right)), "text"), *right]


def cut(row: Row, width: int) -> Row:
    """The row in at most ``width`` cells, ending in an ellipsis where something was left out."""
    if row_width(row) <= width:
        return row
    kept: Row = []
    room = max(0, width - 1)
    for text, ink in row:
        size = cell_len(text)
        if size > room:
            kept.append((set_cell_size(text, room), ink))
            break
        kept.append((text, ink))
        room -= size
    return [*kept, ("…", "muted")] if width > 0 else []


def pad(row: Row, width: int) -> Row:
    """The row with blanks to ``width`` cells."""
    return [*row, (" " * (width - row_width(row)), "text")]


def heading(title: str, width: int, note: str = "") -> Row:
    """A section's title with a rule to the end of the row, a remark at its right."""
    tail = f" {note}" if note else ""
    rule = max(0, width - cell_len(title) - 1 - cell_len(tail))
    return [(title, "info"), (" " + "─" * rule, "rule"), (tail, "muted")]


def bar(share: float, width: int, ink: str) -> Row:
    """A bar of ``width`` cells, ``share`` (0 to 1) of it filled, to half a cell."""
    halves = round(max(0.0, min(1.0, share)) * width * 2)
    full, half = divmod(halves, 2)
    return [("━" * full + ("╸" if half else ""), ink), ("─" * (width - full - half), "rule")]


def fact(label: str, value: str, ink: str = "text", *, width: int = 13) -> Row:
    """A label in a column of ``width`` cells, and its value."""
    return [(f"{label:<{width}}", "muted"), (value, ink)]


def paragraph(text: str, width: int, ink: str = "text") -> list[Row]:
    """A text, wrapped, in one ink."""
    return [[(line, ink)] for line in wrap_text(text, width)]


def labelled(label: str, text: str, width: int, ink: str = "text", *, label_ink: str = "muted") -> list[Row]:
    """A label, and beside it a text on as many rows as it needs."""
    room = cell_len(label)
    first, *rest = wrap_text(text, max(8, width - room))
    return [[(label, label_ink), (first, ink)], *([(" " * room, "text"), (line, ink)] for line in rest)]
