"""Bytes of one row → its value, or what is wrong with it in words; and a value → a line of JSON Lines."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import date, time
from typing import Any

import msgspec
import orjson

from backprop.data.example import RowError

BOM = codecs.BOM_UTF8
KEY_END = b'":'
"""Stands once for each key of an object; inside a text its quote has a backslash before it."""
Found = tuple[int, bytes, object, RowError | None]
"""A row of another file than JSON Lines: its number (from 1), its bytes, its value, and what is wrong or odd."""
Note = Callable[[str], object]
"""Called, before the first row is given, with what is unusual about how a file as a whole is read."""
_MISREAD = re.compile("\ufffd|â€|Ã[\xa1-\xaa\xac-\xba\xbc-\xbf]|Â[\xa0-\xaa\xac-\xba\xbc-\xbf]")
"""The replacement character, and UTF-8 that was read as Windows-1252: ’ é ° and the like. « and » may follow Ã."""
_MISREAD_SIGNS = ("\ufffd", "â€", "Ã", "Â")
_decoder = msgspec.json.Decoder()
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_ICONV = {"Windows-1252": "WINDOWS-1252", "Latin-1": "ISO-8859-1"}


def wide_encoding(head: bytes) -> str | None:
    """``UTF-16`` or ``UTF-32`` where the first bytes of a file say so: by their mark, or as every other one is NUL."""
    for mark, name in _WIDE.items():
        if head.startswith(mark):
            return name
    even, odd = head[0::2], head[1::2]
    if len(odd) >= 8 and (odd.count(0) > 0.9 * len(odd)) != (even.count(0) > 0.9 * len(even)):
        return "UTF-16"
    return None


def is_binary(raw: bytes) -> bool:
    """Whether these bytes are text in no encoding: no UTF-8, and more control characters than texts have."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(raw)  # which may end within a character
    except UnicodeDecodeError:
        return len(_CONTROLS.findall(raw)) > max(3, len(raw) // 50)
    return False


def parse_json(raw: bytes, offset: int = 0) -> tuple[object | None, RowError | None]:
    """The value of one JSON text, or why it is none: an error. A warning says what was odd about the text of a value.

    Args:
        raw: the row's bytes.
        offset: where they begin in the file, for the message.

    Whole numbers of any size stay whole. ``NaN`` is read as null. Of a repeated key the last value counts.
    """
    if raw.startswith(BOM):
        raw, offset = raw[len(BOM) :], offset + len(BOM)
    try:
        value = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_again(raw, offset)
    return value, repeated_key(raw, value)


def repeated_key(raw: bytes, value: object) -> RowError | None:
    """The warning about an object in ``raw``, which is ``value``, that has a key twice."""
    if raw.count(KEY_END) == msgspec.json.encode(value).count(KEY_END):
        return None
    twice: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> None:
        twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)

    with suppress(RecursionError, ValueError):
        json.loads(raw, object_pairs_hook=look)
    if not twice:
        return None
    return RowError("repeated_key", twice[0], f"the key {twice[0]!r} stands twice: the last one counts", "warning")


def _read_again(raw: bytes, offset: int) -> tuple[object | None, RowError | None]:
    """What the fast reader refuses: deep nesting, ``NaN``, or what is wrong."""
    try:
        return orjson.loads(raw), None
    except orjson.JSONDecodeError as error:
        if b"NaN" in raw:
            try:
                value = json.loads(raw, parse_constant=_missing)
                msgspec.json.encode(value)
            except (ValueError, RecursionError):
                pass
            else:
                return value, RowError("nan_value", "", "NaN is read as null: there is no value", "info")
        return None, _explain_json(raw, offset, error)


def _missing(word: str) -> None:
    if word != "NaN":
        raise ValueError(word)


def json_line(value: object, default: Callable[[Any], object] | None = None) -> bytes:
    """A value as a line of JSON Lines.

    Args:
        default: makes plain what JSON has no word for; ``plain`` where it is not given.

    Raises:
        TypeError, ValueError, RecursionError: JSON cannot hold it.
    """
    default = default or plain
    try:
        return orjson.dumps(value, default=default, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # whole numbers beyond 64 bits
        return json.dumps(value, default=default, ensure_ascii=False).encode() + b"\n"


def plain(value: object) -> object:
    """A value that JSON has no word for: dates in ISO form, bytes as text where they are UTF-8, others as printed."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": msgspec.to_builtins(value)}
    return str(value)


def parse_text(raw: bytes, offset: int = 0) -> tuple[str | None, RowError | None]:
    """The text of one line, or why it is none."""
    try:
        return raw.removeprefix(BOM).decode(), None
    except UnicodeDecodeError as error:
        return None, not_utf8(raw, offset, error)


def not_utf8(raw: bytes, offset: int, error: UnicodeDecodeError) -> RowError:
    """Name the byte, its place, and what the text looks like in the encoding it most likely has."""
    at = error.start + (len(BOM) if raw.startswith(BOM) else 0)
    byte = raw[at]
    around = raw[max(0, at - 12) : at + 12]
    guess = "Windows-1252" if any(0x80 <= b < 0xA0 for b in around) else "Latin-1"
    seen = around.decode("cp1252" if guess == "Windows-1252" else "latin-1", "replace")
    where = f"not UTF-8: byte 0x{byte:02X} at byte {at + 1} of the row (byte {offset + at + 1} of the file). "
    if is_binary(raw):
        return RowError("not_utf8", "", where + "It is no text in another encoding either, but binary data")
    return RowError(
        "not_utf8",
        "",
        f"{where}As {guess} it reads {seen!r}: save the file as UTF-8, for instance with "
        f"iconv -f {_ICONV[guess]} -t UTF-8",
    )


def may_be_misread(text: str) -> bool:
    """Whether ``misread`` may find something; cheap for long texts of any language."""
    return not text.isascii() and any(sign in text for sign in _MISREAD_SIGNS)


def misread(text: str, place: str = "") -> list[RowError]:
    """The warning about letters that were once read in a wrong encoding."""
    found = _MISREAD.search(text) if may_be_misread(text) else None
    if found is None:
        return []
    around = text[max(0, found.start() - 12) : found.end() + 12]
    return [RowError("mojibake", place, f"letters that were read in a wrong encoding: {around!r}", "warning")]


def _explain_json(raw: bytes, offset: int, error: orjson.JSONDecodeError) -> RowError:
    try:
        text = raw.decode()
    except UnicodeDecodeError as bad:
        return not_utf8(raw, offset, bad)
    if "surrogate" in error.msg:
        where = f"at character {error.pos + 1}"
        words = f"half of a surrogate pair (\\ud800 to \\udfff) {where}: it stands for no character"
        return RowError("lone_surrogate", "", words)
    if "depth" in error.msg or "recursion" in error.msg.lower():
        return RowError("broken_json", "", "nested more than 1024 levels deep")
    if b"\x00" in raw:
        inside = " inside a text" if "control character" in error.msg else ""
        return RowError("nul_byte", "", f"a NUL byte{inside} at byte {raw.index(0) + 1} of the row")
    return RowError("broken_json", "", _broken(text, error))


def _broken(text: str, error: orjson.JSONDecodeError) -> str:
    """What keeps ``text`` from being JSON, in words."""
    where = f"at character {error.pos + 1}"
    row, before, rest = text.strip(), text[: error.pos].rstrip(), text[error.pos :]
    if "control character" in error.msg:
        return f"a bare control character (a tab or line break, for instance) inside a text {where}"
    if "infinity" in error.msg:
        return f"a number too large for JSON readers {where}"
    if row.startswith(("#", "//")):
        return f"a comment, which JSON does not have: leave such lines out (grep -v '^{row[0]}' FILE > NEW)"
    if row.endswith(",") and _is_json(row[:-1]):
        return "a comma after the row: in JSON Lines nothing stands between the rows"
    if row.startswith(("{'", "['")):
        return "single quotes around the keys: this is Python's notation, JSON wants double quotes"
    for word in ("NaN", "Infinity", "-Infinity", "None", "True", "False"):
        if rest.startswith(word):
            return f"{word} {where} is not JSON (null, true, false and plain numbers are)"
    if "trailing comma" in error.msg or (rest.startswith(("}", "]")) and before.endswith(",")):
        return f"a comma before the closing bracket {where}"
    if not rest.strip() or "end of data" in error.msg:
        return "the row ends in the middle: a bracket or quote is not closed"
    if "after document" in error.msg and rest.startswith(("{", "[")):
        return f"more than one value in the line, the second {where}: a file of such lines is named .json"
    return f"not JSON: {error.msg} {where}, near {rest[:20]!r}"


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
