"""Text as it fits a terminal: control characters made visible, widths in cells, lines of styled pieces wrapped.

A line is a sequence of pieces, each a text and the name of its style. Widgets turn names into styles of the theme, so
lines can be made in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from rich.cells import cell_len, set_cell_size

Piece: TypeAlias = tuple[str, str]
"""Text and style name; an empty name is the widget's own style."""
Line: TypeAlias = Sequence[Piece]

_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20)} | {
    0x7F: "␡",
    **dict.fromkeys(range(128, 160), "�"),
    # Marks that turn the writing direction around would let a row disguise what it says.
    **dict.fromkeys((8206, 8207, *range(8234, 8239), *range(8294, 8298), 65279), "�"),
}
_ONE_LINE = _VISIBLE | {0x0A: "↵", 0x09: " ", 0x0D: "␍"}
_MANY_LINES = {code: sign for code, sign in _VISIBLE.items() if code not in (0x0A, 0x09)} | {0x09: "    "}


def one_line(text: str) -> str:
    """``text`` for one row of a table: nothing in it can move the cursor or change the terminal."""
    return _surrogates(text).translate(_ONE_LINE)


def many_lines(text: str) -> str:
    """``text`` with its line breaks kept and every other control character made visible."""
    return _surrogates(text.replace("\r\n", "\n")).translate(_MANY_LINES)


def _surrogates(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def fit(text: str, width: int) -> str:
    """``text`` in exactly ``width`` cells, cut with an ellipsis where it is longer."""
    if width <= 0:
        return ""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)


def split_lines(text: str, style: str) -> list[Line]:
    """One line per line of ``text``, all in one style."""
    return [((part, style),) for part in many_lines(text).split("\n")]


def wrap(line: Line, width: int) -> list[Line]:
    """Break a line at spaces (or where it must) so that no part is wider than ``width`` cells."""
    text = "".join(piece for piece, _ in line)
    if cell_len(text) <= width or width < 1:
        return [line]
    parts: list[Line] = []
    pieces = iter(line)
    rest, style = next(pieces)
    for length in _lengths(text, width):
        part: list[Piece] = []
        while length > 0:
            if not rest:
                rest, style = next(pieces)
                continue
            part.append((rest[:length], style))
            length, rest = length - len(part[-1][0]), rest[length:]
        parts.append(part)
    return parts


def _lengths(text: str, width: int) -> list[int]:
    """How many characters of ``text`` go on each line."""
    lengths, start = [], 0
    narrow = text.isascii()
    while start < len(text):
        end = start + width if narrow else _reach(text, start, width)
        if end < len(text):
            space = text.rfind(" ", start + 1, end + 1)
            if space > start:
                end = space + 1
        end = min(end, len(text))
        lengths.append(end - start)
        start = end
    return lengths


def _reach(text: str, start: int, width: int) -> int:
    """The end of the longest part from ``start`` that fits ``width`` cells; at least one character."""
    end = min(start + width, len(text))
    while end > start + 1 and cell_len(text[start:end]) > width:
        end -= max((cell_len(text[start:end]) - width) // 2, 1)
    return end
