"""New dataset files beside the original: whole or not at all, and never over anything."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import orjson

from backprop.core.datasets import FILE_ENDINGS
from backprop.core.errors import BackpropError, InputError
from backprop.core.files import new_file
from backprop.core.paths import cache_dir
from backprop.data.reader import Row


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
        if path.exists():
            raise InputError(
                f"{path.name} exists already and is not overwritten",
                hint=f"move {path} away, or name another file to write",
                details={"path": str(path)},
            )


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is complete.

    Raises:
        BackpropError: it cannot be written (``RUNTIME_IO_FAILED``); nothing is left behind.
    """
    try:
        with new_file(path) as file:
            yield file
    except OSError as error:
        raise BackpropError(
            f"{path} could not be written: {error.strerror or error}",
            hint="look at the free space and the permissions there, or name another place",
            code="RUNTIME_IO_FAILED",
        ) from error


def line_of(row: Row) -> bytes:
    """The row as a line of JSON Lines: its own bytes, but an object around plain text."""
    if isinstance(row.value, str):
        return orjson.dumps({"text": row.value}, option=orjson.OPT_APPEND_NEWLINE)
    return row.raw.removeprefix(b"\xef\xbb\xbf") + b"\n"
