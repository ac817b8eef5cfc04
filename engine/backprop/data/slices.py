"""The rows of each run of a session: a dataset for each, or parts of one, with some rows of earlier runs.

    data/slices.json            what follows, run by run (``Slices``)
         run-01.jsonl           the rows that run 1 trains
         held-out-01.jsonl      those that are held out of its part of the data
         held-out.jsonl         all that are held out

A row that is held out of one part is trained by no run, also where another dataset has a row of the same content. Parts
of one dataset follow each other in the order of the file; where they ask for more rows than there are, they begin again
at its first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from backprop.core.errors import DatasetValidationError, InvalidSettingError
from backprop.core.files import new_folder, read_json
from backprop.core.settings import RunConfig
from backprop.data import split
from backprop.data.example import RowError
from backprop.data.examples import Reader, line_of
from backprop.data.line_index import Cancelled
from backprop.data.reader import Source, open_source

INDEX = "slices.json"


class Slice(Struct, kw_only=True):
    """The rows of one run. ``held_out`` is empty where there are none."""

    data: str
    """The dataset that they are from."""
    train: str
    held_out: str = ""
    rows: int
    replayed: int = 0
    held_out_rows: int = 0


class Slices(Struct, kw_only=True):
    """``slices.json``; file names are those in the same folder."""

    runs: list[Slice]
    again: bool
    """Whether rows are in more than one part, because there were not enough."""


def read(folder: Path) -> Slices | None:
    """What ``write`` wrote into ``folder``; ``None`` where it never ended."""
    return read_json(folder / INDEX, Slices) if (folder / INDEX).is_file() else None


def windows(pool: int, size: int, runs: int, replay: float = 0.0) -> list[list[int]]:
    """Places in a pool of rows of those that are new in each run: one part after another, round again at the end.

    Args:
        size: rows of a run, those of earlier runs included, of which the first has none.

    Raises:
        InvalidSettingError: the pool has not so many.
    """
    if not 0 < size <= pool:
        raise InvalidSettingError(
            f"samples: a run of {size} rows, and there are {pool} to train",
            hint="give fewer --samples or --runs, or more rows",
            details={"field": "samples"},
        )
    found, at = [], 0
    for run in range(runs):
        new = new_rows(size, run, replay)
        found.append([place % pool for place in range(at, at + new)])
        at = (at + new) % pool
    return found


def new_rows(size: int, run: int, replay: float) -> int:
    """How many of a run's ``size`` rows are new; ``run`` counts from 0, and the first has no earlier ones."""
    return size - (int(size * replay) if run else 0)


def replayed_rows(new: int, replay: float, samples: int | None) -> int:
    """How many rows of earlier runs go with ``new`` ones, so that they are the share ``replay`` of all."""
    return int(samples * replay) if samples else round(new * replay / (1 - replay))


class _Rows:
    """The usable rows of one dataset: where they are, what they say, and which are held out."""

    def __init__(self, source: Source, config: RunConfig, look: Cancelled) -> None:
        """Read it.

        Raises:
            DatasetValidationError: rows cannot be used, and are not to be left out; the first are named by their lines.
        """
        self.source = source
        self.places: list[int] = []
        self.keys: list[bytes] = []
        bad: list[str] = []
        for read in Reader(source, config.mapping or None, cancelled=look):
            if isinstance(read.became, RowError):
                bad.append(f"{source.unit} {read.row.line}: {read.became}")
            else:
                self.places.append(read.index)
                self.keys.append(read.key)
        if (bad and not config.skip_bad) or not self.places:
            what = f"{source.path}: {len(bad)} of {len(bad) + len(self.places)} rows cannot be used; "
            hint = "train on the others with --skip-bad, or repair them: `backprop validate` lists them all"
            details = {"path": str(source.path), "remedy": {"skip_bad": True}}
            raise DatasetValidationError(what + "; ".join(bad[:3]), hint=hint, details=details)
        self.held_out = split.held_out(split.places(self.keys), config.held_out)

    def pool(self, taken: set[bytes]) -> list[int]:
        """The rows that may be trained, as positions in ``places``."""
        return [i for i, key in enumerate(self.keys) if key not in taken]

    def held_out_near(self, pool: Sequence[int], window: Sequence[int]) -> list[int]:
        """The held-out rows that stand among those of a window; all where none does."""
        every = np.flatnonzero(self.held_out)
        before = np.searchsorted(np.array(pool, dtype=np.int64), every)
        near = every[np.isin(before, np.array(window))]
        return (near if len(near) else every).tolist()  # type: ignore[no-any-return]

    def line(self, i: int) -> bytes:
        return line_of(self.source.row(self.places[i]))


def write(
    folder: Path, files: Sequence[str], runs: int, config: RunConfig, *, replay: float, look: Cancelled
) -> Slices:
    """Write the rows of each run into ``folder``, which is there whole or not at all.

    Args:
        files: one dataset, of which each run takes a part, or one for each run.
        config: says how many rows a run has at most (``samples``; open, all there are), those of earlier runs included,
            how many are held out, and the seed of the choice of earlier rows.
        replay: share of a run's rows that are of earlier ones.
        look: asked often; reading then ends with ``OperationCancelledError``.

    Raises:
        DatasetError: a dataset cannot be read, or has rows that cannot be used and ``skip_bad`` is off.
        InvalidSettingError: there are not enough rows.
    """
    samples = config.samples
    with ExitStack() as opened:
        every = [_Rows(opened.enter_context(open_source(file, cancelled=look)), config, look) for file in files]
        taken = {rows.keys[i] for rows in every for i in np.flatnonzero(rows.held_out)}
        pools = [rows.pool(taken) for rows in every]
        share = replay if samples else 0.0  # of as many as there are, earlier rows come on top
        if len(every) == 1:
            new = windows(len(pools[0]), samples or len(pools[0]) // runs, runs, share)
        else:
            sizes = [min(samples or len(pool), len(pool)) for pool in pools]
            new = [list(range(new_rows(size, run, share))) for run, size in enumerate(sizes)]
        found = Slices(runs=[], again=False)
        seen, held = list[tuple[int, int]](), dict[int, set[int]]()
        with new_folder(folder) as target, (target / "held-out.jsonl").open("wb") as all_held_out:
            for run, window in enumerate(new):
                at = run % len(every)
                rows, pool = every[at], pools[at]
                chosen = [(at, pool[place]) for place in window]
                others = sorted(set(seen).difference(chosen))
                many = replayed_rows(len(chosen), replay, samples) if replay else 0
                again = random.Random(f"{config.seed} {run}").sample(others, min(many, len(others)))
                near = rows.held_out_near(pool, window if len(every) == 1 else range(len(pool) + 1))
                part = Slice(data=files[at], train=f"run-{run + 1:02d}.jsonl", rows=len(chosen) + len(again))
                part.replayed, part.held_out_rows = len(again), len(near)
                part.held_out = f"held-out-{run + 1:02d}.jsonl" if near else ""
                (target / part.train).write_bytes(b"".join(every[which].line(i) for which, i in chosen + again))
                if near:
                    (target / part.held_out).write_bytes(b"".join(map(rows.line, near)))
                found.again = found.again or not {*seen}.isdisjoint(chosen)
                found.runs.append(part)
                held.setdefault(at, set()).update(near)
                seen += chosen
            for at, those in held.items():
                all_held_out.writelines(map(every[at].line, sorted(those)))
            (target / INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2))
    return found
