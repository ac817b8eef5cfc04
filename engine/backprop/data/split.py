"""Rows for training and rows held out: by seed and content, so that nothing leaks across.

Rows of equal or nearly equal content stay on one side, and where a row goes depends on its content, not on its place:
held-out rows stay held out when the file grows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from backprop.core.errors import InvalidSettingError
from backprop.core.methods import Rows
from backprop.data.dedup import THRESHOLD, clusters
from backprop.data.examples import Reader, Usable, beside, line_of, refuse_existing, whole_file
from backprop.data.line_index import Cancelled, Progress
from backprop.data.reader import open_source

Places = npt.NDArray[np.uint64]
HELD_OUT = 0.05
LEAST, MOST = 16, 512
SEED = 42
"""Of every split whose seed nobody chose: the rows held out in training are the same for all seeds of a run."""


class Split(Struct, frozen=True):
    """How the rows that a run is evaluated on are chosen from its own: by seed, and by what they say.

    ``by_tokens`` is the rule of earlier versions, whose runs and forks keep it: by the tokens that were left of a row.
    """

    seed: int = SEED
    by_tokens: bool = False


def places(keys: Iterable[bytes], seed: int = SEED) -> Places:
    """Where the content of each row stands among all that could be: those with the lowest places are held out."""
    return np.array([_place(key, seed) for key in keys], dtype=np.uint64)


def _place(key: bytes, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, key=str(seed).encode()[:64]).digest(), "big")


def held_out_size(rows: int, ratio: float) -> int:
    """How many of ``rows`` are held out: the nearest whole number, at least one, and one row left to train.

    Raises:
        InvalidSettingError: the ratio is not between 0 and 1, or there are fewer than two rows.
    """
    _check_ratio(ratio)
    if rows < 2:
        raise InvalidSettingError(
            f"{rows} row{'s' if rows != 1 else ''} cannot be split", hint="a split needs at least two rows"
        )
    return min(max(round(rows * ratio), 1), rows - 1)


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise InvalidSettingError(
            f"the held-out share must lie between 0 and 1, not {ratio}",
            hint="0.1 holds out a tenth",
            details={"field": "ratio"},
        )


def split_rows(
    keys: Sequence[bytes], ratio: float, seed: int = SEED, groups: Sequence[Sequence[int]] = ()
) -> list[int]:
    """Places of the rows to hold out, in order.

    Args:
        keys: one per row, equal for rows of equal content (``dedup.content_key``).
        ratio: share of the rows to hold out.
        groups: rows that belong on one side besides (near duplicates).

    Raises:
        InvalidSettingError: see ``held_out_size``; or all rows belong together, so that there is nothing to split.
    """
    wanted = held_out_size(len(keys), ratio)
    together = clusters(keys, groups)
    together.sort(key=lambda members: _place(keys[members[0]], seed))
    chosen: list[int] = []
    for members in together:
        if len(chosen) + len(members) <= wanted:
            chosen += members
    if not chosen:
        if len(together) == 1:
            raise InvalidSettingError("all rows say the same: there is nothing to split", hint="add different rows")
        chosen = min(together, key=len)
    return sorted(chosen)


def held_out(of: Places, setting: str) -> npt.NDArray[np.bool_]:
    """Which samples are held out, as ``held_out`` says: ``auto``, ``none`` or a share (``core.locate.held_out_file``).

    A row is held out when the hash of its content falls below the share: adding rows moves none of the others. Only
    where ``auto`` gives fewer than ``LEAST`` or more than ``MOST`` different contents, those with the lowest hashes are
    taken. Of few rows no more than a tenth is held out (one row at least; of a single row, none).

    Args:
        of: the place of each sample (``places``); those of one content are on one side.
    """
    if setting == "none":
        return np.zeros(len(of), dtype=np.bool_)
    if setting == "auto":
        return _below(of, HELD_OUT, LEAST, MOST)
    return _below(of, float(setting), 1, len(of))


def _below(of: Places, fraction: float, least: int, most: int) -> npt.NDArray[np.bool_]:
    ordered = np.sort(of)  # np.unique takes nine times as long on hashes
    different = ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(of)]]
    if len(different) < 2:
        return np.zeros(len(of), dtype=np.bool_)
    below = int(np.searchsorted(different, np.uint64(math.ceil(fraction * 2**64))))
    least = min(least, max(1, len(different) // 10))
    chosen: npt.NDArray[np.bool_] = of <= different[min(max(below, least), most, len(different) - 1) - 1]
    return chosen


class SplitResult(Struct, kw_only=True):
    """The answer of ``backprop data split``."""

    path: str
    train: str
    held_out: str
    rows: int
    train_rows: int
    held_out_rows: int
    left_out: dict[str, int]
    """Rows in neither file, by the code of what is wrong with them."""
    seed: int
    kept_together: int
    """Rows that have a duplicate or near duplicate, all of them on its side."""
    notes: list[str]
    """What is unusual about how the dataset is read."""


def split_file(
    path: str | Path,
    *,
    ratio: float = 0.1,
    seed: int = 42,
    mapping: Mapping[str, str] | None = None,
    near: float | None = THRESHOLD,
    train: Path | None = None,
    held_out: Path | None = None,
    rows: Rows = "conversation",
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> SplitResult:
    """Write a train and a held-out file beside the original.

    Args:
        near: overlap from which rows are kept on one side; ``None`` looks at equal rows alone.
        train, held_out: where to write; ``data.train.jsonl`` and ``data.held-out.jsonl`` by default.
        rows: what the method learns from that is to be trained with: what it cannot use is in neither file.

    Raises:
        InputError: a file is in the way.
        InvalidSettingError: see ``split_rows``.
    """
    _check_ratio(ratio)
    with open_source(path, progress=progress, cancelled=cancelled) as source:
        named = Path(path)
        train = train or beside(named, "train")
        held_out = held_out or beside(named, "held-out")
        refuse_existing(train, held_out)
        usable = Usable(Reader(source, mapping, progress, cancelled, rows), near)
        groups = usable.near_groups()
        chosen = {usable.places[i] for i in split_rows(usable.keys, ratio, seed, groups)}
        wanted = set(usable.places)
        with whole_file(train) as train_out, whole_file(held_out) as held_out_out:
            for index, row in enumerate(source):
                if index in wanted:
                    (held_out_out if index in chosen else train_out).write(line_of(row))
        return SplitResult(
            path=str(path),
            train=str(train),
            held_out=str(held_out),
            rows=usable.rows,
            train_rows=len(wanted) - len(chosen),
            held_out_rows=len(chosen),
            left_out=dict(usable.left_out),
            seed=seed,
            notes=source.notes,
            kept_together=sum(len(members) for members in clusters(usable.keys, groups) if len(members) > 1),
        )
