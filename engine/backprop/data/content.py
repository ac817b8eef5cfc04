"""What a row says, apart from how it is written: equal content makes rows duplicates.

Key order, white space between tokens, escapes, ids and other columns make no difference. Two keys serve it:
``fingerprint`` is cheap and may collide, ``content_key`` does not; rows are compared by the second only where
the first agrees.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from backprop.data.mapping import PLAIN, Fields
from backprop.data.turns import Format

_encoder = msgspec.msgpack.Encoder(order="deterministic", enc_hook=str)
TAIL = -20
_PARTS: dict[Format, tuple[str, ...]] = {
    "sharegpt": ("conversations", "system", "tools", "functions"),
    "openai": ("messages", "system", "tools", "functions"),
    "alpaca": ("instruction", "input", "output", "system", "history", "tools", "functions"),
    "prompt_completion": ("prompt", "completion", "messages", "conversations", "system", "tools", "functions"),
    "preference": ("prompt", "chosen", "rejected", "messages", "conversations", "system", "tools", "functions"),
    "kto": ("prompt", "completion", "label", "messages", "conversations", "system", "tools", "functions"),
    "text": ("text",),
    "chatml": ("text",),
}


def content(value: Any, format: Format | None, names: Fields = PLAIN) -> list[Any] | None:
    """The parts of a row that are read in ``format``, in a fixed order; ``None`` where it has none of them."""
    if isinstance(value, str) and format in ("text", "chatml"):
        return [value]
    if not isinstance(value, dict) or format is None:
        return None
    parts = [value.get(getattr(names, part)) or None for part in _PARTS[format]]
    if format == "kto":
        parts[2] = value.get(names.label)
    return parts if any(part is not None for part in parts) else None


def content_key(value: Any, format: Format | None, names: Fields = PLAIN) -> bytes:
    """16 bytes that are equal for rows of equal content, and differ otherwise."""
    parts = content(value, format, names)
    try:
        written = _encoder.encode([format, value] if parts is None else parts)
    except (TypeError, ValueError, OverflowError, RecursionError):
        written = repr(value).encode("utf-8", "backslashreplace")
    return hashlib.blake2b(written, digest_size=16).digest()


def fingerprint(value: Any, format: Format | None, names: Fields = PLAIN) -> int:
    """A number that is equal for rows of equal content, within one process. ``typed`` makes the same ones."""
    parts = content(value, format, names)
    if parts is None:
        return hash(content_key(value, format, names))
    if format in ("openai", "sharegpt"):
        key = "content" if format == "openai" else "value"
        turns = parts[0]
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and isinstance(turns[-1], dict):
            return texts_print(len(turns), turns[0].get(key), turns[-1].get(key))
        return hash(content_key(value, format, names))
    if format == "alpaca":
        return texts_print(0, parts[0], parts[2])
    if format in ("prompt_completion", "kto"):
        return texts_print(0, parts[0], parts[1])
    if format == "preference":
        return texts_print(0, parts[1], parts[2])
    return texts_print(0, "", parts[0])


def texts_print(count: int, first: object, last: object) -> int:
    """From the lengths of two texts and the end of the last one; what is no text counts as none."""
    if type(first) is not str:
        first = ""
    if type(last) is not str:
        last = ""
    return hash((count, len(first), len(last), last[TAIL:]))
