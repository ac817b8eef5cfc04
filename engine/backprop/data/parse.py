"""Bytes of one row → its value, or what is wrong with it in words."""

from __future__ import annotations

import codecs

import orjson

from backprop.data.example import RowError

BOM = codecs.BOM_UTF8
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def wide_encoding(head: bytes) -> str | None:
    """``UTF-16`` or ``UTF-32`` where the first bytes of a file say so: by their mark, or as every other one is NUL."""
    for mark, name in _WIDE.items():
        if head.startswith(mark):
            return name
    even, odd = head[0::2], head[1::2]
    if len(odd) >= 8 and (odd.count(0) > 0.9 * len(odd)) != (even.count(0) > 0.9 * len(even)):
        return "UTF-16"
    return None


def parse_json(raw: bytes, offset: int = 0) -> tuple[object | None, RowError | None]:
    """The value of one JSON text, or why it is none.

    Args:
        raw: the row's bytes.
        offset: where they begin in the file, for the message.

    Whole numbers beyond 64 bits become floats; of repeated keys the last one counts.
    """
    if raw.startswith(BOM):
        raw, offset = raw[len(BOM) :], offset + len(BOM)
    try:
        return orjson.loads(raw), None
    except orjson.JSONDecodeError as error:
        return None, _explain_json(raw, offset, error)


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
    return RowError(
        "not_utf8",
        "",
        f"not UTF-8: byte 0x{byte:02X} at byte {at + 1} of the row (byte {offset + at + 1} of the file). "
        f"As {guess} it reads {seen!r}: save the file as UTF-8",
    )


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
    return f"not JSON: {error.msg} {where}, near {rest[:20]!r}"


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
