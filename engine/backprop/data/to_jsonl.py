"""Files that are no JSON Lines become JSON Lines in the cache, once, so that one reader serves all.

A row's number in the copy is its number in the original: the line where it begins in a text or table, its number in an
array or a Parquet file; the lines between stay empty. A row that cannot be read is a line that begins with ``BROKEN``
and says why. The copy is written aside and renamed when it is whole: a kill at any moment leaves no half-made copy in
use.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, time
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import orjson
from msgspec import Struct

from backprop.core import paths
from backprop.core.errors import BackpropError, DatasetParseError
from backprop.core.files import new_file
from backprop.data.example import RowError
from backprop.data.file_kinds import READERS, Kind
from backprop.data.line_index import Cancelled, Progress, Watch

BROKEN = b"\0"
"""First byte of a line that stands for a row which cannot be read; no line of JSON begins so."""
_VERSION = 1
"""Of the copies: another number makes all of them again."""
_PIECE = 1024 * 1024
_ZST_PIECE = 16 * 1024
"""Packed bytes that are unpacked at once: what they become is held in memory."""


class BrokenRow(Struct):
    """What a line of the copy holds for a row that cannot be read."""

    code: str
    field: str
    message: str
    raw: bytes


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
    stat = path.stat()
    name = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=8).hexdigest()
    state = f"{_VERSION} {kind} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    folder = paths.cache_dir() / "jsonl"
    target = folder / f"{name}-{hashlib.blake2b(state.encode(), digest_size=8).hexdigest()}.jsonl"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with new_file(target) as copy:
            _convert(path, kind, copy, Watch(path, stat.st_size, progress, cancelled))
        for older in folder.glob(f"{name}-*.jsonl"):
            if older != target:
                older.unlink(missing_ok=True)
    except OSError as error:
        raise BackpropError(
            f"{path} could not be unpacked or converted into {folder}: {error.strerror or error}",
            hint="free some space there, or write the file as JSON Lines yourself and name that one",
            code="RUNTIME_IO_FAILED",
        ) from error
    return target


def _convert(path: Path, kind: Kind, copy: IO[bytes], watch: Watch) -> None:
    with path.open("rb") as file, unpacked(path, file) as source:
        if kind == "jsonl":
            while piece := source.read(_PIECE):
                watch(file.tell())
                copy.write(piece)
            watch(file.tell())
            return
        written, line = 0, 1
        for number, raw, value, error in READERS[kind](path, source):
            if written >= _PIECE:
                watch(file.tell())
                written = 0
            copy.write(b"\n" * (number - line))
            written += copy.write(_line(raw, value, error))
            line = number + 1
        watch(file.tell())


def _line(raw: bytes, value: object, error: RowError | None) -> bytes:
    if error is not None:
        return BROKEN + msgspec.json.encode(BrokenRow(error.code, error.field, error.message, raw)) + b"\n"
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return _line(raw, None, RowError("too_deep", "", "the row is nested too deeply to be read"))


def _plain(value: object) -> object:
    """A value that JSON has no word for."""
    if isinstance(value, date | time):
        return value.isoformat()
    return {"base64": msgspec.to_builtins(value)} if isinstance(value, bytes) else str(value)


@contextmanager
def unpacked(path: Path, file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The bytes of an open file without its packing.

    Raises:
        DatasetParseError: it is damaged or cut off.
    """
    ending = path.suffix.lower()
    damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    source = file
    if ending == ".gz":
        source = cast(IO[bytes], gzip.GzipFile(fileobj=file))
    elif ending == ".zst":
        import zstandard

        damaged = (EOFError, zstandard.ZstdError)
        source = cast(IO[bytes], io.BufferedReader(_Frames(file), _PIECE))
    try:
        yield source
    except damaged as error:
        raise DatasetParseError(
            f"{path} cannot be unpacked: {error}",
            hint="the file is cut off or is no packed file: fetch it again, or check its ending",
            details={"path": str(path)},
        ) from error


class _Frames(io.RawIOBase):
    """Reads frame after frame of a Zstandard file; unlike the library's own reader it notices a frame that is cut off.

    Raises:
        EOFError: the file ends within a frame.
    """

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._frame: Any = None
        self._waiting = b""
        """Unpacked bytes that nobody has taken yet."""
        self._rest = b""
        """Packed bytes after the end of a frame."""

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, room: Any) -> int:
        """Fill ``room`` with unpacked bytes; 0 at the end."""
        if not self._waiting:
            self._waiting = self._unpack()
        count = min(len(room), len(self._waiting))
        room[:count], self._waiting = self._waiting[:count], self._waiting[count:]
        return count

    def _unpack(self) -> bytes:
        import zstandard

        while True:
            data = self._rest or self._packed.read(_ZST_PIECE)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file is cut off")
                return b""
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            piece = cast(bytes, self._frame.decompress(data))
            self._rest = b""
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
            if piece:
                return piece


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
