"""Tokenised datasets on disk: flat arrays that are mapped, not read, and the summary that goes with them.

A folder per key; it is written aside and renamed, and believed only when its arrays have the hashes that its summary
names.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from backprop.core.events import DatasetPrepared
from backprop.core.files import flush_tree, sha256

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Longs = npt.NDArray[np.int64]

_ARRAYS: dict[str, type[np.generic]] = {
    "ids": np.int32,
    "trained": np.bool_,
    "offsets": np.int64,
    "lines": np.int64,
    "contents": np.int64,
}


Sequence: TypeAlias = tuple[Ids, Flags]


class Pair(NamedTuple):
    """A row of preferences: its two sides."""

    chosen: Sequence
    rejected: Sequence


class Judged(NamedTuple):
    """A row of feedback and its label."""

    row: Sequence
    good: bool


class Prepared:
    """Tokenised rows, as they are trained.

    Attributes:
        ids: token ids of all samples, flat, int32.
        trained: for each token, whether predicting it is in the loss, flat, bool.
        offsets: sample ``i`` is ``ids[offsets[i]:offsets[i + 1]]``; int64, ``len + 1`` values.
        lines: the file's line (or row number, from 1) that each sample comes from, int64.
        contents: hash of what that row says, the same for equal rows in every process, int64.
        summary: the counted pre-flight, not yet stamped with run, sequence number and time.
        key: names data, tokenizer, template, code and options together; hexadecimal. It says where the arrays are kept.
        fingerprint: names the samples themselves (ids, trained flags and where each ends), whatever file, cache or
            code they come from; hexadecimal. It says what is trained.
    """

    def __init__(self, folder: Path, summary: DatasetPrepared, key: str, fingerprint: str) -> None:
        self.folder = folder
        self.summary = summary
        self.key = key
        self.fingerprint = fingerprint
        self.ids: Ids = _map(folder, "ids")
        self.trained: Flags = _map(folder, "trained")
        self.offsets: Longs = _map(folder, "offsets")
        self.lines: Longs = _map(folder, "lines")
        self.contents: Longs = _map(folder, "contents")

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def lengths(self) -> Longs:
        """Tokens of each sample."""
        lengths: Longs = np.diff(self.offsets)
        return lengths

    def row(self, index: int) -> tuple[Ids, Flags]:
        """Ids and trained flags of one sample, as views."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.ids[start:end], self.trained[start:end]


class _Record(Struct):
    """``summary.json``: what the folder holds, and the SHA-256 of each of its arrays."""

    summary: DatasetPrepared
    sha256: dict[str, str]
    fingerprint: str


def _map(folder: Path, name: str) -> npt.NDArray[Any]:
    path = folder / f"{name}.bin"
    kind = _ARRAYS[name]
    if path.stat().st_size == 0:
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")


class Writer:
    """Takes samples one by one and keeps none of them in memory."""

    def __init__(self, root: Path, key: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        self._final = root / key
        self._key = key
        self._folder = Path(tempfile.mkdtemp(prefix=f".{key[:16]}.", suffix=".partial", dir=root))
        self._files = {name: (self._folder / f"{name}.bin").open("wb") for name in _ARRAYS}
        self._hashes = {name: hashlib.sha256() for name in _ARRAYS}
        self._end = 0
        self._write("offsets", [0])

    def add(self, line: int, content: int, ids: Ids, trained: Flags) -> None:
        """Write one sample, which comes from ``line`` of the file, a row with this hash of its content."""
        self._end += len(ids)
        self._write("ids", ids)
        self._write("trained", trained)
        self._write("offsets", [self._end])
        self._write("lines", [line])
        self._write("contents", [content])

    def _write(self, name: str, values: npt.ArrayLike) -> None:
        data = np.asarray(values, dtype=_ARRAYS[name]).tobytes()
        self._files[name].write(data)
        self._hashes[name].update(data)

    def finish(self, summary: DatasetPrepared) -> Prepared:
        """Write the rest, flush everything and give the folder its name."""
        for file in self._files.values():
            file.close()
        samples = b"".join(self._hashes[name].digest() for name in ("ids", "trained", "offsets"))
        hashes = {name: made.hexdigest() for name, made in self._hashes.items()}
        record = _Record(summary, hashes, hashlib.sha256(samples).hexdigest())
        (self._folder / "summary.json").write_bytes(msgspec.json.encode(record))
        flush_tree(self._folder)
        self._promote()
        return Prepared(self._final, summary, self._key, record.fingerprint)

    def _promote(self) -> None:
        """Rename into place. Another process may have finished the same work: its result is as good."""
        try:
            self._folder.rename(self._final)
        except OSError:
            if load(self._final.parent, self._key) is None:
                shutil.rmtree(self._final, ignore_errors=True)
                self._folder.rename(self._final)
            else:
                self.discard()

    def discard(self) -> None:
        """Leave nothing behind."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def load(root: Path, key: str) -> Prepared | None:
    """The cached dataset of this key; ``None`` where there is none, or what is there is broken."""
    folder = root / key
    try:
        record = msgspec.json.decode((folder / "summary.json").read_bytes(), type=_Record)
        if any(sha256(folder / f"{name}.bin") != record.sha256[name] for name in _ARRAYS):
            return None
        prepared = Prepared(folder, record.summary, key, record.fingerprint)
    except (OSError, msgspec.DecodeError, KeyError):
        return None
    prepared.summary.cached = True
    return prepared


def _sweep(root: Path) -> None:
    """Remove what killed processes left half written. A living one writes to its folder at least once a day."""
    for folder in root.glob(".*.partial"):
        try:
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        except OSError:
            continue
        if time.time() - newest > 24 * 3600:
            shutil.rmtree(folder, ignore_errors=True)
