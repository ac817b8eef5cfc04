"""Short forms of numbers, times and names for narrow places, and text made safe to draw."""

from __future__ import annotations

from pathlib import Path

from rich.cells import cell_len

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

_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "·") | {0x2028: "·", 0x2029: "·", 9: "  "}


def safe(text: str) -> str:
    """Text without control characters: what a model wrote must not steer the terminal."""
    return text.translate(_CONTROL)


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
    """``12345`` as ``12 345``."""
    return f"{number:,.0f}".replace(",", " ")


def short_path(text: str) -> str:
    """The last part of a path or of a hub name."""
    return Path(text).name or text


def from_home(text: str) -> str:
    """Text with the person's home directory written as ``~``."""
    return text.replace(f"{Path.home()}/", "~/")


def model_name(state_model: str, preset: object) -> str:
    """The name a person gave; a loaded model may only know its directory in the cache."""
    return short_path(str(preset or state_model))


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` cells, broken between words where that is possible; line breaks are kept."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines += _wrap_paragraph(safe(paragraph), max(1, width))
    return lines


def _wrap_paragraph(text: str, width: int) -> list[str]:
    lines, line, used = [], "", 0
    for word in text.split(" "):
        size = cell_len(word)
        if line and used + 1 + size <= width:
            line, used = f"{line} {word}", used + 1 + size
            continue
        if line:
            lines.append(line)
        while size > width:
            head = _head(word, width)
            lines.append(head)
            word = word[len(head) :]
            size = cell_len(word)
        line, used = word, size
    return [*lines, line]


def _head(word: str, width: int) -> str:
    """As many characters of ``word`` as fit, at least one."""
    end, used = 0, 0
    for character in word:
        used += cell_len(character)
        if used > width and end:
            break
        end += 1
    return word[:end]
