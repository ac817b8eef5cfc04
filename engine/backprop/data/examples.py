"""The rows of a source as examples, which is what the quality tools look at; and the files that they write beside it:
whole or not at all, and never over anything."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import orjson
from msgspec import Struct

from backprop.core.datasets import FILE_ENDINGS
from backprop.core.errors import BackpropError, InputError
from backprop.core.files import new_output
from backprop.core.methods import Rows
from backprop.core.paths import cache_dir
from backprop.core.refused import refusal
from backprop.data.convert import convert
from backprop.data.dedup import MinHashIndex, content_key
from backprop.data.example import Example, Format, RowError
from backprop.data.formats import FileFormat, detect_fields, file_format, mixed_format, read_as, unknown_format
from backprop.data.line_index import Cancelled, Progress, watched
from backprop.data.reader import Row, Source


class Read(Struct):
    """One row with what it became."""

    row: Row
    became: Example | RowError
    """An example, or the error that keeps the row out."""
    format: Format | None = None
    """What it is read in."""
    known: bool = False
    """Its fields are those of a format: it is not only read as what most rows are."""
    warnings: list[RowError] = []
    """What is odd beside the warnings of an example."""
    index: int = 0
    """Its place among all rows."""
    key: bytes = b""
    """Equal for rows of equal content; empty where there is no example."""


def read_row(row: Row, file: FileFormat) -> Read:
    """The one way from a row of a file to an example, for checking, training, the quality tools and screens."""
    if row.error is not None:
        return Read(row, row.error)
    warnings = [row.warning] if row.warning is not None else []
    format = read_as(row.value, file.format, file.names)
    if format is None:
        return Read(row, unknown_format(row.value), warnings=warnings)
    if format != file.format:
        warnings.append(mixed_format(format, file.format))
    warnings += file.doubts(row.value, format)
    try:
        became: Example | RowError = convert(row.value, format, file.names)
    except RowError as error:
        became = error
    return Read(row, became, format, detect_fields(row.value, file.names) is not None, warnings)


class Reader:
    """Reads a source as examples that teach something, as often as asked.

    Args:
        mapping: part → field; found from the rows where not given.
        progress: called with bytes read and their total.
        cancelled: asked often; reading then ends with ``OperationCancelledError``.
        rows: what the method learns from that is to be trained with: other rows teach it nothing.
    """

    def __init__(
        self,
        source: Source,
        mapping: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
        rows: Rows = "conversation",
    ) -> None:
        self.source = source
        self._rows: Rows = rows
        self.file = file_format(source, mapping)
        self._watch = watched(source.path, source.size, progress, cancelled)

    def __iter__(self) -> Iterator[Read]:
        done = 0
        for index, row in enumerate(self.source):
            done += len(row.raw) + 1
            if index % 256 == 0:
                self._watch(done)
            yield self._read(index, row)

    def _read(self, index: int, row: Row) -> Read:
        read = read_row(row, self.file)
        read.index = index
        if isinstance(read.became, Example):
            read.became.warnings += read.warnings
            if (fault := read.became.fault(self._rows)) is not None:
                read.became = fault
            else:
                read.key = content_key(row.value, read.format, self.file.names)
        return read

    def text(self, index: int) -> str:
        """Prompt and answer of the row at ``index``, read again; empty where there is no example."""
        became = self._read(index, self.source.row(index)).became
        return whole_text(became) if isinstance(became, Example) else ""


def prompt_text(example: Example) -> str:
    """What is asked: the turns that are not the assistant's, without the system's, which many rows share."""
    return "\n".join(turn.content for turn in example.turns if turn.role not in ("assistant", "system"))


def answer_text(example: Example) -> str:
    """What is learned: the assistant's turns (the chosen side, the judged completion), or the raw text."""
    if example.text is not None:
        return example.text
    turns = [turn for turn in example.turns if turn.role == "assistant"]
    turns = [*turns, *example.chosen, *example.completion]
    return "\n".join(part for turn in turns for part in (turn.reasoning, turn.content) if part)


def whole_text(example: Example) -> str:
    """Prompt and answer."""
    prompt, answer = prompt_text(example), answer_text(example)
    return f"{prompt}\n{answer}" if prompt and answer else prompt or answer


class Usable:
    """The rows of a source that have an example, read once: their content keys, and on request a MinHash index of their
    texts.

    Args:
        near: overlap from which rows are near duplicates; ``None`` where nobody asks.
        reads: the rows to take, by default all of the reader's.
    """

    def __init__(self, reader: Reader, near: float | None, reads: Iterable[Read] | None = None) -> None:
        self._reader = reader
        self._minhash = MinHashIndex(near) if near is not None else None
        self.rows = 0
        self.places: list[int] = []
        """Index in the source of each usable row."""
        self.lines: list[int] = []
        """Its line."""
        self.keys: list[bytes] = []
        """Its content key."""
        self.left_out: Counter[str] = Counter()
        """Other rows, by the code of what is wrong with them."""
        for read in reader if reads is None else reads:
            self.rows += 1
            example = read.became
            if isinstance(example, RowError):
                self.left_out[example.code] += 1
                continue
            if self._minhash is not None:
                self._minhash.add(len(self.keys), whole_text(example))
            self.places.append(read.index)
            self.lines.append(read.row.line)
            self.keys.append(read.key)

    def text(self, i: int) -> str:
        """Prompt and answer of the usable row at ``i``, read again."""
        return self._reader.text(self.places[i])

    def near_groups(self) -> list[list[int]]:
        """Groups of near duplicates, as positions in ``places``."""
        return self._minhash.groups(self.text) if self._minhash is not None else []


def beside(path: Path, word: str, ending: str = ".jsonl") -> Path:
    """``data.csv.gz`` → ``data.clean.jsonl``; ``parts`` and ``parts/*.csv`` → ``parts.clean.jsonl`` beside the folder.

    The file of a fetched dataset is in the cache: what belongs beside it goes into the working directory, and
    ``owner--name/train.parquet`` → ``name-train.clean.jsonl``.
    """
    if path.is_relative_to(cache_dir() / "datasets"):
        path = Path.cwd() / f"{path.parent.name.rpartition('--')[2]}-{path.name}"
    if glob.has_magic(path.name) and not path.exists():
        path = path.parent.absolute()
    stem = path.name
    for suffix in reversed(path.suffixes[-2:]):
        if suffix.lower() in FILE_ENDINGS:
            stem = stem.removesuffix(suffix)
    return path.with_name(f"{stem}.{word}{ending}")


def refuse_existing(*paths: Path) -> None:
    """Raise ``InputError`` where a file is in the way."""
    for path in paths:
        if os.path.lexists(path):
            raise _exists(path)


def _exists(path: Path) -> InputError:
    return InputError(
        f"{path.name} exists already and is not overwritten",
        hint=f"move {path} away, or name another file to write",
        details={"path": str(path)},
    )


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is complete; one that came there meanwhile is not replaced.

    Raises:
        InputError: one did.
        BackpropError: it cannot be written (``RUNTIME_IO_FAILED``, ``RUNTIME_DISK_FULL``); nothing is left behind.
    """
    try:
        with new_output(path, folder=False) as aside, aside.open("wb") as file:
            yield file
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise refusal(error, f"{path} could not be written", BackpropError, otherwise="name another place") from error


def line_of(row: Row) -> bytes:
    """The row as a line of JSON Lines: its own bytes, but an object around plain text."""
    if isinstance(row.value, str):
        return orjson.dumps({"text": row.value}, option=orjson.OPT_APPEND_NEWLINE)
    return row.raw.removeprefix(b"\xef\xbb\xbf") + b"\n"
