"""The index over all runs: SQLite in the user's data directory.

It only saves reading. Run directories are the truth: a row whose journal changed since it was written is read again,
a directory that is gone drops out, and a damaged index is set aside and started anew.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from math import isnan
from pathlib import Path

import msgspec
from msgspec import Struct

from backprop.core.errors import RunError
from backprop.core.paths import data_dir
from backprop.runs.directory import RunDirectory, is_run
from backprop.runs.state import RunState, read_run

_VERSION = 1


class RunSummary(Struct, kw_only=True):
    """One line of ``list-runs`` (SPEC section 13). Times are seconds since the epoch."""

    run_id: str
    status: str
    kind: str
    model: str
    dataset: str
    method: str
    mode: str
    steps: int
    total_steps: int
    final_loss: float | None
    started_at: float
    duration_seconds: float
    output_path: str
    path: str
    """The run's directory."""
    name: str = ""
    losses: list[float | None] = []
    """At most 60 values for a sparkline."""
    damage: list[str] = []


def summarise(state: RunState) -> RunSummary:
    """The line of ``list-runs`` for a run."""
    config = state.config
    return RunSummary(
        run_id=state.run_id,
        status=state.status,
        kind=state.kind,
        model=str(config.get("model", "")),
        dataset=str(config.get("data", "")),
        method=str(config.get("method", "sft")),
        mode=state.model.mode if state.model else str(config.get("mode", "")),
        steps=state.step,
        total_steps=state.total_steps,
        final_loss=state.final_loss,
        started_at=state.started_at,
        duration_seconds=state.duration_seconds,
        output_path=state.output_path,
        path=state.path,
        name=str(config.get("run_name") or ""),
        losses=thin(list(state.curves.loss), 60),
        damage=state.damage,
    )


def thin(values: list[float], most: int) -> list[float | None]:
    """At most ``most`` values spread evenly, the last always among them; NaN becomes ``None``."""
    if len(values) > most:
        values = [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
    return [None if isnan(v) else v for v in values]


class RunIndex:
    """Open with ``with RunIndex() as index``."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or data_dir() / "runs.db"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = self._open()
        except sqlite3.OperationalError:
            raise  # busy or no room: nothing is wrong with the file
        except sqlite3.DatabaseError:
            self._path.replace(self._path.with_suffix(f".damaged-{int(time.time())}"))
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=10, isolation_level=None)
        try:
            db.execute("pragma synchronous=off")  # a lost index is made again
            if db.execute("pragma user_version").fetchone()[0] != _VERSION:
                self._make(db)
        except BaseException:
            db.close()
            raise
        return db

    def _make(self, db: sqlite3.Connection) -> None:
        """Make the tables, unless another process or thread did so while this one waited for its turn."""
        db.execute("begin immediate")
        if db.execute("pragma user_version").fetchone()[0] != _VERSION:
            db.execute("drop table if exists runs")
            db.execute("create table runs (path text primary key, run_id text, started real, stamp text, summary blob)")
            db.execute("create index runs_by_id on runs (run_id)")
            db.execute(f"pragma user_version={_VERSION}")
        db.execute("commit")

    def __enter__(self) -> RunIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, path: Path) -> None:
        """Remember the run in ``path``; it is read when it is asked for."""
        path = path.absolute()
        try:
            started = (path / "run.json").stat().st_mtime  # until it is read: runs are listed by their start
        except OSError:
            started = time.time()
        self._db.execute("insert or ignore into runs values (?, ?, ?, '', null)", (str(path), path.name, started))

    def scan(self, output_dir: Path) -> None:
        """Remember every run directly under ``output_dir``."""
        with contextlib.suppress(OSError):
            for path in output_dir.iterdir():
                if is_run(path):
                    self.add(path)

    def remove(self, path: Path) -> None:
        """Forget the run in ``path``; its directory stays."""
        self._db.execute("delete from runs where path = ?", (str(path.absolute()),))

    def summaries(self, status: str | None = None, limit: int | None = None) -> list[RunSummary]:
        """Runs, the newest first; those with ``status`` only, at most ``limit``."""
        found = []
        for summary in self._all():
            if status is None or summary.status == status:
                found.append(summary)
                if limit is not None and len(found) == limit:
                    break
        return found

    def _all(self) -> Iterator[RunSummary]:
        rows = self._db.execute("select path, stamp, summary from runs order by started desc, rowid desc").fetchall()
        for path_text, stamp, blob in rows:
            path = Path(path_text)
            if not is_run(path):
                self.remove(path)
                continue
            now = _stamp(path)
            if blob is not None and stamp == now:
                yield msgspec.json.decode(blob, type=RunSummary)
                continue
            summary = summarise(read_run(path))
            # A living run is read again next time: its end need not change the journal (kill -9).
            keep = "" if summary.status in ("starting", "running", "paused") else now
            self._db.execute(
                "update runs set run_id = ?, started = ?, stamp = ?, summary = ? where path = ?",
                (summary.run_id, summary.started_at, keep, msgspec.json.encode(summary), path_text),
            )
            yield summary

    def find(self, prefix: str) -> Path:
        """The directory of the run whose id starts with ``prefix``. A path to a run directory is taken as it is.

        Raises:
            RunError: none or several fit; several are named.
        """
        if "/" in prefix and is_run(Path(prefix)):
            return Path(prefix)
        rows = self._db.execute(
            "select path from runs where substr(run_id, 1, ?) = ? order by started desc", (len(prefix), prefix)
        ).fetchall()
        found = [Path(row[0]) for row in rows if prefix and is_run(Path(row[0]))]
        exact = [path for path in found if path.name == prefix]
        if len(exact) == 1 or len(found) == 1:
            return (exact or found)[0]
        if not found:
            raise RunError(f"no run has an id that starts with {prefix!r}", hint="`backprop list-runs` shows the runs")
        names = ", ".join(path.name for path in found[:5])
        raise RunError(f"{prefix!r} fits {len(found)} runs: {names}", hint="give more of the run id")


def _stamp(path: Path) -> str:
    """Changes whenever the run's files or the life of its engine do."""
    directory = RunDirectory(path)
    parts = []
    for file in (directory.journal, directory.record):
        try:
            status = file.stat()
            parts.append(f"{status.st_size}:{status.st_mtime_ns}")
        except OSError:
            parts.append("-")
    return " ".join([*parts, "alive" if directory.is_alive() else "gone"])
