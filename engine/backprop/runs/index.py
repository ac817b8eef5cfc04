"""The index over all runs: SQLite in the user's data directory.

It only saves reading. Run directories are the truth: a row whose journal changed since it was written is read again,
and a directory that is gone drops out. Nothing fails because of the index: a damaged one, and one of an older version,
is set aside and started anew with the directories that it named; where none can be written, or it is of a newer
version, it is kept in memory. It has no write-ahead log, which network disks do not bear.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from backprop.core.errors import RunError
from backprop.core.files import decoder, exclusive
from backprop.core.paths import data_dir, expand
from backprop.runs.directory import RunDirectory, is_run
from backprop.runs.state import read_run
from backprop.runs.summary import RunSummary, summarise

_VERSION = 1
_TABLE = "create table runs (path text primary key, run_id text, started real, stamp text, summary blob)"
PATIENCE = 1.5
"""Seconds to wait for another process that writes the index."""


class _NewerIndexError(sqlite3.Error):
    """The index was written by a newer version, which may be in use beside this one: it is left as it is."""

    sqlite_errorcode = sqlite3.SQLITE_READONLY


class RunIndex:
    """Open with ``with RunIndex() as index``. No method raises where the index cannot be used; ``trouble`` says so."""

    def __init__(self, path: Path | None = None) -> None:
        self.trouble = ""
        """What a person should know of the index, in one line; empty where all is well."""
        self._path = path
        self._inode = 0
        self._added: dict[str, None] = {}
        """Runs that were named or listed since it was opened: an index that takes its place is told of them."""
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            self._path = self._path or data_dir() / "runs.db"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._inode = _inode(self._path)
            db = _connect(self._path)
            self._inode = self._inode or _inode(self._path)  # it is made only now where there was none
            return db
        except (sqlite3.Error, OSError, RuntimeError) as error:
            return self._instead(error)

    def _instead(self, error: Exception, old: sqlite3.Connection | None = None) -> sqlite3.Connection:
        """An index to go on with: a new one where this is damaged, one in memory where it cannot be used."""
        if self._path is not None and isinstance(error, sqlite3.Error) and _is_damage(error):
            try:
                return self._set_aside(self._path, str(error))
            except (sqlite3.Error, OSError) as again:
                error = again
        where = f" {self._path}" if self._path else ""
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        self._say(f"the index over runs{where} cannot be used ({reason}): going on without it")
        new = _connect(":memory:")
        if old is not None:
            _copy_paths(old, new)
        elif self._path is not None and isinstance(error, _NewerIndexError):
            _copy_file(self._path, new)
        return new

    def _set_aside(self, path: Path, why: str) -> sqlite3.Connection:
        """Start anew with the directories that the old index names, as far as it can be read."""
        with exclusive(path.with_suffix(".lock")):
            if _inode(path) not in (0, self._inode):  # another process was faster
                return _connect(path)
            aside = path.with_suffix(f".set-aside-{time.time_ns()}")
            # What SQLite keeps beside the old file would be applied to the new one.
            for ending in ("", "-journal", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{path}{ending}").replace(f"{aside}{ending}")
            self._say(f"the index over runs was set aside as {aside} ({why}) and is made anew")
            db = _connect(path)
            self._inode = _inode(path)
        _copy_file(aside, db)
        return db

    def _say(self, trouble: str) -> None:
        self.trouble = self.trouble or trouble

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        """Run one statement, on a new index where this one turns out to be damaged, in memory where it cannot write."""
        return self._attempt(lambda db: db.execute(statement, values).fetchall())

    def _attempt(self, work: Callable[[sqlite3.Connection], list[Any]]) -> list[Any]:
        for _ in range(2):
            try:
                return work(self._db)
            except sqlite3.Error as error:
                with contextlib.closing(self._db) as old:
                    self._db = self._instead(error, old)
                with contextlib.suppress(sqlite3.Error):
                    for path in self._added:
                        self._db.execute(*_row(Path(path)))
        return work(self._db)

    def __enter__(self) -> RunIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, path: Path) -> None:
        """Remember the run in ``path``; it is read when it is asked for. One whose name is not UTF-8 is left out."""
        with contextlib.suppress(UnicodeEncodeError):
            self._execute(*_row(path))
            self._added[str(path)] = None

    def scan(self, output_dir: Path) -> None:
        """Remember every run directly under ``output_dir``."""
        home = os.path.join(os.path.realpath(output_dir), "")  # noqa: PTH118 - thousands of names are compared
        rows = self._execute(
            "select path from runs where path >= ? and path < ?", (home, home[:-1] + chr(ord("/") + 1))
        )
        known = {path for (path,) in rows}
        self._added |= dict.fromkeys(known)
        new = []
        with contextlib.suppress(OSError), os.scandir(home) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".")  # what is left of a run whose deletion was killed
                if entry.path not in known and not hidden and _is_utf8(entry.name) and is_run(Path(entry.path)):
                    new.append(Path(entry.path))
        if new:
            self._attempt(lambda db: _insert(db, new))
            self._added |= {str(path): None for path in new}

    def remove(self, path: Path) -> None:
        """Forget the run in ``path``; its directory stays."""
        self._execute("delete from runs where path = ?", (os.path.realpath(path),))

    def summaries(self, limit: int | None = None) -> list[RunSummary]:
        """Runs, the newest first, at most ``limit``."""
        return list(itertools.islice(self.each(), limit))

    def size(self) -> tuple[int, int]:
        """Another value where a run was added or forgotten since."""
        count, last = self._execute("select count(*), max(rowid) from runs")[0]
        return int(count), int(last or 0)

    def perhaps_living(self) -> list[Path]:
        """Directories of the runs that were living, or not read yet, when somebody looked last, and of the newest."""
        unread = "select path from runs where stamp = '' order by started desc"
        last = "select path from runs order by started desc limit 20"
        return [Path(path) for path in dict.fromkeys(path for (path,) in self._execute(unread) + self._execute(last))]

    def each(self, paths: Collection[str] | None = None) -> Iterator[RunSummary]:
        """Every run, or those in the directories ``paths``, the newest first; what changed is read as it comes."""
        if paths is None:
            paths = [str(path) for (path,) in self._execute("select path from runs order by started desc, rowid desc")]
            self._added |= dict.fromkeys(paths)
        for path_text in paths:
            # One at a time: whoever wants the first page does not wait for thousands of summaries.
            found = self._execute("select stamp, summary from runs where path = ?", (path_text,))
            if not found:
                continue
            (stamp, blob), path = found[0], Path(path_text)
            if not is_run(path):
                if path.parent.is_dir():  # else its disk may only be away for now
                    self._execute("delete from runs where path = ?", (path_text,))
                continue
            now = _stamp(path)
            if blob is not None and stamp == now and (kept := _kept(blob)) is not None:
                yield kept
                continue
            summary = summarise(read_run(path))
            # A living run is read again next time: its end need not change the journal (kill -9).
            keep = "" if summary.status in ("starting", "running", "paused") else now
            statement = "update runs set run_id = ?, started = ?, stamp = ?, summary = ? where path = ?"
            encoded = msgspec.json.encode(summary)
            self._execute(statement, (summary.run_id, summary.started_at, keep, encoded, path_text))
            yield summary

    def find_here(self, prefix: str) -> Path:
        """As ``find``, also among the runs in ``./output`` that the index has not seen (made on another machine, or
        before it was deleted), and among those of sessions.

        Raises:
            RunError: none or several fit.
        """
        try:
            return self.find(prefix)
        except RunError:
            self.scan(expand("./output"))
            inner = self._inner(prefix)
            return inner[0] if len(inner) == 1 else self.find(prefix)

    def _inner(self, prefix: str) -> list[Path]:
        """Runs of known sessions whose id starts with ``prefix``; lists show their session alone."""
        homes = (Path(path) / "runs" for (path,) in self._execute("select path from runs"))
        every = (run for home in homes if prefix and home.is_dir() for run in home.iterdir())
        return [run for run in every if run.name.startswith(prefix) and is_run(run)]

    def find(self, prefix: str) -> Path:
        """The directory of the run whose id starts with ``prefix``. A path to a run directory is taken as it is;
        one without a slash where no id is like it.

        Raises:
            RunError: none or several fit; several are named.
        """
        if ("/" in prefix or prefix in (".", "..")) and is_run(Path(prefix)):
            return Path(prefix)
        statement = "select path from runs where substr(run_id, 1, ?) = ? order by started desc"
        rows = self._execute(statement, (len(prefix), prefix.encode(errors="replace").decode()))
        found = [Path(row[0]) for row in rows if prefix and is_run(Path(row[0]))]
        exact = [path for path in found if path.name == prefix]
        if len(exact) == 1 or len(found) == 1:
            return (exact or found)[0]
        if not found and "/" in prefix:
            is_there = os.path.isdir(os.path.expanduser(prefix))  # noqa: PTH111, PTH112 - no error for any name
            raise RunError(
                f"{prefix} is no directory of a run" if is_there else f"there is no directory {prefix}",
                hint="name a run by its id or its directory; `backprop list-runs` shows the runs",
            )
        if not found and prefix and is_run(Path(prefix)):
            return Path(prefix)
        if not found:
            if prefix.endswith(".gguf"):
                raise RunError(f"there is no file {prefix}", hint="check the path and the spelling")
            gone = f" (one was in {rows[0][0]}, which is gone)" if rows and prefix else ""
            raise RunError(
                f"no run has an id that starts with {prefix!r}{gone}",
                hint="`backprop list-runs` shows the runs; name one that was moved by its directory, "
                "or have it found with `backprop list-runs --output FOLDER`",
            )
        if len({path.name for path in found}) == 1:
            places = ", ".join(map(str, found[:5]))
            raise RunError(f"run {found[0].name} is in {len(found)} places: {places}", hint="name one by its directory")
        names = ", ".join(path.name for path in found[:5])
        raise RunError(f"{prefix!r} fits {len(found)} runs: {names}", hint="give more of the run id")


def _connect(path: Path | str) -> sqlite3.Connection:
    """The index in ``path``, its table made where the file is new.

    Raises:
        sqlite3.Error: it cannot be opened, is damaged, or was written by a newer version.
    """
    db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    try:
        db.execute("pragma synchronous=off")  # a lost index is made again
        if _version(db) == 0:
            # Another process or thread may make it while this one waits for its turn.
            db.execute("begin immediate")
            if _version(db) == 0:
                if db.execute("select count(*) from sqlite_master").fetchone()[0]:
                    raise sqlite3.DatabaseError("it is a database of another program")
                db.execute(_TABLE)
                db.execute("create index runs_by_id on runs (run_id)")
                db.execute(f"pragma user_version={_VERSION}")
            db.execute("commit")
        if _version(db) > _VERSION:
            raise _NewerIndexError(f"it is of version {_version(db)}, newer than this program's {_VERSION}")
        if _version(db) != _VERSION:
            raise sqlite3.DatabaseError(f"it is of version {_version(db)}, not {_VERSION}")
        db.execute("select path, run_id, started, stamp, summary from runs limit 1")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _inode(path: Path) -> int:
    """Tells a file from the one that took its name later; 0 where there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("pragma user_version").fetchone()[0])


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is no index of ours, rather than busy, read-only or out of room for now."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT)


def _copy_file(path: Path, new: sqlite3.Connection) -> None:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as old:
        _copy_paths(old, new)


def _copy_paths(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Name in ``new`` the runs that ``old`` names: it may be the only one to know them."""
    with contextlib.suppress(sqlite3.Error):
        for (path,) in old.execute("select path from runs"):
            if isinstance(path, str):
                new.execute(*_row(Path(path)))


def _row(path: Path) -> tuple[str, tuple[str, str, float]]:
    """The statement that remembers the run in ``path``, and its values."""
    path = Path(os.path.realpath(path))  # a run that is reached under two names is one
    started = time.time()  # until it is read: runs are listed by their start
    for name in ("events.jsonl", "run.json"):
        with contextlib.suppress(OSError):
            started = (path / name).stat().st_mtime
    return "insert or ignore into runs values (?, ?, ?, '', null)", (str(path), path.name, started)


def _insert(db: sqlite3.Connection, paths: Iterable[Path]) -> list[Any]:
    """Remember the runs in ``paths``, all at once."""
    db.execute("begin immediate")
    for path in paths:
        db.execute(*_row(path))
    return db.execute("commit").fetchall()


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _kept(blob: object) -> RunSummary | None:
    """The summary in a row; ``None`` where it is none."""
    try:
        return decoder(RunSummary).decode(blob) if isinstance(blob, bytes | str) else None
    except ValueError:
        return None


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
