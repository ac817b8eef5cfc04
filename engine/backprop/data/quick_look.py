"""A look at many rows at once: good rows are decoded into the types of a good row, which costs little.

What does not pass, or looks odd, needs another look (``validate``).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from itertools import accumulate, chain
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct

from backprop.data.convert import MISSING, is_missing
from backprop.data.dedup import PARTS_READ, Numbers, chat_hash
from backprop.data.example import CONTROL_TOKEN, Fields, Format, RowError, Turn
from backprop.data.line_index import NEWLINE, Place, split_lines
from backprop.data.messages import TRANSCRIPT_HINTS, check_turns
from backprop.data.parse import KEY_END, may_be_misread, misread, parse_json
from backprop.data.spellings import MEDIA, MEDIA_MARK, ROLE_OF, like_mask

_SPACE = 32
_KEY_END = int.from_bytes(KEY_END, "little")


class _OpenAI(Struct, gc=False, forbid_unknown_fields=True):
    """A message."""

    content: str
    role: Literal["system", "user", "assistant", "tool"]


class _ShareGPT(Struct, gc=False, forbid_unknown_fields=True, rename={"role": "from", "content": "value"}):
    role: Literal["system", "human", "user", "gpt", "assistant"]
    content: str


TYPES: dict[Format, dict[str, Any]] = {
    "openai": {"messages": list[_OpenAI]},
    "sharegpt": {"conversations": list[_ShareGPT]},
    "alpaca": {"instruction": str, "output": str, "input": str | None},
    "prompt_completion": {"prompt": str, "completion": str},
    "preference": {"prompt": str, "chosen": str, "rejected": str},
    "kto": {"prompt": str, "completion": str, "label": bool},
    "text": {"text": str},
}
"""The fields of a good row, of the formats that can be looked at so."""
_OTHERS: dict[Format, tuple[str, ...]] = {
    "openai": ("conversations", "chosen", "rejected", "completion", "label"),
    "sharegpt": ("chosen", "rejected", "completion", "label"),
    "alpaca": ("chosen", "rejected", "completion", "messages", "conversations", "label"),
    "prompt_completion": ("chosen", "rejected", "label", "instruction", "messages", "conversations"),
    "preference": ("completion",),
    "kto": (),
    "text": ("chosen", "completion", "messages", "conversations", "instruction", "prompt"),
}
"""Parts that may make another format of a row: one that has them needs another look."""
_PRAISE = (b"", b"t", *(b"%d" % digit for digit in range(1, 10)))
"""What a value begins with that calls no answer bad: none, true, a number of one and more."""
_COLUMNS = 64
"""Columns beside the parts that are passed over quickly; of rows with more of them each is looked at."""
_CHATS = {"openai": "messages", "sharegpt": "conversations"}
_MARK = re.compile(f"{CONTROL_TOKEN.pattern}|{MEDIA_MARK.pattern}")


class QuickLook:
    """Decodes rows of one format into the types of a good row, which checks them while parsing.

    The types are narrower than the formats: tool calls, content parts or unusual keys are not wrong, only not quick.

    Args:
        format: what the rows are.
        names: the field names in use.
        columns: what the file's rows have; a row with another one needs another look.
        doubted: those of them that may call an answer bad.
    """

    def __init__(self, format: Format, names: Fields, columns: Iterable[str], doubted: Collection[str] = ()) -> None:
        self.format = format
        self.labels: set[bool] = set()
        """Labels seen, of feedback rows."""
        self._own_keys = 0
        """Keys that each row has, where none is repeated; learnt from the rows."""
        self._more_keys = 0
        """Keys of the rows that were checked last which not each of them has."""
        types = TYPES[format]
        fields: list[Any] = [(part, kind) for part, kind in types.items() if part != "input"]
        fields += [("input", types["input"], None)] if "input" in types else []
        renamed = {part: getattr(names, part) for part in types}
        read = {getattr(names, part) for part in (*types, *_OTHERS[format], *PARTS_READ[format], "loss_mask")}
        for i, column in enumerate(column for column in columns if column not in read and _passes(column, doubted)):
            if i < _COLUMNS:
                fields.append((f"_{i}", msgspec.Raw, b""))
                renamed[f"_{i}"] = column
        row = msgspec.defstruct("QuickRow", fields, rename=renamed, gc=False, forbid_unknown_fields=True)
        self._decoder = msgspec.json.Decoder(row)
        self._doubted = [part for part, column in renamed.items() if column in doubted]
        self._texts = [part for part, kind in types.items() if kind is str]
        self._columns = [part if part in types else None for part in PARTS_READ[format]]

    def look(self, data: memoryview, line: int, offset: int, ends: Numbers) -> tuple[Numbers, dict[int, Place]]:
        """Look at whole lines with line breaks at ``ends``; the first has number ``line`` and begins at ``offset``.

        Returns:
            the hash of each row's content, and the rows that need another look (and another hash) by their position.
        """
        lines = len(ends) + (data[-1] != NEWLINE)
        try:
            # As many values as lines are one value a line, where no line is blank.
            rows = self._decoder.decode_lines(data)
            if len(rows) == lines and not _may_hold_blank_lines(data, ends[: lines - 1] + 1):
                hashes, odd = self._check(rows)
                keys = _count_keys(data) - self._more_keys
                if keys != self._own_keys * lines:
                    repeated = _with_repeated_keys(split_lines(bytes(data), line, offset))
                    self._own_keys = 0 if repeated else keys // lines
                    odd |= repeated
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
        hashes[good], odd = self._check(rows) if rows else ([], set())
        odd |= _with_repeated_keys([places[i] for i in good])
        return hashes, others | {good[i]: places[good[i]] for i in odd}

    def _check(self, rows: Sequence[Any]) -> tuple[list[int], set[int]]:
        """The hash of each row's content, and the positions of odd rows."""
        hashes, odd = self._hashes(rows)
        for part in self._doubted:
            odd.update(i for i, row in enumerate(rows) if bytes(getattr(row, part))[:1] not in _PRAISE)
        return hashes, odd

    def _hashes(self, rows: Sequence[Any]) -> tuple[list[int], set[int]]:
        if self.format in _CHATS:
            return self._check_chats([getattr(row, _CHATS[self.format]) for row in rows])
        columns = {part: [getattr(row, part) for row in rows] for part in self._columns if part is not None}
        texts = list(chain.from_iterable(columns[part] for part in self._texts))
        odd = {i % len(rows) for i in _odd(texts, turns=self.format != "alpaca")}
        if "input" in columns:
            self._more_keys = len(rows) - columns["input"].count(None)
            # A row without input is a good one.
            columns["input"] = [text or None for text in columns["input"]]
            given = [i for i, text in enumerate(columns["input"]) if text]
            odd.update(given[i] for i in _odd([columns["input"][i] for i in given]))
            odd.update(i for i in given if is_missing(columns["input"][i]))
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
        self._more_keys = 2 * len(texts)
        if strange := _odd(texts):
            ends = list(accumulate(map(len, chats)))
            odd.update(bisect_right(ends, at) for at in strange)
        return hashes, odd


def _passes(column: str, doubted: Collection[str]) -> bool:
    """True for a column that nothing is read from, whatever it holds."""
    harmless = column in doubted or (column not in MEDIA and not like_mask(column))
    return harmless and not {*column} & {'"', "\\"} and column.isprintable()


def _may_hold_blank_lines(data: memoryview, starts: Numbers) -> bool:
    """Whether a line begins with white space; all but the first begin at ``starts``."""
    letters = np.frombuffer(data, dtype=np.uint8)
    return bool(letters[0] <= _SPACE or (letters[starts] <= _SPACE).any())


def _count_keys(data: memoryview) -> int:
    """How many keys there are in JSON, and in texts of which it is a part."""
    pairs = (np.frombuffer(data[start : start + (len(data) - start) // 2 * 2], dtype="<u2") for start in (0, 1))
    return sum(int(np.count_nonzero(pair == _KEY_END)) for pair in pairs)


def _with_repeated_keys(places: Sequence[Place]) -> set[int]:
    return {i for i, (_, _, raw) in enumerate(places) if parse_json(raw)[1] is not None}


def _odd(texts: list[str], *, turns: bool = False) -> list[int]:
    """Texts that are blank, or hold a control token, a NUL or misread letters; also those that may hold a conversation,
    and with ``turns`` those that may be turns. What finds none looks at many texts with few calls."""
    joined = "\n".join(texts)
    odd: list[int] = []
    if "<" in joined or "[" in joined or "\0" in joined:
        search = _MARK.search
        odd = [i for i, text in enumerate(texts) if "\0" in text or (("<" in text or "[" in text) and search(text))]
    if ("#" in joined or ":" in joined) and any(hint in joined for hint in TRANSCRIPT_HINTS):
        odd += [i for i, text in enumerate(texts) if any(hint in text for hint in TRANSCRIPT_HINTS)]
    if turns:
        odd += [i for i, text in enumerate(texts) if text[:1] in "[{ \t\n" and text.lstrip()[:1] in "[{"]
    if may_be_misread(joined):
        odd += [i for i, text in enumerate(texts) if misread(text)]
    if not MISSING.isdisjoint(texts):
        odd += [i for i, text in enumerate(texts) if text in MISSING]
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
