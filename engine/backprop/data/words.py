"""Encoding by words: each word of a dataset goes through the tokenizer once, and its ids are remembered.

Byte-level BPE splits a text into words first, and no merge reaches from one word into the next; special tokens split
it before that. So a text may be cut wherever its splitting pattern always cuts, and the parts' tokens joined are the
whole text's tokens. The cuts used here are special tokens, the place before a single space between two printable ASCII
characters, and the place after such a line break: every pattern in ``_PATTERNS`` starts a new word there, whatever else
stands around it.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_right
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, Self

import numpy as np
from tokenizers import Encoding, Tokenizer, models

_CUT = re.compile(r" (?=[!-~])(?<=[!-~] )")
_LINE = re.compile(r"\n(?:(?<=[!-~]\n)|(?<=[!-~]\n\n))(?=[!-~])")
_GPT2_LINE = re.compile(r"\n(?:(?<=[!-~]\n)(?=[!-~]|\n[!-/:-~])|(?<=[!-~]\n\n)(?=[!-/:-~]))")
"""GPT-2's pattern parts two line breaks, where a digit does not follow that another step has split off before."""
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {_SPLIT % r"\p{N}{1,3}": "Llama 3", _SPLIT % r"\p{N}": "Qwen"}
"""Splitting patterns that are known to cut there; GPT-2's own is part of the library's byte-level step."""
_KEPT = 200_000
"""Words remembered before all are forgotten: about 40 MB."""
_KEPT_TOKENS = 5_000
_ID = np.dtype(np.int32).itemsize
_LONGEST = 64
"""Characters of a word that is remembered: longer ones (a text without spaces, for instance) hardly come again."""


class _Words(dict[str, bytes]):
    """Word → ids of ``before`` and the word, as the bytes of int32: joined, they are an array."""

    def __init__(self, tokenizer: Tokenizer, before: str) -> None:
        self._tokenizer = tokenizer
        self._before = before

    def __missing__(self, word: str) -> bytes:
        found = self._tokenizer.encode(self._before + word, add_special_tokens=False).ids
        ids = array("i", found).tobytes()
        if len(word) <= _LONGEST:
            if len(self) >= _KEPT:
                self.clear()
            self[word] = ids
        return ids


class WordEncoder:
    """Encodes texts as the tokenizer does, without the special tokens that it would put around them."""

    def __init__(self, tokenizer: Tokenizer, line: re.Pattern[str]) -> None:
        self.tokenizer = tokenizer
        self._line = line
        added = sorted((t.content for t in tokenizer.get_added_tokens_decoder().values()), key=len, reverse=True)
        self._specials = re.compile("(" + "|".join(map(re.escape, added)) + ")") if added else None
        self.first = _Words(tokenizer, "")
        """Special tokens, and the words after them."""
        self.later = _Words(tokenizer, " ")
        """Words after a space."""
        self.tokens = lru_cache(_KEPT_TOKENS)(partial(tokenizer.encode, add_special_tokens=False))
        """Text → its tokens with their places."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self | None:
        """``None`` where words are not known to be encoded on their own."""
        line = _line_cuts(tokenizer)
        return cls(tokenizer, line) if line is not None else None

    def encode(self, text: str) -> WordEncoding:
        segments: list[str] = []
        for part in self._specials.split(text) if self._specials else [text]:
            if "\n" in part:
                start = 0
                for cut in self._line.finditer(part):
                    segments.append(part[start : cut.end()])
                    start = cut.end()
                segments.append(part[start:])
            else:
                segments.append(part)
        words = list(map(_cut, segments))
        first, later = self.first, self.later.__getitem__
        ids = [first[some[0]] + b"".join(map(later, some[1:])) if some[0] else b"" for some in words]
        return WordEncoding(self, segments, words, ids)


def _cut(text: str) -> list[str]:
    """A text without special tokens as words, without the space before all but the first."""
    line = text.replace("\n", "") if "\n" in text else text
    if not (line.isascii() and line.isprintable()) or "  " in text or text[:1] == " " or text[-1:] == " ":
        return _CUT.split(text)
    if line is not text and (" \n" in text or "\n " in text):
        return _CUT.split(text)
    # Every space is a cut: this is several times as fast.
    return text.split(" ")


class WordEncoding:
    """What ``Encoding`` tells about a text; places are looked up in the word that holds them."""

    def __init__(self, encoder: WordEncoder, segments: list[str], words: list[list[str]], ids: list[bytes]) -> None:
        self._encoder = encoder
        self._words = words
        self._ends = list(accumulate(map(len, segments)))
        self._bytes = list(accumulate(map(len, ids)))
        """Characters, and bytes of ids, up to the end of each segment."""
        self.ids = np.frombuffer(b"".join(ids), dtype=np.int32)

    def char_to_token(self, place: int) -> int | None:
        """The token that holds the character at ``place``, if one does."""
        start, first, encoding = self._word_at(place)
        found = encoding.char_to_token(place - start)
        return None if found is None else first + found

    def first_char(self, place: int) -> int | None:
        """Where the token that holds the character at ``place`` begins."""
        start, _, encoding = self._word_at(place)
        token = encoding.char_to_token(place - start)
        chars = None if token is None else encoding.token_to_chars(token)
        return None if chars is None else start + chars[0]

    def _word_at(self, place: int) -> tuple[int, int, Encoding]:
        """The word that holds the character at ``place``: its first character, its first token, its tokens."""
        at = bisect_right(self._ends, place)
        start, before = (self._ends[at - 1], self._bytes[at - 1]) if at else (0, 0)
        encoder, words = self._encoder, self._words[at]
        word, known = words[0], encoder.first
        for later in words[1:]:
            if place < start + len(word):
                break
            start += len(word)
            before += len(known[word] if known is encoder.first else known[word[1:]])
            word, known = " " + later, encoder.later
        return start, before // _ID, encoder.tokens(word)


def _line_cuts(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Where lines may be cut, for a tokenizer whose texts may be cut into words."""
    model = tokenizer.model
    if (
        not isinstance(model, models.BPE)
        or model.dropout
        or model.continuing_subword_prefix
        or model.end_of_word_suffix
    ):
        return None
    normalizer = _described(tokenizer.normalizer)
    # Composing characters changes nothing at a space between ASCII characters.
    if normalizer is not None and normalizer.get("type") != "NFC":
        return None
    added = list(tokenizer.get_added_tokens_decoder().values())
    if any(
        token.lstrip
        or token.rstrip
        or token.single_word
        or _CUT.search(token.content)
        or token.normalized != added[0].normalized
        or (token.normalized and normalizer is not None)
        for token in added
    ):
        return None
    step = _described(tokenizer.pre_tokenizer)
    steps = step.get("pretokenizers", [step]) if step else []
    *before, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if last.get("use_regex", True):
        return _GPT2_LINE if all(one.get("type") == "Digits" for one in before) else None
    return _LINE if len(before) == 1 and before[0].get("type") == "Split" and _is_known(before[0]) else None


def _is_known(split: dict[str, Any]) -> bool:
    return (
        split.get("pattern", {}).get("Regex") in _PATTERNS
        and split.get("behavior") == "Isolated"
        and not split.get("invert")
    )


def _described(part: Any) -> dict[str, Any] | None:
    """A step of a tokenizer as ``tokenizer.json`` has it."""
    described: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return described
