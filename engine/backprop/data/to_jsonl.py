"""Packed files: unpacked once into the cache, so that rows can be reached at random.

The copy is written aside and renamed when it is whole: a kill at any moment leaves no half-made copy in use.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import IO, Any, cast

from backprop.core import paths
from backprop.core.errors import BackpropError, DatasetParseError, OperationCancelledError
from backprop.data.line_index import Cancelled, Progress

PACKED = (".gz", ".zst")
_PIECE = 1024 * 1024
_ZST_PIECE = 16 * 1024
"""Packed bytes that are unpacked at once: what they become is held in memory."""


def unpacked(path: Path, progress: Progress | None = None, cancelled: Cancelled | None = None) -> Path:
    """The unpacked copy of ``path`` (``.gz`` or ``.zst``), made where it is missing or older than the file.

    Args:
        progress: called with packed bytes read and their total.

    Raises:
        DatasetParseError: the file is damaged or cut off.
        OperationCancelledError: ``cancelled`` said stop.
        BackpropError: the cache cannot be written (``RUNTIME_IO_FAILED``).
    """
    stat = path.stat()
    identity = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"
    key = hashlib.blake2b(identity.encode(errors="surrogateescape"), digest_size=12).hexdigest()
    folder = paths.cache_dir() / "unpacked"
    target = folder / f"{key}-{path.stem}"
    if target.exists():
        return target
    partial = folder / f"{key}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        _unpack(path, partial, progress, cancelled)
        partial.replace(target)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise BackpropError(
            f"{path} could not be unpacked into {folder}: {error.strerror or error}",
            hint="free some space there, or unpack the file yourself and name the unpacked one",
            code="RUNTIME_IO_FAILED",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _unpack(path: Path, partial: Path, progress: Progress | None, cancelled: Cancelled | None) -> None:
    total = path.stat().st_size
    with path.open("rb") as packed, _reader(path, packed) as source, partial.open("wb") as copy:
        while piece := _read(path, source):
            if cancelled is not None and cancelled():
                raise OperationCancelledError(f"unpacking {path} was stopped")
            copy.write(piece)
            if progress is not None:
                progress(packed.tell(), total)
        copy.flush()
        os.fsync(copy.fileno())


def _reader(path: Path, packed: IO[bytes]) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=packed))
    return cast(IO[bytes], _Frames(packed))


class _Frames:
    """Reads frame after frame of a Zstandard file; unlike the library's own reader it notices a frame that is cut off.

    Raises:
        EOFError: the file ends within a frame.
    """

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._frame: Any = None
        self._rest = b""

    def __enter__(self) -> _Frames:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, size: int) -> bytes:
        """Some unpacked bytes (about ``size`` or fewer, never none before the end)."""
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


def _read(path: Path, source: IO[bytes]) -> bytes:
    if path.suffix.lower() == ".gz":
        return source.read(_PIECE)
    import zstandard

    try:
        return source.read(_PIECE)
    except zstandard.ZstdError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DatasetParseError:
    return DatasetParseError(
        f"{path} cannot be unpacked: {error}",
        hint="the file is cut off or is no packed file: fetch it again, or check its ending",
        details={"path": str(path)},
    )


def _remove_leftovers(folder: Path) -> None:
    """Partial copies of processes that are gone."""
    for leftover in folder.glob("*.partial"):
        pid = leftover.name.split(".")[-2]
        if pid.isdigit() and not _alive(int(pid)):
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
