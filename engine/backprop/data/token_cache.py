"""Tokenised datasets on disk: flat arrays that are mapped, not read, and the summary that goes with them.

A folder per key; it is written aside and renamed, and believed only when its arrays have the hashes that its summary
names.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from backprop.core.errors import BackpropError
from backprop.core.events import DatasetPrepared
from backprop.core.files import flush_tree, sha256
from backprop.core.methods import Rows
from backprop.core.refused import refusal

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Longs = npt.NDArray[np.int64]
Sequence: TypeAlias = tuple[Ids, Flags]
"""Ids of one sequence, and for each whether predicting it is in the loss."""

_ARRAYS: dict[str, type[np.generic]] = {
    "ids": np.int32,
    "trained": np.bool_,
    "offsets": np.int64,
    "lines": np.int64,
    "contents": np.int64,
}
_LABELS: dict[str, type[np.generic]] = {"labels": np.bool_}


class Pair(NamedTuple):
    """A row of pairs: two sequences that begin with the same prompt."""

    chosen: Sequence
    rejected: Sequence


class Judged(NamedTuple):
    """A row of feedback."""

    row: Sequence
    good: bool


def _arrays(rows: Rows) -> dict[str, type[np.generic]]:
    return _ARRAYS | _LABELS if rows == "feedback" else _ARRAYS


class Prepared:
    """Tokenised rows, as they are trained.

    Attributes:
        rows: what one row is: a conversation, a pair, or an answer with a label.
        width: sequences of a row: 2 of a pair, else 1.
        ids: token ids of all sequences, flat, int32.
        trained: for each token, whether predicting it is in the loss, flat, bool.
        offsets: sequence ``i`` is ``ids[offsets[i]:offsets[i + 1]]``; int64, ``width * len + 1`` values.
        labels: whether the answer of each row is good, bool; empty where rows have no label.
        lines: the file's line (or row number, from 1) that each row comes from, int64.
        contents: hash of what that row says, the same for equal rows in every process, int64.
        summary: the counted pre-flight, not yet stamped with run, sequence number and time.
        key: names data, tokenizer, template, code and options together; hexadecimal. It says where the arrays are kept.
        fingerprint: names the samples themselves (ids, trained flags, where each ends, and labels), whatever file,
            cache or code they come from; hexadecimal. It says what is trained.
    """

    def __init__(
        self, folder: Path, summary: DatasetPrepared, key: str, fingerprint: str, rows: Rows = "conversation"
    ) -> None:
        self.folder = folder
        self.rows: Rows = rows
        self.width = 2 if rows == "pairs" else 1
        self.summary = summary
        self.key = key
        self.fingerprint = fingerprint
        arrays = {name: _map(folder, name, kind) for name, kind in _arrays(rows).items()}
        self.ids: Ids = arrays["ids"]
        self.trained: Flags = arrays["trained"]
        self.offsets: Longs = arrays["offsets"]
        self.lines: Longs = arrays["lines"]
        self.contents: Longs = arrays["contents"]
        self.labels: Flags = arrays.get("labels", np.empty(0, np.bool_))

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def lengths(self) -> Longs:
        """Tokens of each row: of a pair, those of both sides."""
        lengths: Longs = np.diff(self.offsets[:: self.width])
        return lengths

    def sequences(self, index: int) -> list[Sequence]:
        """The sequences of one row, as views."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        edges = self.offsets[self.width * index : self.width * (index + 1) + 1].tolist()
        return [(self.ids[start:end], self.trained[start:end]) for start, end in pairwise(edges)]

    def row(self, index: int) -> Any:
        """One row as its method takes it: a ``Sequence``, a ``Pair`` or a ``Judged``."""
        sequences = self.sequences(index)
        match self.rows:
            case "pairs":
                return Pair(*sequences)
            case "feedback":
                return Judged(sequences[0], bool(self.labels[index]))
        return sequences[0]


class _Record(Struct):
    """``summary.json``: what the folder holds, and the SHA-256 of each of its arrays."""

    summary: DatasetPrepared
    sha256: dict[str, str]
    fingerprint: str
    rows: Rows = "conversation"


def _map(folder: Path, name: str, kind: type[np.generic]) -> npt.NDArray[Any]:
    path = folder / f"{name}.bin"
    if path.stat().st_size == 0:
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")


class Writer:
    """Takes rows one by one and keeps none of them in memory."""

    def __init__(self, root: Path, key: str, rows: Rows = "conversation") -> None:
        self._rows: Rows = rows
        self._arrays = _arrays(rows)
        self._final = root / key
        self._key = key
        try:
            root.mkdir(parents=True, exist_ok=True)
            _sweep(root)
            self._folder = Path(tempfile.mkdtemp(prefix=f".{key[:16]}.", suffix=".partial", dir=root))
            self._files = {name: (self._folder / f"{name}.bin").open("wb") for name in self._arrays}
        except OSError as error:
            raise self._failed(error) from error
        self._hashes = {name: hashlib.sha256() for name in self._arrays}
        self._end = 0
        self._write("offsets", [0])

    def add(self, line: int, content: int, sequences: list[Sequence], good: bool | None = None) -> None:
        """Write one row, which comes from ``line`` of the file and has this hash of its content."""
        for ids, trained in sequences:
            self._end += len(ids)
            self._write("ids", ids)
            self._write("trained", trained)
            self._write("offsets", [self._end])
        self._write("lines", [line])
        self._write("contents", [content])
        if self._rows == "feedback":
            self._write("labels", [bool(good)])

    def _write(self, name: str, values: npt.ArrayLike) -> None:
        data = np.asarray(values, dtype=self._arrays[name]).tobytes()
        try:
            self._files[name].write(data)
        except OSError as error:
            raise self._failed(error) from error
        self._hashes[name].update(data)

    def finish(self, summary: DatasetPrepared) -> Prepared:
        """Write the rest, flush everything and give the folder its name.

        Raises:
            BackpropError: as every write, the cache cannot be written (``RUNTIME_DISK_FULL``, ``RUNTIME_IO_FAILED``).
        """
        try:
            return self._finish(summary)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> BackpropError:
        what, otherwise = f"tokens cannot be kept in {self._final.parent}", "name another cache with XDG_CACHE_HOME"
        return refusal(error, what, BackpropError, otherwise=otherwise)

    def _finish(self, summary: DatasetPrepared) -> Prepared:
        for file in self._files.values():
            file.close()
        samples = b"".join(self._hashes[name].digest() for name in ("ids", "trained", "offsets"))
        if self._rows != "conversation":
            samples += self._rows.encode() + (self._hashes["labels"].digest() if "labels" in self._hashes else b"")
        hashes = {name: made.hexdigest() for name, made in self._hashes.items()}
        record = _Record(summary, hashes, hashlib.sha256(samples).hexdigest(), self._rows)
        (self._folder / "summary.json").write_bytes(msgspec.json.encode(record))
        flush_tree(self._folder)
        self._promote()
        return Prepared(self._final, summary, self._key, record.fingerprint, self._rows)

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
            with suppress(OSError):  # what it still holds has no room, and is not wanted
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def load(root: Path, key: str) -> Prepared | None:
    """The cached dataset of this key; ``None`` where there is none, or what is there is broken."""
    folder = root / key
    try:
        record = msgspec.json.decode((folder / "summary.json").read_bytes(), type=_Record)
        if any(sha256(folder / f"{name}.bin") != record.sha256[name] for name in _arrays(record.rows)):
            return None
        prepared = Prepared(folder, record.summary, key, record.fingerprint, record.rows)
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
