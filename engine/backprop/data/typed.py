"""A quick look at rows: decoded into the types of a good row, which checks them while parsing.

What passes is a good row by construction; what does not, or looks odd, is left to ``formats.convert``, which says why.
The types here are therefore narrower than the formats: tool calls, content parts or unusual keys are not wrong, only
not quick.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, chain
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct

from backprop.data.dedup import PARTS_READ, Numbers, chat_hash
from backprop.data.example import ABSENT, CONTROL_TOKEN, Fields, Format, RowError, Turn
from backprop.data.line_index import Place, split_lines
from backprop.data.messages import ROLE_OF, check_turns

_Never = Literal["\0a value that no field has"]


class _OpenAI(Struct, gc=False, forbid_unknown_fields=True):
    """A message."""

    content: str
    role: Literal["system", "user", "assistant", "tool"]


class _ShareGPT(Struct, gc=False, forbid_unknown_fields=True, rename={"role": "from", "content": "value"}):
    role: Literal["system", "human", "user", "gpt", "assistant"]
    content: str


_TYPES: dict[Format, dict[str, Any]] = {
    "openai": {"messages": list[_OpenAI]},
    "sharegpt": {"conversations": list[_ShareGPT]},
    "alpaca": {"instruction": str, "output": str, "input": str | None},
    "prompt_completion": {"prompt": str, "completion": str},
    "preference": {"prompt": str, "chosen": str, "rejected": str},
    "kto": {"prompt": str, "completion": str, "label": bool},
    "text": {"text": str},
}
"""The fields of a good row."""
_OTHERS: dict[Format, tuple[str, ...]] = {
    "openai": ("conversations", "chosen", "completion"),
    "sharegpt": ("chosen", "completion"),
    "alpaca": ("chosen", "completion", "messages", "conversations"),
    "prompt_completion": ("chosen", "label", "instruction"),
    "preference": ("completion",),
    "kto": (),
    "text": ("chosen", "completion", "messages", "conversations", "instruction", "prompt"),
}
"""Fields that may make another format of a row: one that has them needs another look, as it does with a further part
that is read of its format."""
_CHATS = {"openai": "messages", "sharegpt": "conversations"}


def supports(format: Format | None) -> bool:
    """Whether rows of this format can be looked at quickly."""
    return format in _TYPES


class QuickLook:
    """Looks at rows of one format.

    Args:
        format: what the rows are.
        names: the field names in use.
    """

    def __init__(self, format: Format, names: Fields) -> None:
        self.format = format
        self.labels: set[bool] = set()
        """Labels seen, of feedback rows."""
        types = _TYPES[format]
        fields: list[Any] = [(part, kind) for part, kind in types.items() if part != "input"]
        fields += [("input", types["input"], None)] if "input" in types else []
        known = {getattr(names, part) for part in types}
        others = dict.fromkeys(part for part in (*_OTHERS[format], *PARTS_READ[format]) if part not in types)
        others = {part: None for part in others if getattr(names, part) not in (ABSENT, *known)}
        fields += [(part, _Never, "") for part in others]
        renamed = {part: getattr(names, part) for part in (*types, *others)}
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("QuickRow", fields, rename=renamed, gc=False))
        self._texts = [part for part, kind in types.items() if kind is str]
        self._columns = [part if part in types else None for part in PARTS_READ[format]]

    def look(self, data: memoryview, line: int, offset: int, lines: int) -> tuple[Numbers, dict[int, Place]]:
        """Look at whole ``lines``, the first of which has number ``line`` and begins at ``offset``.

        Returns:
            the hash of each row's content, and the rows that need another look (and another hash) by their position.
        """
        try:
            # One value a line and nothing after it: as many values as lines are as many rows.
            rows = self._decoder.decode_lines(data)
            if len(rows) == lines:
                hashes, odd = self._check(rows)
                places = split_lines(bytes(data), line, offset) if odd else []
                return np.array(hashes, dtype=np.int64), {i: places[i] for i in odd}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        return self._one_by_one(split_lines(bytes(data), line, offset))

    def _one_by_one(self, places: list[Place]) -> tuple[Numbers, dict[int, Place]]:
        good, rows, others = [], [], {}
        for i, place in enumerate(places):
            try:
                rows.append(self._decoder.decode(place[2]))
                good.append(i)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                others[i] = place
        hashes = np.zeros(len(places), dtype=np.int64)
        hashes[good], odd = self._check(rows) if rows else ([], ())
        return hashes, others | {good[i]: places[good[i]] for i in odd}

    def _check(self, rows: Sequence[Any]) -> tuple[list[int], set[int]]:
        """The hash of each row's content, and the positions of odd rows."""
        if self.format in _CHATS:
            return self._check_chats([getattr(row, _CHATS[self.format]) for row in rows])
        columns = {part: [getattr(row, part) for row in rows] for part in self._columns if part is not None}
        texts = list(chain.from_iterable(columns[part] for part in self._texts))
        odd = {i % len(rows) for i in _odd(texts)}
        if "input" in columns:
            # A row without input is a good one.
            columns["input"] = [text or None for text in columns["input"]]
            given = [i for i, text in enumerate(columns["input"]) if text]
            odd.update(given[i] for i in _odd([columns["input"][i] for i in given]))
        if self.format == "preference":
            odd.update(i for i, row in enumerate(rows) if row.chosen == row.rejected)
        if self.format == "kto":
            self.labels.update(columns["label"])
        absent = [None] * len(rows)
        parts = zip(*(absent if part is None else columns[part] for part in self._columns), strict=True)
        return list(map(hash, parts)), odd

    def _check_chats(self, chats: list[list[Any]]) -> tuple[list[int], set[int]]:
        hashes: list[int] = []
        texts: list[str] = []
        odd: set[int] = set()
        for i, chat in enumerate(chats):
            said = [message.content for message in chat]
            roles = tuple([message.role for message in chat])
            hashes.append(chat_hash(roles, said))
            texts += said
            if not _in_order(roles):
                odd.add(i)
        if strange := _odd(texts):
            ends = list(accumulate(map(len, chats)))
            odd.update(bisect_right(ends, at) for at in strange)
        return hashes, odd


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


@cache
def _in_order(roles: tuple[str, ...]) -> bool:
    warnings: list[RowError] = []
    try:
        check_turns([Turn(ROLE_OF[role], "text") for role in roles], "", warnings)
    except RowError:
        return False
    return not warnings
