"""Text, numbers and times as a terminal shows them: made safe, wrapped, and one form for each kind of number."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from backprop.core.events import Verdict
from backprop.runs.describe import signed
from rich.cells import cell_len, set_cell_size

Piece: TypeAlias = tuple[str, str]
"""Text and its ink: a name of ``themes.inks``; ``+bold``, ``+cursor`` and the like say weight and ground."""
Row: TypeAlias = list[Piece]

STATUS = {
    "starting": ("◌", "info"),
    "running": ("●", "good"),
    "paused": ("‖", "warn"),
    "done": ("✓", "good"),
    "stopped": ("■", "text"),
    "interrupted": ("■", "warn"),
    "failed": ("✗", "bad"),
    "crashed": ("✗", "bad"),
    "damaged": ("?", "warn"),
}
"""A glyph and an ink for each status of a run."""
SEVERITY = {"error": ("✗", "bad"), "warning": ("!", "warn"), "info": ("·", "muted"), "": (" ", "text")}
"""The same for each severity of a finding, the worst first."""

_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20)} | {
    0x7F: "␡",
    **dict.fromkeys((*range(128, 160), 0x2028, 0x2029), "�"),
    # Marks that turn the writing direction around would let a text disguise what it says.
    **dict.fromkeys((1564, 8206, 8207, *range(8234, 8239), *range(8294, 8298), 65279), "�"),
}
_ONE_LINE = _VISIBLE | {0x0A: "↵", 0x09: " ", 0x0D: "␍"}
_MANY_LINES = {code: sign for code, sign in _VISIBLE.items() if code not in (0x0A, 0x09)} | {0x09: "    "}


def verdict_piece(verdict: Verdict, *, short: bool = False) -> Piece:
    """``better −0.420 (n 50)``, green where it helped."""
    ink = {"better": "good", "worse": "bad"}.get(verdict.word, "muted")
    return f"{verdict.word} {signed(verdict.difference)}" + ("" if short else f" (n {verdict.rows})"), ink


def safe(text: str) -> str:
    """``text`` for one row: nothing in it can move the cursor or change the terminal."""
    return _surrogates(text).translate(_ONE_LINE)


def many_lines(text: str) -> str:
    """``text`` with its line breaks kept and every other control character made visible."""
    return _surrogates(text.replace("\r\n", "\n")).translate(_MANY_LINES)


def _surrogates(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def clock(seconds: float | None) -> str:
    """``3725`` as ``1:02:05``, ``65`` as ``1:05``; a dash where it is not known."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def ago(seconds: float) -> str:
    """How long ago, in its largest unit."""
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {name} ago"
    return "just now"


def count(number: float) -> str:
    """``12345`` as ``12,345``."""
    return f"{number:,.0f}"


def rows_of(number: int) -> str:
    """``1 row``, ``12,345 rows``."""
    return f"{number:,} row{'' if number == 1 else 's'}"


def percent(part: int, whole: int) -> str:
    """``98 (4.9 %)``: a part with its share; only all of them are 100 %."""
    share = 100 * part / max(whole, 1)
    digits = "99.9" if 99.5 <= share < 100 else f"{share:.0f}" if share >= 9.95 else f"{share:.2g}"
    digits = "under 0.001" if 0 < share < 0.001 else digits
    return f"{part:,} ({digits} %)"


def short_number(number: float) -> str:
    """``512``, ``1.5k``, ``12M``: at most five characters."""
    for unit in ("", "k", "M", "G"):
        if number < 999.5 or unit == "G":
            break
        number /= 1000
    return f"{number:.0f}{unit}" if not unit or number >= 9.95 else f"{number:.1f}{unit}"


def parameters_text(number: float) -> str:
    """How large a model is: ``31k``, ``135M``, ``4.2B`` parameters."""
    return short_number(number).replace("G", "B")


@lru_cache
def short_path(text: str) -> str:
    """The last part of a path or of a hub name."""
    return Path(text).name or text


def from_home(text: str) -> str:
    """Text with the person's home directory written as ``~``."""
    return text.replace(f"{Path.home()}/", "~/")


def fit(text: str, width: int) -> str:
    """``text`` in exactly ``width`` cells, cut with an ellipsis where it is longer."""
    if width <= 0:
        return ""
    return set_cell_size(text, width - 1) + "…" if cell_len(text) > width else set_cell_size(text, width)


def marked(row: Row, words: str) -> Row:
    """The row with the ground of a hit (``+hit``) under every place where ``words`` stand, in any case."""
    text = "".join(piece for piece, _ in row)
    hits = [match.span() for match in re.finditer(re.escape(words), text, re.IGNORECASE)] if words else []
    if not hits:
        return row
    edges = sorted({edge for hit in hits for edge in hit})
    ends = dict(hits)
    found: Row = []
    at = until = 0
    for piece, ink in row:
        inside = edges[bisect_right(edges, at) : bisect_left(edges, at + len(piece))]
        for start, end in pairwise([at, *inside, at + len(piece)]):
            until = ends.get(start, until)
            found.append((piece[start - at : end - at], f"{ink}+hit" if start < until else ink))
        at += len(piece)
    return found


def split_lines(text: str, ink: str) -> list[Row]:
    """A row for each line of ``text``, all in one ink."""
    return [[(part, ink)] for part in many_lines(text).split("\n")]


def wrap_text(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` cells, broken between words where that is possible; line breaks are kept."""
    lines: list[str] = []
    for paragraph in many_lines(text).split("\n"):
        lines += [part.rstrip(" ") for part in _parts(paragraph, max(1, width))] or [""]
    return lines


def wrap(row: Row, width: int) -> list[Row]:
    """A row as rows of at most ``width`` cells (and the space at which it was broken)."""
    text = "".join(piece for piece, _ in row)
    if cell_len(text) <= width or width < 1:
        return [row]
    wrapped: list[Row] = []
    pieces = iter(row)
    rest, ink = next(pieces)
    for part in _parts(text, width):
        length = len(part)
        line: Row = []
        while length > 0:
            if not rest:
                rest, ink = next(pieces)
                continue
            line.append((rest[:length], ink))
            length, rest = length - len(line[-1][0]), rest[length:]
        wrapped.append(line)
    return wrapped


def _parts(text: str, width: int) -> Iterator[str]:
    """``text`` in parts of at most ``width`` cells, each up to a space where there is one, and that space."""
    start, narrow = 0, text.isascii()
    while start < len(text):
        end = start + width if narrow else _reach(text, start, width)
        if end < len(text):
            space = text.rfind(" ", start + 1, end + 1)
            if space > start:
                end = space + 1
        yield text[start:end]
        start = end


def _reach(text: str, start: int, width: int) -> int:
    """The end of the longest part from ``start`` that fits ``width`` cells; at least one character."""
    end = min(start + width, len(text))
    while end > start + 1 and cell_len(text[start:end]) > width:
        end -= max((cell_len(text[start:end]) - width) // 2, 1)
    return end
