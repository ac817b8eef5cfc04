"""One run, one directory: its layout, its identity and its lock.

::

    <output>/<run_id>/
        run.json       identity and configuration (``RunRecord``)
        events.jsonl   the journal: everything that happened, append only
        engine.log     what libraries printed
        lock           held by the living engine, so that "running" is a fact
        control        a named pipe that takes commands, one JSON object a line
        checkpoints/   exports/
        adapter/       the result; of a run that stopped early that of its best evaluation, with the last
                       step's beside it in adapter-last/
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from backprop.core.errors import ConfigurationError, RunError
from backprop.core.files import write_file
from backprop.core.settings import RunConfig

SCHEMA = 1
START_PATIENCE = 30.0
"""Seconds that a new run may take until its engine holds the lock."""
LOCK_PATIENCE = 2.0
"""Seconds to wait for a lock: somebody who merely looks whether it is held takes it for an instant."""


class RunRecord(Struct, kw_only=True):
    """``run.json``: what the run is. How it went is in the journal."""

    schema: int = SCHEMA
    run_id: str
    kind: str = "train"
    created: float
    config: RunConfig
    environment: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Hashes of what went in: data, model, code (filled by the engine)."""
    forked_from: str = ""
    """Folder with the adapter whose weights the run starts from; empty for the usual start."""
    extended: bool = False
    """The run has been given its present end by an extend: checkpoints from before it have another."""


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

    @classmethod
    def create(cls, config: RunConfig, kind: str = "train", forked_from: str = "") -> RunDirectory:
        """Make the directory of a new run under ``config.output_dir``.

        Raises:
            ConfigurationError: the output directory cannot be made or written.
        """
        run_id = secrets.token_hex(6)
        directory = cls(Path(config.output_dir).expanduser() / run_id)
        try:
            directory.path.mkdir(parents=True)
            write_file(
                directory.record,
                msgspec.json.format(
                    msgspec.json.encode(
                        RunRecord(run_id=run_id, kind=kind, created=time.time(), config=config, forked_from=forked_from)
                    ),
                    indent=2,
                ),
            )
            directory.ensure_control()
        except OSError as error:
            raise ConfigurationError(
                f"cannot write to the output directory {config.output_dir}: {error.strerror}",
                hint="choose another one with --output",
                details={"path": str(config.output_dir)},
            ) from error
        return directory

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def result(self) -> str:
        """The folder of the trained adapter where it is there, else empty."""
        return str(self.adapter) if (self.adapter / "adapter_config.json").is_file() else ""

    def ensure_control(self) -> None:
        """Make the named pipe for commands where it is missing. Only its owner may write to it."""
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self.control, 0o600)

    def read_record(self) -> RunRecord:
        """Read ``run.json``.

        Raises:
            RunError: it is missing or not readable, saying which.
        """
        try:
            return msgspec.json.decode(self.record.read_bytes(), type=RunRecord)
        except FileNotFoundError:
            raise RunError(
                f"{self.record} is missing", code="RUN_DAMAGED", hint="the journal beside it may still be read"
            ) from None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RunError(f"{self.record} cannot be read: {error}", code="RUN_DAMAGED") from error

    def update_record(self, **changes: Any) -> None:
        """Rewrite fields of ``run.json`` atomically."""
        record = msgspec.structs.replace(self.read_record(), **changes)
        write_file(self.record, msgspec.json.format(msgspec.json.encode(record), indent=2))

    def is_locked(self) -> bool:
        """Whether a living engine works here. Survives power cuts and reused process ids: the kernel drops the lock."""
        try:
            descriptor = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
        finally:
            os.close(descriptor)
        return False

    def is_alive(self) -> bool:
        """Whether an engine works here, or was started a moment ago and has yet to take the lock."""
        if self.is_locked():
            return True
        try:
            age = time.time() - self.record.stat().st_mtime
            return age < START_PATIENCE and not self.journal.exists()
        except OSError:
            return False

    def lock_holder(self) -> dict[str, Any]:
        """What the last engine wrote about itself: ``pid`` and ``time``. Empty where unknown."""
        try:
            holder = json.loads(self.lock.read_text())
        except (OSError, ValueError):
            return {}
        return holder if isinstance(holder, dict) else {}

    @contextlib.contextmanager
    def hold_lock(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            RunError: another process holds it (code ``RUN_ALREADY_ACTIVE``).
        """
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            deadline = time.monotonic() + LOCK_PATIENCE
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        pid = self.lock_holder().get("pid", "unknown")
                        raise RunError(
                            f"run {self.run_id} is being worked on by process {pid}",
                            code="RUN_ALREADY_ACTIVE",
                            hint=f"watch it: backprop-tui --attach {self.run_id}",
                        ) from None
                    time.sleep(0.02)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "time": time.time()}).encode(), 0)
            yield
        finally:
            os.close(descriptor)


def is_run(path: Path) -> bool:
    """Whether ``path`` looks like a run's directory, damaged ones included."""
    return (path / "run.json").is_file() or (path / "events.jsonl").is_file()
