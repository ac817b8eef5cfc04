"""Looking into the texts of a row: control tokens of chat templates, and characters that no text has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from backprop.data.content import content
from backprop.data.example import Format, RowError
from backprop.data.mapping import Fields

CONTROL_TOKEN = re.compile(
    r"<\|[A-Za-z0-9_ .▁-]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
"""Tokens that chat templates of the common model families put between turns."""
_CHATML = {"<|im_start|>", "<|im_end|>"}


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text inside a value, with its place as ``messages[2].content``."""
    pending = [(path, value)]
    while pending:
        place, item = pending.pop()
        if type(item) is str:
            yield place, item
        elif isinstance(item, dict):
            pending += [(f"{place}.{key}" if place else str(key), inner) for key, inner in item.items()]
        elif isinstance(item, list):
            pending += [(f"{place}[{i}]", inner) for i, inner in enumerate(item)]


def odd_texts(value: Any, format: Format | None, names: Fields) -> list[RowError]:
    """What is odd inside the texts that are read from a row; ChatML's own tags are none in a ChatML row."""
    parts = content(value, format, names)
    if isinstance(value, dict) and parts is not None:
        used = {id(part) for part in parts if part is not None}
        value = {key: part for key, part in value.items() if id(part) in used}
    found = []
    allowed = _CHATML if format == "chatml" else set()
    for place, text in texts(value):
        tokens = [token for token in dict.fromkeys(CONTROL_TOKEN.findall(text)) if token not in allowed]
        if tokens:
            names_them = ", ".join(tokens[:3]) + (" …" if len(tokens) > 3 else "")
            found.append(RowError("special_token", place, f"control token inside the text: {names_them}", "warning"))
        if "\0" in text:
            found.append(RowError("nul_byte", place, "a NUL character inside the text", "warning"))
    return found
