"""Rows that say the same, and rows that say almost the same.

Exact duplicates have equal content: what a row says, apart from how it is written. Key order, white space between
tokens, escapes, ids and other columns make no difference.

Near duplicates are found by MinHash over word triples (Broder 1997) and settled by the true overlap. Signatures come
from ``rensa``. Rows that agree in a band of their signatures are candidates; only those whose word triples really
overlap by the threshold belong together. At the usual threshold 128 bytes a row are kept.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import NoneType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from backprop.data.example import PLAIN, Fields, Format

Numbers = npt.NDArray[np.int64]
PARTS_READ: dict[Format, tuple[str, ...]] = {
    "sharegpt": ("conversations", "system", "tools", "functions"),
    "openai": ("messages", "system", "tools", "functions"),
    "alpaca": ("instruction", "input", "output", "system", "history", "tools", "functions"),
    "prompt_completion": ("prompt", "completion", "messages", "conversations", "system", "tools", "functions"),
    "preference": ("prompt", "chosen", "rejected", "messages", "conversations", "system", "tools", "functions"),
    "kto": ("prompt", "completion", "label", "messages", "conversations", "system", "tools", "functions"),
    "text": ("text",),
    "chatml": ("text",),
}
"""The parts that are read of a row, by its format: together they are its content."""
PARTS_ALSO_READ: dict[Format, tuple[str, ...]] = {
    "sharegpt": ("loss_mask",),
    "openai": ("loss_mask",),
    "preference": ("instruction", "input", "output", "completion", "history"),
    "kto": ("instruction", "input", "output", "history"),
}
"""Parts that count where a row has them. The content of other rows is told without: their keys are kept with runs."""
THRESHOLD = 0.8
"""Share of common word triples (Jaccard) from which two rows count as near duplicates."""
_PERMUTATIONS = 96
_FOUND = 0.98
"""Least chance that two rows at the threshold become candidates."""
_SEED = 1
_SHINGLE = 3
_CHARACTERS = 5
_WORD = re.compile(r"\w+")
_BATCH = 2000
_COMPARED = 8
"""Groups of one bucket that a row is compared with."""

_encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=str).encode


def _also_read(value: dict[str, Any], format: Format, names: Fields) -> tuple[str, ...]:
    answer = names.chosen if format == "preference" else names.completion
    if format not in ("preference", "kto"):
        return PARTS_ALSO_READ.get(format, ())
    whole = {names.completion, names.output, names.messages, names.conversations} & value.keys()
    return () if answer in value else PARTS_ALSO_READ[format] if whole else ("text",)


def fields_read(value: dict[str, Any], format: Format, names: Fields) -> set[str]:
    """The fields that are read of a row; a conversation beside a prompt is not."""
    parts = {*PARTS_READ[format], *_also_read(value, format, names), "reasoning"}
    if "prompt" in parts and value.get(names.prompt) is not None:
        parts -= {"messages", "conversations"}
    return {getattr(names, part) for part in parts}


def content_parts(value: Any, format: Format | None, names: Fields = PLAIN) -> list[Any] | None:
    """The parts of a row that are read in ``format``, in a fixed order; ``None`` where it has none of them."""
    value = names.held(value)
    if isinstance(value, str) and format in ("text", "chatml"):
        return [value]
    if not isinstance(value, dict) or format is None:
        return None
    parts = [value.get(getattr(names, part)) for part in PARTS_READ[format]]
    parts = [said if said or said == 0 else None for said in parts]
    for part in (*_also_read(value, format, names), "reasoning"):
        said = value.get(getattr(names, part))
        if said or said == 0:
            parts += [part, said]
    return parts if any(part is not None for part in parts) else None


def content(value: Any, format: Format | None, names: Fields = PLAIN) -> bytes:
    """What a row says, equal for exact duplicates and for no others."""
    parts = content_parts(value, format, names)
    try:
        return _encode([format, value] if parts is None else parts)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return repr(value).encode("utf-8", "backslashreplace")


def content_key(value: Any, format: Format | None, names: Fields = PLAIN) -> bytes:
    """16 bytes that are equal for exact duplicates, in every process, and differ otherwise."""
    return hashlib.blake2b(content(value, format, names), digest_size=16).digest()


def content_number(value: Any, format: Format | None, names: Fields = PLAIN) -> int:
    """64 bits of ``content_key``, as they are kept beside scores and tokens."""
    return int.from_bytes(content_key(value, format, names)[:8], "little", signed=True)


def content_hash(value: Any, format: Format | None, names: Fields = PLAIN) -> int:
    """64 bits that are equal for exact duplicates, in this process: cheap enough to be made for every row."""
    parts = content_parts(value, format, names) or [value]
    if all(type(part) in (str, bool, NoneType) for part in parts):
        return hash(tuple(parts))
    keys = ("role", "content") if format == "openai" else ("from", "value")
    if format in ("openai", "sharegpt") and not any(parts[1:]) and _is_plain(parts[0], *keys):
        return chat_hash(tuple([said[keys[0]] for said in parts[0]]), [said[keys[1]] for said in parts[0]])
    return hash(content(value, format, names))


def chat_hash(roles: tuple[str, ...], texts: list[str]) -> int:
    """``content_hash`` of a chat whose messages are roles and texts alone."""
    return hash((roles, *texts))


def _is_plain(messages: Any, role: str, text: str) -> bool:
    return isinstance(messages, list) and all(
        isinstance(said, dict) and len(said) == 2 and type(said.get(role)) is type(said.get(text)) is str
        for said in messages
    )


def repeated(keys: Numbers) -> tuple[Numbers, Numbers]:
    """Exact duplicates among millions of rows, given as numbers: the places of keys that came before, ascending, and
    for each of them the place of the first equal key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    leads = np.ones(len(order), dtype=np.bool_)
    leads[1:] = ordered[1:] != ordered[:-1]
    if leads.all():
        return order[:0], order[:0]
    group = np.maximum.accumulate(np.where(leads, np.arange(len(order)), 0))
    again, earlier = order[~leads], order[group[~leads]]
    ascending = np.argsort(again)
    return again[ascending], earlier[ascending]


def shingles(text: str) -> set[str]:
    """The word triples of a text, case and punctuation aside; runs of 5 characters where it has no spaces."""
    words = _WORD.findall(text.lower())
    if not words:
        return set()
    if sum(map(len, words)) > 16 * len(words):
        joined = "".join(words)
        return {joined[i : i + _CHARACTERS] for i in range(max(1, len(joined) - _CHARACTERS + 1))}
    return {" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))}


def overlap(one: set[str], two: set[str]) -> float:
    """Jaccard similarity."""
    return len(one & two) / len(one | two) if one or two else 0.0


class MinHashIndex:
    """Groups rows whose texts nearly agree. Rows without words are in no group.

    Args:
        threshold: least overlap of word triples.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self._width = _band_width(threshold)
        self._rows: list[int] = []
        self._bands: list[npt.NDArray[np.uint64]] = []
        self._waiting: list[list[str]] = []

    def add(self, row: int, text: str) -> None:
        """Take the text of a row."""
        found = shingles(text)
        if found:
            self._rows.append(row)
            self._waiting.append(sorted(found))
            if len(self._waiting) == _BATCH:
                self._sign()

    def _sign(self) -> None:
        if not self._waiting:
            return
        from rensa import RMinHash

        signatures = np.array(
            RMinHash.digests_from_token_sets(self._waiting, num_perm=_PERMUTATIONS, seed=_SEED), dtype=np.uint64
        )
        self._waiting = []
        bands = signatures.reshape(len(signatures), -1, self._width)
        factors = np.random.default_rng(_SEED).integers(1, 2**63, bands.shape[2], dtype=np.uint64) | np.uint64(1)
        self._bands.append((bands * factors).sum(axis=2, dtype=np.uint64))

    def groups(self, text_of: Callable[[int], str]) -> list[list[int]]:
        """Rows that belong together, each group in order, groups by their first row.

        Args:
            text_of: gives the text of a row again, for the candidates.
        """
        self._sign()
        if not self._bands:
            return []
        bands = np.concatenate(self._bands)
        sets = _Sets(len(self._rows))
        known: dict[int, set[str]] = {}

        def words_of(place: int) -> set[str]:
            if place not in known:
                if len(known) > 10_000:
                    known.clear()
                known[place] = shingles(text_of(self._rows[place]))
            return known[place]

        for bucket in _buckets(bands):
            self._join(bucket, sets, words_of)
        return [[self._rows[place] for place in group] for group in sets.groups() if len(group) > 1]

    def _join(self, bucket: list[int], sets: _Sets, words_of: Callable[[int], set[str]]) -> None:
        leaders: list[int] = []
        for place in bucket:
            for leader in leaders[:_COMPARED]:
                if sets.root(leader) == sets.root(place):
                    break
                if overlap(words_of(leader), words_of(place)) >= self.threshold:
                    sets.join(leader, place)
                    break
            else:
                leaders.append(place)


def _band_width(threshold: float) -> int:
    """Values per band: the most with which rows at the threshold still agree in some band, nearly always."""
    widths = [width for width in range(1, _PERMUTATIONS + 1) if _PERMUTATIONS % width == 0]
    good = [width for width in widths if 1 - (1 - threshold**width) ** (_PERMUTATIONS // width) >= _FOUND]
    return max(good, default=1)


def _buckets(bands: npt.NDArray[np.uint64]) -> Iterator[list[int]]:
    """Places that agree in a band, in order."""
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        edges = np.flatnonzero(np.diff(band[order])) + 1
        for part in np.split(order, edges):
            if len(part) > 1:
                yield part.tolist()


class _Sets:
    """Places in sets that are joined (union–find)."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def root(self, place: int) -> int:
        """The first place of its set."""
        parents = self._parents
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    def join(self, a: int, b: int) -> None:
        one, two = self.root(a), self.root(b)
        self._parents[max(one, two)] = min(one, two)

    def groups(self) -> list[list[int]]:
        """The sets by their first place, each in order."""
        found: dict[int, list[int]] = defaultdict(list)
        for place in range(len(self._parents)):
            found[self.root(place)].append(place)
        return list(found.values())


def clusters(keys: Sequence[bytes], groups: Iterable[Sequence[int]] = ()) -> list[list[int]]:
    """Places that belong together because their keys are equal or a group names them, each in order."""
    sets, first = _Sets(len(keys)), dict[bytes, int]()
    for i, key in enumerate(keys):
        sets.join(first.setdefault(key, i), i)
    for group in groups:
        for member in group[1:]:
            sets.join(group[0], member)
    return sets.groups()
