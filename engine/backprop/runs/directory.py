"""One run, one directory: its layout, its identity and its lock.

::

    <output>/<run_id>/
        run.json       identity and configuration (``record.RunRecord``)
        events.jsonl   the journal: everything that happened, append only
        engine.log     what libraries printed
        lock           who the living engine is; it holds this file and the directory, so that "running" is a fact
        control        a named pipe that takes commands, one JSON object a line
        checkpoints/   exports/
        data/ runs/    of a session of several runs: their rows (``data.slices``), and a directory like this for each;
                       its checkpoints are what it stood at after each run, starts/ what the next one began with
        origin/        of a fork: the weights that it starts from, until it has saved its own
        source/        what it was made from: identity.json (``train.resume``), and of each trained sample its line in
                       the data (lines.bin) and the hash of what that row says (contents.bin), both int64
        adapter/       the result, in full fine-tuning model/; of a run that stopped early that of its best
                       evaluation, with the last step's beside it in adapter-last/ or model-last/
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from backprop.core.confinement import require_writable
from backprop.core.errors import ConfigurationError, InvalidSettingError, RunError
from backprop.core.events import Count, Moment, RunStarted
from backprop.core.files import (
    HELD,
    decoder,
    exclusive,
    is_held,
    new_output,
    open_regular,
    read_json,
    sweep_outputs,
    write_json,
)
from backprop.core.paths import expand
from backprop.core.refused import FULL, NOT_ALLOWED, is_full, refusal
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs import journal
from backprop.runs.record import SCHEMA, Replays, RunRecord
from backprop.runs.result_files import IDENTITY, changed_files

LAST_LINES = 8
"""Lines of the log that tell how an engine went."""
START_PATIENCE = 30.0
"""Seconds that a new run may take until its engine holds the lock."""
LOCK_PATIENCE = 2.0
"""Seconds to wait for a lock: somebody who merely looks whether it is held takes it for an instant."""


class LockHolder(Struct):
    """What an engine writes into ``lock`` about itself."""

    pid: Count = 0
    time: Moment = 0.0
    awaited: bool = False
    """Whether it was written by whoever started the engine, which has yet to take the lock."""


class RunDirectory:
    """Paths inside one run's directory. Creating the object touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.record = self.path / "run.json"
        self.journal = self.path / "events.jsonl"
        self.log = self.path / "engine.log"
        self.lock = self.path / "lock"
        self.control = self.path / "control"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.last_adapter = self.path / "adapter-last"
        self.model = self.path / "model"
        self.origin = self.path / "origin"
        self.evaluations = self.path / "evaluations"
        self.source = self.path / "source"

    @classmethod
    def create(
        cls,
        config: RunConfig,
        kind: str = "train",
        forked_from: str = "",
        origins: dict[str, str] | None = None,
        replays: Replays | None = None,
        *,
        multi: MultiConfig | None = None,
        run_id: str = "",
    ) -> RunDirectory:
        """Make the directory of a new run under ``config.output_dir``; open, ``run_id`` is drawn.

        Args:
            run_id: as it was chosen before; what a killed process left of its directory is made whole.

        Raises:
            ConfigurationError: the output directory cannot be made or written.
            InputError: writing is confined elsewhere.
        """
        directory = cls(expand(config.output_dir) / (run_id or new_run_id()))
        require_writable(directory.path)
        run_id, known = directory.run_id, bool(run_id)
        try:
            directory.path.mkdir(parents=True, exist_ok=known)
            if forked_from:
                keep_files(Path(forked_from), directory.origin, ("manifest.json", "weights.safetensors"))
            directory._write_record(
                RunRecord(
                    run_id=run_id,
                    kind=kind,
                    created=time.time(),
                    config=config,
                    forked_from=forked_from,
                    origins=origins or {},
                    replays=replays,
                    multi=multi,
                )
            )
            directory.ensure_control()
        except OSError as error:
            if not known:
                shutil.rmtree(directory.path, ignore_errors=True)  # no run that nobody asked for
            raise _no_output(config, error) from error
        return directory

    @property
    def run_id(self) -> str:
        """The run that the directory belongs to, by its name."""
        return self.path.name

    @property
    def result(self) -> str:
        """The folder of the trained adapter, or of the whole model, where it is there, else empty."""
        kinds = ((self.adapter, "adapter_config.json"), (self.model, "config.json"))
        return next((str(folder) for folder, sign in kinds if (folder / sign).is_file()), "")

    @property
    def data_hash(self) -> str:
        """The fingerprint of the rows that the result was trained on; empty where it is not known."""
        try:
            return str(read_json(Path(self.result or self.adapter) / IDENTITY, dict[str, Any]).get("data", ""))
        except (OSError, ValueError):
            return ""

    def changed_result(self) -> list[str]:
        """What of the result is not as the run saved it, in words."""
        return changed_files(Path(self.result)) if self.result else []

    def whereabouts(self, folder: int) -> Path | None:
        """Where the directory is that the descriptor ``folder`` was opened on; ``None`` where it was deleted."""
        here = [self.path]
        with contextlib.suppress(OSError):
            here.append(Path(f"/proc/self/fd/{folder}").readlink())
        for path in here:
            with contextlib.suppress(OSError):
                if os.path.samestat(path.stat(), os.fstat(folder)):
                    return path
        return None

    def ensure_control(self) -> None:
        """Make the named pipe for commands where it is missing. Only its owner may write to it.

        Raises:
            RunError: something else has its name.
        """
        try:
            os.mkfifo(self.control, 0o600)
        except FileExistsError:
            self.require_control()

    def require_control(self) -> None:
        """Check that ``control``, where there is one, is the named pipe that it should be.

        Raises:
            RunError: it is something else, so that a command would be written and never read.
        """
        try:
            mode = self.control.stat().st_mode
        except OSError:
            if not os.path.lexists(self.control):
                return
            mode = 0
        if not stat.S_ISFIFO(mode):
            why = "is no named pipe, so commands would not reach the engine"
            raise _damaged(f"{self.control} {why}", "delete it: `backprop resume` makes it again")

    def open_log(self) -> IO[bytes]:
        """``engine.log``, opened to append.

        Raises:
            RunError: it cannot be written, or is no regular file.
        """
        with _using(self.log):
            return os.fdopen(open_regular(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")

    def open_journal(self, run_id: str) -> journal.JournalWriter:
        """The journal of run ``run_id``, to go on writing it. The run's lock must be held.

        Raises:
            RunError: it cannot be written, is no regular file, or belongs to another run.
        """
        self.require_own_journal(run_id)
        with _using(self.journal):
            return journal.JournalWriter(self.journal)

    def require_own_journal(self, run_id: str) -> None:
        """Check that the journal, where there is one, is a file and tells of run ``run_id``.

        Raises:
            RunError: it is not.
        """
        with _using(self.journal):
            owner = journal.owner(self.journal)
        if owner not in ("", run_id):
            hint = "put the run's own journal back, or move this one away"
            raise _damaged(f"{self.journal} belongs to run {owner}, not to {run_id}", hint)

    def require_files(self, folder: Path) -> None:
        """Check that everything in ``folder`` is a regular file, so that nobody who reads it waits for ever.

        Raises:
            RunError: something is not, or cannot be read.
        """
        for path in sorted(folder.iterdir()):
            with _using(path):
                os.close(open_regular(path))

    def read_record(self) -> RunRecord:
        """Read ``run.json``.

        Raises:
            RunError: it is missing or not readable, saying which.
        """
        with _using(self.record):
            try:
                record = read_json(self.record, RunRecord)
            except FileNotFoundError:
                raise _damaged(
                    f"{self.record} is missing", "restore it from a backup: the journal does not tell what it said"
                ) from None
            except (ValueError, InvalidSettingError) as error:
                hint = "move it away: what it said is taken from the journal then"
                raise _damaged(f"{self.record} cannot be read: {error}", hint) from error
        if record.schema > SCHEMA:
            why = f"was written by a newer version (schema {record.schema})"
            raise _damaged(f"{self.record} {why}", "use that version for this run")
        return record

    def find_record(self) -> RunRecord:
        """``run.json``, or where it is missing what the journal says of the run.

        Raises:
            RunError: neither can be read.
        """
        try:
            return self.read_record()
        except RunError:
            events = [] if os.path.lexists(self.record) else journal.read(self.journal).events
            started = next((event for event in events if isinstance(event, RunStarted)), None)
            if started is None:
                raise
        decoder(RunRecord)
        try:
            return RunRecord(
                run_id=started.run_id,
                kind=started.kind,
                created=started.time,
                config=msgspec.convert(started.config, RunConfig),
                forked_from=started.forked_from,
                origins=started.origins,
                multi=msgspec.convert(started.multi, MultiConfig) if started.multi else None,
            )
        except (ValueError, InvalidSettingError) as error:
            what = f"{self.record} is missing, and the settings in {self.journal} cannot be used: {error}"
            raise _damaged(what, "restore run.json from a backup, or start a new run") from error

    def restore_record(self) -> bool:
        """Write a missing ``run.json`` again from the journal; whether it was missing. The lock must be held.

        Raises:
            RunError: neither can be read.
        """
        if os.path.lexists(self.record):
            self.read_record()
            return False
        self._write_record(self.find_record())
        return True

    def _write_record(self, record: RunRecord) -> None:
        write_json(self.record, record)

    def update_record(self, **changes: Any) -> None:
        """Rewrite fields of ``run.json`` atomically.

        Raises:
            RunError: it cannot be read, or written.
        """
        self.rewrite_record(lambda record: changes)

    def rewrite_record(self, change: Callable[[RunRecord], dict[str, Any]]) -> RunRecord:
        """As ``update_record`` with what ``change`` makes of the record; of two who do so at once neither is lost."""
        with _using(self.record), contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # a file system that cannot lock
                held.enter_context(exclusive(self.path / ".run.json.lock"))
            record = self.find_record()
            record = msgspec.structs.replace(record, **change(record))
            self._write_record(record)
        return record

    def last_lines(self) -> str:
        """The last lines that the engine or its libraries printed."""
        try:
            with os.fdopen(open_regular(self.log), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-LAST_LINES:])

    def is_locked(self) -> bool:
        """Whether a living engine works here. Survives power cuts and reused process ids: the kernel drops the lock."""
        return is_held(self.path, os.O_DIRECTORY) or is_held(self.lock)

    def is_alive(self) -> bool:
        """Whether an engine works here, or was started a moment ago and has yet to take the lock."""
        if self.is_locked():
            return True
        try:
            age = time.time() - self.record.stat().st_mtime
        except OSError:
            return False
        if os.path.lexists(self.journal) or not -START_PATIENCE < age < START_PATIENCE:
            return False
        holder = self.lock_holder()
        return _lives(holder.pid) if holder.awaited else not os.path.lexists(self.lock)

    def announce(self, pid: int) -> None:
        """Say in ``lock`` that engine ``pid`` was started, unless one was here: killed before it is, it is missed."""
        with contextlib.suppress(OSError), new_output(self.lock, folder=False) as file:
            file.write_bytes(msgspec.json.encode(LockHolder(pid, time.time(), awaited=True)))

    def was_worked_on(self) -> bool:
        """Whether an engine took the lock once."""
        return os.path.lexists(self.lock) and not self.lock_holder().awaited

    def lock_holder(self) -> LockHolder:
        """What the last engine wrote about itself; zeros where unknown."""
        try:
            return read_json(self.lock, LockHolder)
        except (OSError, ValueError):
            return LockHolder()

    @contextlib.contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Hold the run for this process: the directory, and the file ``lock`` for file systems that lock files alone.

        No file that is deleted meanwhile lets a second process in. What killed processes left half written is deleted.

        Raises:
            RunError: another process holds it (code ``RUN_ALREADY_ACTIVE``), or ``lock`` is no file.
            InputError: writing is confined elsewhere.
        """
        require_writable(self.lock)
        deadline = time.monotonic() + LOCK_PATIENCE
        with contextlib.ExitStack() as held:
            with _using(self.lock):
                folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                held.callback(os.close, folder)
                self._acquire(folder, deadline)
                file = open_regular(self.lock, os.O_RDWR | os.O_CREAT)
                held.callback(os.close, file)
            self._acquire(file, deadline)
            os.ftruncate(file, 0)
            os.pwrite(file, msgspec.json.encode(LockHolder(os.getpid(), time.time())), 0)
            for half in (self.path, self.evaluations, self.source):
                sweep_outputs(half)
            for half in self.path.glob(".*.partial"):  # folders, which whoever holds the run alone makes
                shutil.rmtree(half, ignore_errors=True)
            yield

    def _acquire(self, descriptor: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in HELD:
                    return  # this file system cannot lock it
            if time.monotonic() > deadline:
                raise RunError(
                    f"run {self.run_id} is being worked on by process {self.lock_holder().pid or 'unknown'}",
                    code="RUN_ALREADY_ACTIVE",
                    hint=f"watch it: backprop-tui --attach {self.run_id}",
                )
            time.sleep(0.02)


@contextlib.contextmanager
def _using(path: Path) -> Iterator[None]:
    """Turn what the system refuses about ``path`` into an error of the run."""
    try:
        yield
    except OSError as error:
        what = f"{path} cannot be used"
        if error.errno in (*FULL, *NOT_ALLOWED):
            raise refusal(error, what, RunError) from error
        raise _damaged(f"{what}: {error.strerror or error}", "move it away, or restore it from a backup") from error


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def keep_files(place: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Have files of ``place`` in ``folder`` too, so that whoever prunes or deletes them there leaves these alone."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).unlink(missing_ok=True)
        try:
            os.link(place / name, folder / name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(place / name, folder / name)


def _damaged(what: str, hint: str) -> RunError:
    return RunError(what, code="RUN_DAMAGED", hint=hint)


def new_run_id() -> str:
    """An id that no run has."""
    return secrets.token_hex(6)


def _no_output(config: RunConfig, error: OSError) -> RunError | ConfigurationError:
    what = f"cannot write to the output directory {config.output_dir}"
    hint, details = "choose another one with --output", {"path": str(config.output_dir)}
    if is_full(error):
        return refusal(error, what, RunError, otherwise=hint, details=details)
    return ConfigurationError(f"{what}: {error.strerror}", hint=hint, details=details)


def require_output(config: RunConfig) -> None:
    """Check that a run could be made in the output directory. Nothing is written.

    Raises:
        ConfigurationError: it could not, as ``RunDirectory.create`` would say.
        InputError: writing is confined elsewhere.
    """
    folder = expand(config.output_dir)
    require_writable(folder)
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    number = errno.EACCES if there.is_dir() else errno.ENOTDIR
    if number == errno.ENOTDIR or not os.access(there, os.W_OK | os.X_OK):
        raise _no_output(config, OSError(number, os.strerror(number)))


def is_run(path: Path) -> bool:
    """Whether ``path`` looks like a run's directory, damaged ones included."""
    return os.path.lexists(path / "run.json") or os.path.lexists(path / "events.jsonl")
