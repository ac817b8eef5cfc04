"""Which field of a row plays which part: the names every format uses, common other names, and the person's own.

A mapping is ``{part: field}``, as ``--map instruction=question`` says it. It is looked for where a row's names are
no known format's, returned so that it can be shown, and overridden by what the person gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ABSENT = "\0absent"
"""Name of a field that no row has."""

PARTS = (
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "prompt",
    "completion",
    "label",
    "chosen",
    "rejected",
    "text",
    "tools",
    "functions",
)

_ASKED = ("instruction", "question", "query", "problem", "prompt", "input", "context")
_ANSWERED = ("output", "answer", "response", "completion", "solution")
_CHATS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")


class Fields:
    """Part → field name under a mapping. A field taken by one part no longer plays its own."""

    messages: str
    conversations: str
    instruction: str
    input: str
    output: str
    system: str
    history: str
    prompt: str
    completion: str
    label: str
    chosen: str
    rejected: str
    text: str
    tools: str
    functions: str

    def __init__(self, mapping: Mapping[str, str] | None = None) -> None:
        mapping = mapping or {}
        taken = set(mapping.values())
        for part in PARTS:
            setattr(self, part, mapping.get(part, ABSENT if part in taken else part))


PLAIN = Fields()
"""The formats' own names."""


def find_mapping(row: Any) -> dict[str, str]:
    """The mapping that makes sense of ``row``, empty when none is needed or none is found.

    Question and answer under common names, with a context beside them, and chats under another key
    or with the other style of messages.
    """
    if not isinstance(row, dict):
        return {}
    for name in _CHATS:
        found = _chat_part(row.get(name))
        if found is not None:
            return {} if found == name else {found: name}
    asked = next((name for name in _ASKED if name in row), None)
    answered = next((name for name in _ANSWERED if name in row), None)
    if asked is None or answered is None:
        return {}
    if asked == "prompt":
        return {} if answered == "completion" else {"completion": answered}
    mapping = {} if asked == "instruction" else {"instruction": asked}
    if answered != "output":
        mapping["output"] = answered
    if asked != "context" and "context" in row and "input" not in row:
        mapping["input"] = "context"
    return mapping


def _chat_part(value: Any) -> str | None:
    """``messages`` or ``conversations``, whichever has such items."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, dict):
        return None
    if "role" in first and "content" in first:
        return "messages"
    return "conversations" if "from" in first and "value" in first else None


def describe_mapping(mapping: Mapping[str, str]) -> str:
    """As a person gives it: ``instruction=question, output=answer``."""
    return ", ".join(f"{part}={name}" for part, name in mapping.items())


def unknown_parts(mapping: Iterable[str]) -> list[str]:
    """The parts that no format has, for a message about a mistyped ``--map``."""
    return [part for part in mapping if part not in PARTS]
