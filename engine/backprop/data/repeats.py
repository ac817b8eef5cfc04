"""Rows that say the same: found by fingerprints of eight bytes, settled by their content."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from backprop.data.content import content_key, fingerprint
from backprop.data.formats import detect_fields
from backprop.data.mapping import Fields
from backprop.data.source import Source, open_source
from backprop.data.survey import file_format
from backprop.data.turns import Format
from backprop.data.typed import Prints


class Repeats:
    """Fingerprints of a file's rows, in order. Only rows whose fingerprint agrees with another's are read again."""

    def __init__(self, format: Format | None, names: Fields) -> None:
        self.format = format
        self.names = names
        self.prints: Prints = array("q")
        """One per row, in order; whoever reads the rows appends them."""
        self._next_unique = 0

    @classmethod
    def of_file(cls, path: str | Path, mapping: Mapping[str, str] | None) -> Self:
        """The contents of a whole (smaller) file, for ``also_in``."""
        with open_source(path) as source:
            seen = file_format(source, mapping)
            made = cls(seen.format, Fields(seen.mapping))
            made.prints.extend(made.print_of(row.value) if row.error is None else made.unique() for row in source)
            made.keys = {made.key_of(row.value) for row in source if row.error is None}
        return made

    keys: frozenset[bytes] | set[bytes] = frozenset()
    """Content keys of a file read by ``of_file``."""

    def _format_of(self, value: object) -> Format | None:
        return detect_fields(value, self.names) or self.format

    def print_of(self, value: object) -> int:
        return fingerprint(value, self._format_of(value), self.names)

    def key_of(self, value: object) -> bytes:
        return content_key(value, self._format_of(value), self.names)

    def unique(self) -> int:
        """A fingerprint for a row that cannot be read, and so equals none."""
        self._next_unique += 1
        return hash(("unreadable", id(self), self._next_unique))

    def _array(self) -> npt.NDArray[np.int64]:
        return np.frombuffer(self.prints, dtype=np.int64)

    def duplicates(self, source: Source) -> Iterator[tuple[int, int]]:
        """Rows that repeat an earlier one, as (row, first such row), by row."""
        ordered = np.sort(self._array())
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        candidates = np.flatnonzero(np.isin(self._array(), repeated)) if len(repeated) else repeated
        first: dict[bytes, int] = {}
        for index in candidates.tolist():
            row = source.row(index)
            if row.error is not None:
                continue
            earlier = first.setdefault(self.key_of(row.value), index)
            if earlier != index:
                yield index, earlier

    def also_in(self, other: Repeats, source: Source) -> Iterator[int]:
        """Rows whose content ``other`` has too."""
        for index in np.flatnonzero(np.isin(self._array(), other._array())).tolist():
            row = source.row(index)
            if row.error is None and self.key_of(row.value) in other.keys:
                yield index
