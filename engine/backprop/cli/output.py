"""Everything that the command line prints: answers to standard output, narration to standard error.

Secrets are blacked out of each text, and control characters that came from data, models or libraries are made visible,
so that no row can drive the terminal.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

from backprop.core.errors import BackpropError
from backprop.core.redaction import CONTROLS, redact

COLOURS = {"error": "31", "warning": "33", "head": "1", "quiet": "2"}
_LONGEST_CELL = 60

T = TypeVar("T")


def clean(text: str) -> str:
    """``text`` fit for a terminal: no secrets, control characters as ``\\x1b``; line breaks and tabs stay."""
    return CONTROLS.sub(lambda found: found[0] if found[0] in "\n\t" else _escape(found[0]), redact(text))


def inline(text: str) -> str:
    """``text`` as ``clean`` makes it, in one line."""
    return CONTROLS.sub(lambda found: _escape(found[0]), redact(text))


def _escape(character: str) -> str:
    return repr(character)[1:-1]


def _as_json(text: str) -> str:
    """A JSON document whose strings hold no control character as such. JSON itself escapes the first 32."""
    return CONTROLS.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


_SIMPLER = {"\u2212": "-", "\u2026": "..."}
"""How a terminal that has ASCII alone shows what the program itself writes."""


def prepare_streams() -> None:
    """A character that the terminal's encoding lacks, or half a surrogate pair, is shown simpler or as an escape."""
    codecs.register_error("backprop", _shown_otherwise)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backprop")


def _shown_otherwise(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    shown = (_SIMPLER.get(each) or each.encode("ascii", "backslashreplace").decode() for each in lacking)
    return "".join(shown), error.end


def coloured(text: str, kind: str, stream: TextIO) -> str:
    """``text`` in the colour of its kind where the stream is a terminal that wants colour (https://no-color.org)."""
    if kind not in COLOURS or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m"


def can_rewrite(stream: TextIO) -> bool:
    """Whether a line on ``stream`` can be written over. Under ``TERM=dumb`` none is, as for a screen reader."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def line(text: str = "", kind: str = "info") -> None:
    """A line of the answer for people, to standard output."""
    print(coloured(clean(text), kind, sys.stdout), flush=True)


def piece(text: str) -> None:
    """A piece of an answer as it comes, without a line's end."""
    print(clean(text), end="", flush=True)


def narrate(text: str, kind: str = "info") -> None:
    """A line about what goes on, to standard error."""
    print(coloured(clean(text), kind, sys.stderr), file=sys.stderr, flush=True)


def without_secrets(value: Any) -> Any:
    """Plain values with every secret blacked out of their texts, which are then sure to be UTF-8."""
    if isinstance(value, str):
        return redact(value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {without_secrets(key): without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value


def answer(value: T, as_json: bool, show: Callable[[T], None]) -> None:
    """What a command found: as one JSON document, or for people by ``show``."""
    if as_json:
        document(value)
    else:
        show(value)


def document(value: Any) -> None:
    """The one JSON document of a ``--json`` answer. A number that is not finite is ``null``."""
    import msgspec

    plain = without_secrets(msgspec.to_builtins(value))
    sys.stdout.write(_as_json(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()) + "\n")
    sys.stdout.flush()


def json_line(encoded: bytes) -> None:
    """One event as it came, unless it holds a secret."""
    text = encoded.decode()
    if redact(text) != text:
        import json

        text = json.dumps(without_secrets(json.loads(text)), ensure_ascii=False) + "\n"
    sys.stdout.write(_as_json(text))
    sys.stdout.flush()


def show_error(error: BackpropError, as_json: bool, cause: BaseException | None = None) -> None:
    """An error for people on standard error, or as the JSON answer on standard output.

    With ``cause``, its traceback first, on standard error.
    """
    if cause is not None:
        import traceback

        narrate("".join(traceback.format_exception(cause)).rstrip())
    if as_json:
        import json

        answer = without_secrets({"error": error.to_dict()})
        json_line(json.dumps(answer, ensure_ascii=False, default=str).encode() + b"\n")
        return
    narrate(f"error [{error.code}] {error.message}", "error")
    if error.hint:
        narrate(f"hint: {error.hint}")


def table(head: list[str], rows: list[list[str]], right: frozenset[int] = frozenset()) -> None:
    """Columns as wide as their widest cell; those in ``right`` are aligned to the right."""
    cells = [head, *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for number, row in enumerate(cells):
        padded = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        line("  ".join(padded).rstrip(), "head" if number == 0 else "info")


def _cell(text: str) -> str:
    text = inline(text)
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


def width(most: int = 100) -> int:
    """Columns to write in: the terminal's, 80 where there is none, at most ``most``."""
    import shutil

    return max(40, min(most, shutil.get_terminal_size().columns))
