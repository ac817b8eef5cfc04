"""The quick look at rows: decoded into the types of a good row, which checks them while parsing.

What passes is a good row by construction; what does not, or looks odd, is left to ``formats.convert``, which says why.
The types here are therefore narrower than the formats: tool calls, content parts or unusual keys are not wrong,
only not quick.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import or_
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from backprop.data.content import TAIL
from backprop.data.mapping import ABSENT, Fields
from backprop.data.messages import check_turns
from backprop.data.turns import Format, RowError, Turn

_Never = Literal["\0a value that no field has"]
Prints: TypeAlias = "array[int]"
Check = Callable[[Sequence[Any], Prints], list[int]]
"""Rows → appends each one's fingerprint; returns the positions of those that need the slow look."""


class Said(Struct, gc=False, forbid_unknown_fields=True):
    """A message: its type says who speaks."""

    content: str


def _speakers(tag_field: str, text: str, roles: dict[str, str]) -> dict[type, str]:
    """A type per role as the row writes it → the role."""
    return {
        msgspec.defstruct(
            f"Said_{tag}",
            [],
            bases=(Said,),
            tag_field=tag_field,
            tag=tag,
            rename={"content": text},
            gc=False,
            forbid_unknown_fields=True,
        ): role
        for tag, role in roles.items()
    }


def _kinds(speakers: dict[type, str], *tags: str) -> list[type]:
    by_tag = {kind.__struct_config__.tag: kind for kind in speakers}  # type: ignore[attr-defined]
    return [by_tag[tag] for tag in tags]


_OPENAI = _speakers("role", "content", {role: role for role in ("system", "user", "assistant", "tool")})
_SHAREGPT = _speakers(
    "from", "value", {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
)
_ROLE_OF = _OPENAI | _SHAREGPT
_OpenAITurn: Any = reduce(or_, _OPENAI)
_ShareGPTTurn: Any = reduce(or_, _SHAREGPT)
_FIELDS: dict[Format, tuple[dict[str, Any], tuple[str, ...]]] = {
    "openai": ({"messages": list[_OpenAITurn]}, ("system", "tools", "functions", "chosen", "rejected", "completion")),
    "sharegpt": (
        {"messages": list[_ShareGPTTurn]},
        ("system", "tools", "functions", "chosen", "rejected", "completion"),
    ),
    "alpaca": (
        {"instruction": str, "output": str, "input": (str | None, None)},
        ("system", "history", "tools", "functions", "chosen", "rejected", "completion", "messages", "conversations"),
    ),
    "prompt_completion": (
        {"prompt": str, "completion": str},
        ("system", "tools", "functions", "chosen", "rejected", "label", "messages", "conversations", "instruction"),
    ),
    "preference": (
        {"prompt": str, "chosen": str, "rejected": str},
        ("system", "tools", "functions", "completion", "label", "messages", "conversations"),
    ),
    "kto": (
        {"prompt": str, "completion": str, "label": bool},
        ("system", "tools", "functions", "messages", "conversations"),
    ),
    "text": (
        {"text": str},
        ("chosen", "rejected", "completion", "messages", "conversations", "instruction", "prompt"),
    ),
}
"""Per format: the fields of a good row, and the fields whose presence means that another look is needed."""


class QuickLook:
    """Decodes and checks rows of one format.

    Args:
        format: what the rows are.
        names: the field names in use.
    """

    def __init__(self, format: Format, names: Fields) -> None:
        wanted, absent = _FIELDS[format]
        fields: list[Any] = []
        renamed = {}
        for part, kind in wanted.items():
            fields.append((part, *kind) if isinstance(kind, tuple) else (part, kind))
            renamed[part] = getattr(names, "conversations" if format == "sharegpt" else part)
        for part in absent:
            if getattr(names, part) not in (ABSENT, *renamed.values()):
                fields.append((part, _Never, ""))
                renamed[part] = getattr(names, part)
        fields.sort(key=len)
        row_type = msgspec.defstruct("QuickRow", fields, rename=renamed, gc=False)
        self.decoder = msgspec.json.Decoder(row_type)
        self.check: Check = _CHECKS[format]() if format in ("openai", "sharegpt") else _CHECKS[format]
        self.format = format


def supports(format: Format | None) -> bool:
    return format in _FIELDS


def _blank(text: str) -> bool:
    """Whether a text is blank. Callers ask only where ``"!" <= text < "\\x7f"`` does not hold: the others are not."""
    return not text.strip()


class _ChatCheck:
    """Roles in order, no turn blank. Chats of one question and one answer, the most common ones, have a short way."""

    def __init__(self, asking: type[Said], answering: type[Said]) -> None:
        self._asking = asking
        self._answering = answering
        self._orders: dict[tuple[type, ...], bool] = {}

    def __call__(self, rows: Sequence[Any], prints: Prints) -> list[int]:
        odd: list[int] = []
        add, asking, answering = prints.append, self._asking, self._answering
        for i, row in enumerate(rows):
            turns = row.messages
            count = len(turns)
            if count == 2:
                one, two = turns
                first, last = one.content, two.content
                if type(one) is asking and type(two) is answering and "!" <= first < "\x7f" and "!" <= last < "\x7f":
                    add(hash((2, len(first), len(last), last[TAIL:])))
                    continue
            if not self._good(turns):
                odd.append(i)
            first, last = (turns[0].content, turns[-1].content) if count else ("", "")
            add(hash((count, len(first), len(last), last[TAIL:])))
        return odd

    def _good(self, turns: Sequence[Said]) -> bool:
        for turn in turns:
            text = turn.content
            if not "!" <= text < "\x7f" and _blank(text):
                return False
        order = tuple(map(type, turns))
        good = self._orders.get(order)
        if good is None:
            good = self._orders[order] = _in_order([_ROLE_OF[kind] for kind in order])
        return good


def _in_order(roles: list[str]) -> bool:
    warnings: list[RowError] = []
    try:
        check_turns([Turn(role, "text") for role in roles], "", warnings)
    except RowError:
        return False
    return not warnings


def _check_alpaca(rows: Sequence[Any], prints: Prints) -> list[int]:
    odd = []
    for i, row in enumerate(rows):
        asked, answer = row.instruction, row.output
        if (not "!" <= asked < "\x7f" and _blank(asked)) or (not "!" <= answer < "\x7f" and _blank(answer)):
            odd.append(i)
        prints.append(hash((0, len(asked), len(answer), answer[TAIL:])))
    return odd


def _check_prompt(rows: Sequence[Any], prints: Prints) -> list[int]:
    odd = []
    for i, row in enumerate(rows):
        asked, answer = row.prompt, row.completion
        if (not "!" <= asked < "\x7f" and _blank(asked)) or (not "!" <= answer < "\x7f" and _blank(answer)):
            odd.append(i)
        prints.append(hash((0, len(asked), len(answer), answer[TAIL:])))
    return odd


def _check_preference(rows: Sequence[Any], prints: Prints) -> list[int]:
    odd = []
    for i, row in enumerate(rows):
        good, bad = row.chosen, row.rejected
        if _blank(row.prompt) or _blank(good) or _blank(bad) or good == bad:
            odd.append(i)
        prints.append(hash((0, len(good), len(bad), bad[TAIL:])))
    return odd


def _check_text(rows: Sequence[Any], prints: Prints) -> list[int]:
    odd = []
    for i, row in enumerate(rows):
        text = row.text
        if not "!" <= text < "\x7f" and _blank(text):
            odd.append(i)
        prints.append(hash((0, 0, len(text), text[TAIL:])))
    return odd


_CHECKS: dict[Format, Any] = {
    "openai": partial(_ChatCheck, *_kinds(_OPENAI, "user", "assistant")),
    "sharegpt": partial(_ChatCheck, *_kinds(_SHAREGPT, "human", "gpt")),
    "alpaca": _check_alpaca,
    "prompt_completion": _check_prompt,
    "kto": _check_prompt,
    "preference": _check_preference,
    "text": _check_text,
}
