"""The quick look at rows: decoded into the types of a good row, which checks them while parsing.

What passes is a good row by construction; what does not, or looks odd, is left to ``formats.convert``, which says why.
The types here are therefore narrower than the formats: tool calls, content parts or unusual keys are not wrong,
only not quick.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache, reduce
from itertools import accumulate, chain
from operator import or_
from typing import Any, Literal

import msgspec
from msgspec import Struct

from backprop.data.example import Format, RowError, Turn
from backprop.data.mapping import ABSENT, Fields
from backprop.data.messages import check_turns
from backprop.data.prints import Prints
from backprop.data.texts import CONTROL_TOKEN

_Never = Literal["\0a value that no field has"]
Take = Callable[[Sequence[Any], Prints], list[int]]
"""Rows → their fingerprints; returns the positions of those that need the slow look."""


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
        self.format = format
        self._take: Take = _TAKES[format]
        self.decoder = _decoder(fields, renamed)
        self._pairs: msgspec.json.Decoder[Any] | None = None
        if format in _PAIRS:
            pair = (("messages", _PAIRS[format]), *fields[1:])
            self._pairs = _decoder(pair, renamed)
        self.labels: set[bool] = set()
        """Labels seen, of feedback rows."""
        self.prints = Prints()
        """Of the rows taken so far, in their order."""

    def take_lines(self, data: memoryview, count: int) -> list[int] | None:
        """Decode and check ``count`` lines in one go; ``None`` where one of them is no good row or not one line.

        msgspec reads one value a line and refuses what follows it, so that as many values as line breaks are as many
        lines.
        """
        if self._pairs is not None:
            try:
                rows = self._pairs.decode_lines(data)
                if len(rows) == count:
                    return _take_pairs(rows, self.prints)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                # Not all are one question and one answer: the next groups will hardly be.
                self._pairs = None
        try:
            rows = self.decoder.decode_lines(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return self.take(rows) if len(rows) == count else None

    def take(self, rows: Sequence[Any]) -> list[int]:
        """Check decoded rows; their fingerprints follow those taken before."""
        if self.format == "kto" and len(self.labels) < 2:
            self.labels.update(row.label for row in rows)
        return self._take(rows, self.prints)


def _decoder(fields: Sequence[Any], renamed: dict[str, str]) -> msgspec.json.Decoder[Any]:
    ordered = sorted(fields, key=len)
    return msgspec.json.Decoder(msgspec.defstruct("QuickRow", ordered, rename=renamed, gc=False))


def supports(format: Format | None) -> bool:
    return format in _FIELDS


def _odd(texts: list[str]) -> list[int]:
    """Texts that are blank, or hold a control token or a NUL. What finds none looks at many texts with few calls."""
    joined = "\n".join(texts)
    odd: list[int] = []
    if "<" in joined or "[" in joined or "\0" in joined:
        search = CONTROL_TOKEN.search
        odd = [i for i, text in enumerate(texts) if "\0" in text or (("<" in text or "[" in text) and search(text))]
    if "" in texts or True in map(str.isspace, texts):
        odd += [i for i, text in enumerate(texts) if not text.strip()]
    return odd


def _take_pairs(rows: Sequence[Any], prints: Prints) -> list[int]:
    """Chats of one question and one answer, by their type."""
    texts = [turn.content for row in rows for turn in row.messages]
    prints.add(2, texts[::2], texts[1::2])
    return [i // 2 for i in _odd(texts)]


def _take_chats(rows: Sequence[Any], prints: Prints) -> list[int]:
    chats = [row.messages for row in rows]
    turns = list(chain.from_iterable(chats))
    texts = [turn.content for turn in turns]
    counts = list(map(len, chats))
    ends = list(accumulate(counts))
    # A chat without turns is odd: its fingerprint is made again.
    prints.add(
        counts,
        [texts[end - count] if count else "" for end, count in zip(ends, counts, strict=True)],
        [texts[end - 1] if count else "" for end, count in zip(ends, counts, strict=True)],
    )
    odd = [bisect_right(ends, i) for i in _odd(texts)]
    odd += [i for i, chat in enumerate(chats) if not _in_order(tuple(map(type, chat)))]
    return odd


@cache
def _in_order(kinds: tuple[type, ...]) -> bool:
    warnings: list[RowError] = []
    try:
        check_turns([Turn(_ROLE_OF[kind], "text") for kind in kinds], "", warnings)
    except RowError:
        return False
    return not warnings


def _take_alpaca(rows: Sequence[Any], prints: Prints) -> list[int]:
    asked, answers = [row.instruction for row in rows], [row.output for row in rows]
    prints.add(3, asked, answers)
    # A row without input is a good one.
    inputs = [row.input if row.input and not row.input.isspace() else "-" for row in rows]
    return [i % len(rows) for i in _odd(asked + answers + inputs)]


def _take_prompt(rows: Sequence[Any], prints: Prints) -> list[int]:
    asked, answers = [row.prompt for row in rows], [row.completion for row in rows]
    prints.add(2, asked, answers)
    return [i % len(rows) for i in _odd(asked + answers)]


def _take_preference(rows: Sequence[Any], prints: Prints) -> list[int]:
    asked, good, bad = [row.prompt for row in rows], [row.chosen for row in rows], [row.rejected for row in rows]
    prints.add(3, good, bad)
    same = [i for i, row in enumerate(rows) if row.chosen == row.rejected]
    return [i % len(rows) for i in _odd(asked + good + bad)] + same


def _take_text(rows: Sequence[Any], prints: Prints) -> list[int]:
    texts = [row.text for row in rows]
    prints.add(1, texts, texts)
    return _odd(texts)


_TAKES: dict[Format, Take] = {
    "openai": _take_chats,
    "sharegpt": _take_chats,
    "alpaca": _take_alpaca,
    "prompt_completion": _take_prompt,
    "kto": _take_prompt,
    "preference": _take_preference,
    "text": _take_text,
}
_PAIRS: dict[Format, Any] = {
    "openai": tuple[tuple(_kinds(_OPENAI, "user", "assistant"))],  # type: ignore[misc]
    "sharegpt": tuple[tuple(_kinds(_SHAREGPT, "human", "gpt"))],  # type: ignore[misc]
}
