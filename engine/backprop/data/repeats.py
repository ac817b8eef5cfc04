"""Rows that say the same: found by fingerprints of eight bytes, settled by their content."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from backprop.data.batches import batches
from backprop.data.content import content, content_key
from backprop.data.example import Format
from backprop.data.formats import detect_fields
from backprop.data.line_index import Cancelled, Progress
from backprop.data.mapping import Fields
from backprop.data.prints import Numbers, Prints
from backprop.data.reader import Source, open_source
from backprop.data.survey import file_format

Keys = npt.NDArray[np.uint64]
"""Content keys, two numbers each."""
_AT_ONCE = 1 << 18


class Found(Struct):
    """Rows that repeat others, by their position in the file."""

    again: Numbers
    """Rows with the content of an earlier row, ascending."""
    earlier: Numbers
    """For each of them, the first row with that content."""
    held_out: Numbers
    """Rows that another file has too, ascending."""


class Repeats:
    """Fingerprints of a file's rows, in order. Only rows whose fingerprint agrees with another's are read again."""

    def __init__(self, format: Format | None, names: Fields) -> None:
        self.format = format
        self.names = names
        self.keys: set[bytes] = set()
        """Content keys of a file read by ``of_file``."""
        self._prints = array("q")
        self._sizes = array("q")
        """Rows of each batch."""
        self._next_unique = 0

    @classmethod
    def of_file(cls, path: str | Path, mapping: Mapping[str, str] | None) -> Self:
        """The contents of a whole (smaller) file, to be looked for in another."""
        with open_source(path) as source:
            seen = file_format(source, mapping)
            made = cls(seen.format, Fields(seen.mapping))
            for batch in batches(source):
                rows = [row.value for i in range(len(batch)) if (row := batch.row(i)).error is None]
                made.add(made.prints_of(rows))
                made.keys.update(made.key_of(value) for value in rows)
        return made

    def _format_of(self, value: object) -> Format | None:
        return detect_fields(value, self.names) or self.format

    def add(self, prints: Numbers) -> None:
        """Take the fingerprints of the next batch of rows."""
        self._prints.frombytes(prints.tobytes())
        self._sizes.append(len(prints))

    def prints_of(self, values: list[object]) -> Numbers:
        return _fingerprints([(value, self._format_of(value)) for value in values], self.names)

    def key_of(self, value: object) -> bytes:
        return content_key(value, self._format_of(value), self.names)

    def unique(self) -> int:
        """A fingerprint for a row that cannot be read, and so equals none."""
        self._next_unique += 1
        return hash(("unreadable", id(self), self._next_unique))

    def find(
        self, source: Source, other: Repeats | None, progress: Progress | None, cancelled: Cancelled | None
    ) -> Found | None:
        """Rows that repeat an earlier one, and rows that ``other`` has; ``None`` where ``cancelled`` said stop.

        The file is read a second time where there may be any, up to the last of them.

        Args:
            progress: called with bytes read again and their total.
        """
        suspects = self._suspects(other)
        written = bytearray()
        begin = done = 0
        for batch, size in zip(batches(source) if len(suspects) else (), self._sizes, strict=False):
            if cancelled is not None and cancelled():
                return None
            stop = int(np.searchsorted(suspects, begin + size))
            for at in suspects[done:stop].tolist():
                row = batch.row(at - begin)
                # A row that cannot be read equals none: its place is its content.
                written += self.key_of(row.value) if row.error is None else at.to_bytes(16, "big")
            begin, done = begin + size, stop
            if progress is not None:
                progress(batch.end, source.bytes)
            if stop == len(suspects):
                break
        keys = np.frombuffer(written, dtype=np.uint64).reshape(-1, 2)
        again, earlier = _repeated(keys)
        held = [at for at in range(len(keys)) if keys[at].tobytes() in other.keys] if other is not None else []
        return Found(suspects[again], suspects[earlier], suspects[held])

    def _suspects(self, other: Repeats | None) -> Numbers:
        """Rows whose fingerprint another row has, here or in ``other``."""
        prints = np.frombuffer(self._prints, dtype=np.int64)
        ordered = np.sort(prints)
        wanted = ordered[1:][ordered[1:] == ordered[:-1]]
        if other is not None:
            wanted = np.sort(np.concatenate((wanted, np.frombuffer(other._prints, dtype=np.int64))))
        del ordered
        if not len(wanted):
            return np.empty(0, dtype=np.int64)
        found = [
            begin + np.flatnonzero(wanted[np.searchsorted(wanted, some).clip(max=len(wanted) - 1)] == some)
            for begin in range(0, len(prints), _AT_ONCE)
            for some in [prints[begin : begin + _AT_ONCE]]
        ]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _repeated(keys: Keys) -> tuple[Numbers, Numbers]:
    """The positions of keys that came before, ascending, with the position of the first equal one."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    # Equal keys keep their order: the first of a group is the first in the file.
    leads = np.ones(len(order), dtype=np.bool_)
    leads[1:] = False
    for half in (0, 1):
        ordered = keys[:, half][order]
        leads[1:] |= ordered[1:] != ordered[:-1]
    del ordered
    group = np.maximum.accumulate(np.where(leads, np.arange(len(order)), 0))
    again, earlier = order[~leads], order[group[~leads]]
    ascending = np.argsort(again)
    return again[ascending], earlier[ascending]


def _fingerprints(values: Sequence[tuple[Any, Format | None]], names: Fields) -> Numbers:
    """A number per value (with its format), equal for equal content. ``typed`` makes the same ones of good rows."""
    outlines = [_outline(value, format, names) for value, format in values]
    made = Prints()
    counts, first, last = (
        zip(*(outline or (0, "", "") for outline in outlines), strict=True) if outlines else ((), (), ())
    )
    made.add(counts, first, last)
    prints = made.take()
    for i, outline in enumerate(outlines):
        if outline is None:
            prints[i] = int.from_bytes(content_key(*values[i], names)[:8], "little", signed=True)
    return prints


def _outline(value: Any, format: Format | None, names: Fields) -> tuple[int, str, str] | None:
    """Number of texts, first and last text; what is no text counts as an empty one. ``None``: not of texts at all."""
    parts = content(value, format, names)
    if parts is None:
        return None
    if format in ("openai", "sharegpt"):
        key = "content" if format == "openai" else "value"
        turns = parts[0]
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and isinstance(turns[-1], dict):
            return len(turns), _text(turns[0].get(key)), _text(turns[-1].get(key))
        return None
    if format == "alpaca":
        return 3, _text(parts[0]), _text(parts[2])
    if format in ("prompt_completion", "kto"):
        return 2, _text(parts[0]), _text(parts[1])
    if format == "preference":
        return 3, _text(parts[1]), _text(parts[2])
    return 1, _text(parts[0]), _text(parts[0])


def _text(part: object) -> str:
    return part if type(part) is str else ""
