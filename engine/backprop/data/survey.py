"""A first look at a source: the format of its rows and the names of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from backprop.data.formats import FileFormat, detect_file
from backprop.data.reader import Source

_SAMPLE = 1_000


def file_format(source: Source, mapping: Mapping[str, str] | None = None) -> FileFormat:
    """The format of a source's first thousand rows, and the field mapping in use."""
    rows = (row for row in islice(source, _SAMPLE) if row.error is None)
    return detect_file(((row.line, row.value) for row in rows), mapping)
