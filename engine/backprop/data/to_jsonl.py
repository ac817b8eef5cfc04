"""Files that are no JSON Lines become JSON Lines in the cache, once, so that one reader serves all.

What a file holds is told by its name, and by its first bytes where they say otherwise. A row's number in the copy is
its number in the original: the line where it begins in a text or table, its number in an array or a Parquet file; the
lines between stay empty. A row that cannot be read, or was not read as it stands, is a line that begins with ``ODD``
and says why. The copy is written aside and renamed when it is whole: a kill at any moment leaves no half-made copy in
use.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Literal, cast

import msgspec

from backprop.core import paths
from backprop.core.errors import BackpropError, DatasetFormatError, DatasetParseError
from backprop.core.files import new_file
from backprop.core.refused import refusal
from backprop.data.example import RowError, Severity
from backprop.data.line_index import Cancelled, Progress, watched
from backprop.data.parse import BOM, Found, Note, json_line, parse_text
from backprop.data.read_json import read_json
from backprop.data.read_tables import read_arrow, read_csv, read_parquet

ODD = b"\0"
"""First byte of a line that holds an odd row; no line of JSON begins so."""
_Odd = tuple[bytes, str, str, str, Severity]
"""Bytes, code, field, message and severity."""
_VERSION = 3
"""Of the copies: another number makes all of them again."""
_PIECE = 1024 * 1024
_CODECS = {".gz": "gzip", ".zst": "zstd"}


def odd_row(line: bytes) -> tuple[bytes, RowError]:
    """What a line of the copy holds for a row that cannot be read, or was not read as it stands: its own bytes where it
    is an error, else its value as JSON; and what is wrong with it, or odd about it."""
    raw, *finding = msgspec.json.decode(line[len(ODD) :], type=_Odd)
    return raw, RowError(*finding)


def jsonl_copy(path: Path, kind: Kind, progress: Progress | None = None, cancelled: Cancelled | None = None) -> Path:
    """The copy of ``path`` as JSON Lines, made where it is missing or older than the file.

    Args:
        kind: what the file holds, apart from being packed.
        progress: called with bytes of the file read and their total.

    Raises:
        DatasetParseError: the file as a whole is damaged, cut off, or not of its kind.
        OperationCancelledError: ``cancelled`` said stop.
        BackpropError: the cache cannot be written (``RUNTIME_IO_FAILED``).
    """
    watch = watched(path, path.stat().st_size, progress, cancelled)
    return copy_of(path, [path], kind, lambda copy: _convert(path, kind, copy, watch))


def copy_of(path: Path, files: Sequence[Path], kind: Kind, write: Callable[[IO[bytes]], None]) -> Path:
    """The copy of what a person named ``path``, by ``write`` where it is missing or one of ``files`` has changed.

    Its first line is a list of notes (``begin``), the rows follow.

    Raises:
        BackpropError: the cache cannot be written (``RUNTIME_IO_FAILED``).
    """
    name = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=8).hexdigest()
    stats = [(os.fspath(file), file.stat()) for file in files]
    parts = [f"{file} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}" for file, stat in stats]
    state = hashlib.blake2b("\n".join([f"{_VERSION} {kind}", *parts]).encode(errors="surrogateescape"), digest_size=8)
    folder = paths.cache_dir() / "jsonl"
    target = folder / f"{name}-{state.hexdigest()}.jsonl"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with new_file(target) as copy:
            write(copy)
        for older in folder.glob(f"{name}-*.jsonl"):
            if older != target:
                older.unlink(missing_ok=True)
    except OSError as error:
        what, otherwise = f"{path} could not be unpacked or converted into {folder}", "name a file of JSON Lines"
        raise refusal(error, what, BackpropError, otherwise=otherwise) from error
    return target


def begin(copy: IO[bytes], notes: Sequence[str]) -> None:
    """Write the first line of a copy."""
    copy.write(msgspec.json.encode(notes) + b"\n")


def begun(copy: Path) -> tuple[list[str], int]:
    """The notes in the first line of a copy, and where its rows begin."""
    with copy.open("rb") as file:
        line = file.readline()
    return msgspec.json.decode(line, type=list[str]), len(line)


def _convert(path: Path, kind: Kind, copy: IO[bytes], watch: Callable[[int], None]) -> None:
    with path.open("rb") as file, unpacked(path, file) as source:
        if kind == "jsonl":
            begin(copy, [])
            while piece := source.read(_PIECE):
                watch(file.tell())
                copy.write(piece)
            watch(file.tell())
            return
        notes: list[str] = []
        rows = READERS[kind](path, source, notes.append)
        first = next(rows, None)
        begin(copy, notes)
        written, line = 0, 1
        for number, raw, value, found in chain([first] if first else [], rows):
            if written >= _PIECE:
                watch(file.tell())
                written = 0
            copy.write(b"\n" * (number - line))
            written += copy.write(row_line(raw, value, found))
            line = number + 1
        watch(file.tell())


def row_line(raw: bytes, value: object, found: RowError | None) -> bytes:
    """The line of the copy for a row: its value, with what is odd about it; else its bytes and what is wrong."""
    if found is None or found.severity != "error":
        try:
            raw = json_line(value)
        except RecursionError:
            found = RowError("too_deep", "", "the row is nested too deeply to be read")
    if found is None:
        return raw
    return ODD + msgspec.json.encode((raw, found.code, found.field, found.message, found.severity)) + b"\n"


@contextmanager
def unpacked(path: Path, file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The bytes of an open file without its packing.

    Raises:
        DatasetParseError: it is damaged or cut off.
    """
    codec = _CODECS.get(packing(path))
    if codec is None:
        yield file
        return
    import pyarrow

    try:
        yield cast(IO[bytes], io.BufferedReader(pyarrow.CompressedInputStream(file, codec), _PIECE))
    except OSError as error:
        if error.errno is not None:  # not what the stream says of its bytes
            raise
        raise DatasetParseError(
            f"{path} cannot be unpacked: {error}",
            hint="the file is cut off or is no packed file: fetch it again, check its ending, or unpack it yourself",
            details={"path": str(path)},
        ) from error


def _remove_leftovers(folder: Path) -> None:
    """Partial copies of processes that are gone."""
    for leftover in folder.glob("*.partial"):
        pid = leftover.name.split(".")[-2]
        if pid.isdigit() and not _alive(int(pid)):
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


Kind = Literal["jsonl", "json", "csv", "parquet", "arrow", "txt", "shards"]
"""``shards``: several files that are read as one."""
KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "txt",
}
PACKED = (".gz", ".zst")
_PACKED_BY = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_KIND_BY: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_REFUSED = {
    b"version https://git-lfs": ("a Git LFS pointer in place of the data", "fetch the data with: git lfs pull"),
    b"<!doctype html": ("a web page", "fetch the file itself, not the page that shows it"),
    b"<html": ("a web page", "fetch the file itself, not the page that shows it"),
    b"pk\x03\x04": ("a zip archive or a spreadsheet", "unpack it; save a spreadsheet as CSV"),
    b"\xd0\xcf\x11\xe0": ("a spreadsheet or another Office file", "save it as CSV"),
    b"bzh": ("packed with bzip2", "unpack it with: bunzip2"),
    b"\xfd7zxz": ("packed with xz", "unpack it with: unxz"),
}
"""First bytes, in lower case → what such a file is, and what to do."""


def packing(path: Path) -> str:
    """How a file is packed: its ending, or what its first bytes say; empty where it is not."""
    if path.suffix.lower() in PACKED:
        return path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(4)
    return next((ending for mark, ending in _PACKED_BY.items() if head.startswith(mark)), "")


def held_kind(path: Path, head: bytes) -> tuple[Kind, list[str]]:
    """What a file that begins with ``head``, unpacked, holds, and where its name says otherwise.

    Raises:
        DatasetFormatError: the ending is none of the known ones.
        DatasetParseError: something that has no rows.
    """
    endings = [suffix.lower() for suffix in path.suffixes]
    packed = packing(path)
    is_said = endings[-1:] == [packed]
    ending = "".join(endings[-2:-1] if is_said else endings[-1:])
    start = head.removeprefix(BOM).lstrip()[:32].lower()
    for mark, (what, hint) in _REFUSED.items():
        if start.startswith(mark) and not (ending == ".txt" and mark.startswith(b"<")):
            raise DatasetParseError(f"{path} holds no rows: it is {what}", hint=hint, details={"path": str(path)})
    if ending not in KINDS:
        raise DatasetFormatError(
            f"{path}: the ending {ending or 'of the name'} is not one of {', '.join(KINDS)} (each also .gz or .zst)",
            hint="rename the file to say what it holds",
            details={"path": str(path)},
        )
    kind = next((held for mark, held in _KIND_BY.items() if head.startswith(mark)), KINDS[ending])
    notes = [f"the file is packed as {packed}, whatever its name says"] if packed and not is_said else []
    return kind, notes if kind == KINDS[ending] else [*notes, f"the file is {kind}, whatever its name says"]


def _read_txt(path: Path, source: IO[bytes], note: Note) -> Iterator[Found]:
    offset = 0
    for number, line in enumerate(source, 1):
        raw = line.rstrip(b"\n").removesuffix(b"\r")
        if raw.removeprefix(BOM).strip():
            yield number, raw, *parse_text(raw, offset)
        offset += len(line)


READERS: dict[Kind, Callable[[Path, IO[bytes], Note], Iterator[Found]]] = {
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "txt": _read_txt,
}
