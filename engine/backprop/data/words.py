"""Encoding by words: each word of a dataset goes through the tokenizer once, and its ids are remembered.

Byte-level BPE splits a text into words first, and no merge reaches from one word into the next; special tokens split
it before that. So a text may be cut wherever its splitting pattern always cuts, and the parts' tokens joined are the
whole text's tokens. The cuts used here are special tokens, and a single space between two printable ASCII characters:
every pattern in ``_PATTERNS`` starts a new word there, whatever else stands around it.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any, Self

from tokenizers import Encoding, Tokenizer, models

_CUT = re.compile(r" (?=[!-~])(?<=[!-~] )")
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {_SPLIT % r"\p{N}{1,3}": "Llama 3", _SPLIT % r"\p{N}": "Qwen"}
"""Splitting patterns that are known to cut there; GPT-2's own is part of the library's byte-level step."""
_KEPT = 200_000
"""Words remembered before all are forgotten: about 40 MB."""
_LONGEST = 64
"""Characters of a word that is remembered: longer ones (a text without spaces, for instance) hardly come again."""


class _Words(dict[str, tuple[int, ...]]):
    """Word → ids of ``before`` and the word."""

    def __init__(self, tokenizer: Tokenizer, before: str) -> None:
        self._tokenizer = tokenizer
        self._before = before

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(self._tokenizer.encode(self._before + word, add_special_tokens=False).ids)
        if len(word) <= _LONGEST:
            if len(self) >= _KEPT:
                self.clear()
            self[word] = ids
        return ids


class WordEncoder:
    """Encodes texts as the tokenizer does, without the special tokens that it would put around them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = sorted((t.content for t in tokenizer.get_added_tokens_decoder().values()), key=len, reverse=True)
        self._specials = re.compile("(" + "|".join(map(re.escape, added)) + ")") if added else None
        self.first = _Words(tokenizer, "")
        """Special tokens, and the words after them."""
        self.later = _Words(tokenizer, " ")
        """Words after a space."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self | None:
        """``None`` where words are not known to be encoded on their own."""
        return cls(tokenizer) if _splits_words(tokenizer) else None

    def encode(self, text: str) -> WordEncoding:
        segments = self._specials.split(text) if self._specials else [text]
        words = [_CUT.split(segment) for segment in segments]
        later = self.later.__getitem__
        ids = [[*self.first[some[0]], *chain.from_iterable(map(later, some[1:]))] if some[0] else [] for some in words]
        return WordEncoding(self, segments, words, ids)


class WordEncoding:
    """What ``Encoding`` tells about a text; places are looked up in the word that holds them."""

    def __init__(self, encoder: WordEncoder, segments: list[str], words: list[list[str]], ids: list[list[int]]) -> None:
        self._encoder = encoder
        self._segments = segments
        self._words = words
        self._ids = ids
        self.ids = list(chain.from_iterable(ids))

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
        start = first = at = 0
        while place >= start + len(self._segments[at]):
            start += len(self._segments[at])
            first += len(self._ids[at])
            at += 1
        encoder, words = self._encoder, self._words[at]
        word, known = words[0], encoder.first
        for later in words[1:]:
            if place < start + len(word):
                break
            start += len(word)
            first += len(known[word] if known is encoder.first else known[word[1:]])
            word, known = " " + later, encoder.later
        return start, first, encoder.tokenizer.encode(word, add_special_tokens=False)


def _splits_words(tokenizer: Tokenizer) -> bool:
    model = tokenizer.model
    if (
        not isinstance(model, models.BPE)
        or model.dropout
        or model.continuing_subword_prefix
        or model.end_of_word_suffix
    ):
        return False
    normalizer = _described(tokenizer.normalizer)
    # Composing characters changes nothing at a space between ASCII characters.
    if normalizer is not None and normalizer.get("type") != "NFC":
        return False
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
        return False
    step = _described(tokenizer.pre_tokenizer)
    steps = step.get("pretokenizers", [step]) if step else []
    *before, last = steps or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return False
    if last.get("use_regex", True):
        return all(one.get("type") == "Digits" for one in before)
    return len(before) == 1 and before[0].get("type") == "Split" and _is_known(before[0])


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
