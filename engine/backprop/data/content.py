"""What a row says, apart from how it is written: equal content makes rows duplicates.

Key order, white space between tokens, escapes, ids and other columns make no difference.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from backprop.data.example import Format
from backprop.data.mapping import PLAIN, Fields

_encoder = msgspec.msgpack.Encoder(order="deterministic", enc_hook=str)
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
