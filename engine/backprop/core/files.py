"""Files and folders that are there whole or not at all, their SHA-256, and locks between processes.

Everything is written aside, flushed to the disk and put in place by one rename: after a crash or a power cut the old
or the new one is there. Whatever cannot be written raises ``OSError``; nothing is left behind then. Where writing is
confined (``core.confinement``), what lies beyond is refused first.

What is read may have come from anywhere: it is opened as a regular file or not at all, so that no pipe or device holds
up the reader, and its size and its nesting are bounded.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from backprop.core.confinement import require_writable
from backprop.core.refused import is_full

MOST_BYTES = 16 * 2**20
"""The largest file, and the longest line of a journal, that is read into memory."""
DEEPEST = 64
"""Lists and objects inside each other that JSON may hold."""
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)

HELD = (errno.EWOULDBLOCK, errno.EACCES)
"""Errors of a lock that somebody else holds."""

_ASIDE = re.compile(r"\..+\.\d+\.\d+\.(output|partial)")

_preparing = threading.Lock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}

T = TypeVar("T")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file. A pipe or a device is refused without waiting for whoever is at its other end.

    Raises:
        OSError: it is missing, is no regular file (``strerror`` says what it is), or cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o644)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a file", str(path))
    return descriptor


def read_regular(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: as ``open_regular``, or it is larger.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most // 2**20} MiB", str(path))
    return content


def read_json(path: Path, kind: type[T]) -> T:
    """The JSON document in ``path`` as a ``kind``.

    Raises:
        OSError: as ``read_regular``.
        ValueError: it is no JSON, nested too deep, or no ``kind``; the text says where.
    """
    content = read_regular(path)
    if too_deep(content):
        raise ValueError(f"more than {DEEPEST} lists and objects inside each other")
    return decoder(kind).decode(content)


def decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """What decodes JSON as a ``kind``; where it is there, ``msgspec.convert`` to that is safe too.

    msgspec prepares a struct when it is first asked for, and a second thread that meets it half prepared crashes the
    process: threads ask one after the other.
    """
    with _preparing:
        if kind not in _decoders:
            _decoders[kind] = msgspec.json.Decoder(kind)
        return _decoders[kind]


def too_deep(text: bytes) -> bool:
    """Whether JSON is nested deeper than ``DEEPEST``: decoding it or writing it again would exhaust the stack."""
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return False
    depth = 0
    for found in _BRACKETS.finditer(text):
        match found[0]:
            case b"[" | b"{":
                depth += 1
                if depth > DEEPEST:
                    return True
            case b"]" | b"}":
                depth -= 1
    return False


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when the block ends well."""
    require_writable(path)
    aside = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as file:
            with suppress(OSError):  # some file systems lock nothing
                fcntl.flock(file, fcntl.LOCK_EX)  # as of a ``new_output``
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        if error.filename == str(aside) or (error.filename is None and is_full(error)):
            error.filename = str(path)  # a write does not know whose room it lacks
        raise
    finally:
        aside.unlink(missing_ok=True)
    flush_folder(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Replace ``path`` with ``content``."""
    with new_file(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` with ``value`` as JSON that people can read."""
    write_file(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of ``path`` when the block ends well.

    A folder that was there is moved out of the way first and deleted last; two renames are as near as a file system
    comes to replacing one.
    """
    require_writable(path)
    aside, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        flush_tree(aside)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    flush_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_output(path: Path, *, folder: bool) -> Iterator[Path]:
    """An empty file or folder to fill, which becomes ``path`` when the block ends well; nothing is ever replaced.

    Several processes may write to one name: the first to end has it. What a killed one left is deleted by the next.

    Raises:
        FileExistsError: something is at ``path``, before or after the work.
    """
    require_writable(path)
    _require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_outputs(path.parent)
    aside = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.output")
    aside.mkdir() if folder else aside.touch()
    descriptor = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # dropped by the kernel with the process: whoever sweeps can tell
        yield aside
        if folder:
            flush_tree(aside)
        os.fsync(descriptor)
        _put_in_place(aside, path)
        flush_folder(path.parent)
    finally:
        os.close(descriptor)
        _discard(aside)


def sweep_outputs(folder: Path) -> None:
    """Delete what killed processes left in ``folder`` of a ``new_output`` or ``new_file``; what is written stays."""
    for aside in folder.glob(".*"):
        if not _ASIDE.fullmatch(aside.name):
            continue
        with suppress(OSError):
            descriptor = os.open(aside, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _discard(aside)
            finally:
                os.close(descriptor)


def _require_free(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "exists already", str(path))


def _put_in_place(aside: Path, path: Path) -> None:
    if aside.is_file():
        with suppress(OSError):  # taken, looked at below, or a file system without links
            os.link(aside, path)
            return
    _require_free(path)
    try:
        aside.rename(path)
    except OSError:
        _require_free(path)  # a folder came between
        raise


def _discard(aside: Path) -> None:
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Delete a file or a folder: hidden by a rename first, so that a crash leaves nothing that looks like it."""
    hidden = path.with_name(f".{path.name}.deleting")
    shutil.rmtree(hidden, ignore_errors=True)
    path.replace(hidden)
    flush_folder(hidden.parent)
    if hidden.is_dir():
        shutil.rmtree(hidden)
    else:
        hidden.unlink()


def flush_folder(folder: Path) -> None:
    """Make renames and new names in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Make every file and folder below ``folder`` survive a power cut."""
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    flush_folder(folder)


def sha256(path: Path) -> str:
    """SHA-256 of a regular file's content, in hexadecimal."""
    with os.fdopen(open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def exclusive(lock: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock file ``lock``, made where it is missing, waiting for whoever holds it; its descriptor.

    Raises:
        BlockingIOError: somebody holds it, and ``wait`` is not set.
    """
    require_writable(lock)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def is_held(path: Path, flags: int = 0) -> bool:
    """Whether a process holds ``path`` locked; ``flags`` as for ``os.open``."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in HELD
    finally:
        os.close(descriptor)
    return False
