"""The queue: configured runs that are trained one after another, each a file in the user's data directory.

::

    queue/
        waiting/RUN_ID.json   an entry (``Entry``) that was not begun
        running/RUN_ID.json   one that was claimed, by a rename; its engine holds the file locked
        over/RUN_ID.json      how its run ended
        queue.json            the order, and what follows a failure (``Rules``)
        edit.lock             held by whoever changes something
        runner.json           what holds the runner up (``Runner``); held locked as long as one lives
        runner.log            what a runner had to complain of

An entry has the id that its run will have. Whoever finds a claimed one therefore asks the run's directory what became
of it: killed at any moment, application and runner lose no entry and begin none twice. The runner is a process of its
own (``worker.queue_runner``), started by whoever has work for it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from backprop.core.errors import InputError, InvalidSettingError
from backprop.core.events import Count, Moment
from backprop.core.files import HELD, exclusive, flush_folder, is_held, read_json, write_file
from backprop.core.log import variables
from backprop.core.paths import data_dir, expand
from backprop.core.settings import RunConfig
from backprop.runs.directory import new_run_id

SCHEMA = 1
RUNNER = "backprop.worker.queue_runner"
FAILURES = ("failed", "crashed", "interrupted", "damaged")
"""Ends of a run after which a queue may stop; that a person stopped it is none."""
AfterFailure = Literal["continue", "stop"]
Place = Literal["waiting", "running", "over"]
PLACES: tuple[Place, ...] = get_args(Place)
"""In the order in which an entry goes through them."""
_PATIENCE = 1.0
"""Seconds to wait for the runner's lock: somebody who looks whether it is held takes it for an instant."""


class Entry(Struct, kw_only=True):
    """A run to be started. ``status`` is ``waiting``, ``running``, or once it is over the run's."""

    schema: int = SCHEMA
    run_id: str
    added: Moment
    config: RunConfig
    origins: dict[str, str] = {}
    """As in ``runs.directory.RunRecord``."""
    status: str = "waiting"
    message: str = ""
    """Why it failed."""
    ended: Moment = 0.0

    @property
    def directory(self) -> Path:
        """Where its run is, or will be."""
        return expand(self.config.output_dir) / self.run_id


class Rules(Struct, kw_only=True):
    """What holds for the queue as a whole."""

    order: list[str] = []
    """Waiting entries as somebody arranged them; the others follow as they were added."""
    after_failure: AfterFailure = "continue"
    resumed: Moment = 0.0
    """Failures from before do not stop it."""


class Runner(Struct, kw_only=True):
    """What the living runner says of itself."""

    pid: Count = 0
    waits_for: str = ""
    """Why the next entry is not begun; empty while one is trained."""


class Standing(Struct, kw_only=True):
    """The queue as it is now."""

    running: list[Entry]
    waiting: list[Entry]
    over: list[Entry]
    """The last to end first."""
    after_failure: AfterFailure
    held: str
    """Why nothing more is begun; empty where something would be."""
    runner: Runner | None
    """``None`` where none lives."""
    unreadable: list[str]
    """Files that are no entry of this version, with the reason; they are left alone."""

    @property
    def entries(self) -> list[Entry]:
        """All of them, the next to be over first."""
        return [*self.running, *self.waiting, *self.over]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, or it is not to be done."""
        return not self.running and (not self.waiting or bool(self.held))


class Queue:
    """The one queue of this user. Creating the object touches nothing on disk."""

    def __init__(self) -> None:
        self.home = data_dir() / "queue"
        self._lock: int | None = None

    # What is in it

    def read(self) -> Standing:
        """The queue as it is now; nothing is waited for."""
        # In the order in which an entry moves on: one that moves meanwhile is met twice, not missed.
        unreadable: list[str] = []
        found = {place: list(self._entries(place, unreadable)) for place in PLACES}
        later = {entry.run_id for place in ("running", "over") for entry in found[place]}
        rules = self._rules()
        order = {run_id: number for number, run_id in enumerate(rules.order)}
        over = sorted(found["over"], key=lambda entry: -entry.ended)
        failed = (
            f"run {each.run_id} {each.status}"
            for each in over
            if each.status in FAILURES and each.ended > rules.resumed
        )
        held = next(failed, "") if rules.after_failure == "stop" else ""
        return Standing(
            running=[entry for entry in found["running"] if entry.run_id not in {each.run_id for each in over}],
            waiting=sorted(
                (entry for entry in found["waiting"] if entry.run_id not in later),
                key=lambda entry: (order.get(entry.run_id, len(order)), entry.added),
            ),
            over=over,
            after_failure=rules.after_failure,
            held=held,
            runner=self._runner(),
            unreadable=unreadable,
        )

    def _entries(self, place: Place, unreadable: list[str]) -> Iterator[Entry]:
        for path in (self.home / place).glob("*.json"):
            try:
                entry = read_json(path, Entry)
                if entry.schema > SCHEMA:
                    raise ValueError("it was written by a newer version")
            except FileNotFoundError:  # it moves on
                continue
            except (OSError, ValueError, InvalidSettingError) as error:
                unreadable.append(f"{path}: {error}")
                continue
            if place != "over":
                entry.status = place
            yield entry

    def _rules(self) -> Rules:
        with suppress(OSError, ValueError):
            return read_json(self.home / "queue.json", Rules)
        return Rules()

    def _runner(self) -> Runner | None:
        path = self.home / "runner.json"
        if not is_held(path):
            return None
        with suppress(OSError, ValueError):  # it is being written
            return read_json(path, Runner)
        return Runner()

    def find(self, prefix: str) -> Entry:
        """The entry whose id begins with ``prefix``.

        Raises:
            InputError: none or several do.
        """
        found = [entry for entry in self.read().entries if prefix and entry.run_id.startswith(prefix)]
        if len(found) != 1:
            fits = f"fits {len(found)} entries" if found else "is no entry"
            raise InputError(f"{prefix!r} {fits} of the queue", hint="`backprop queue list` shows the entries")
        return found[0]

    # What a person does with it

    @contextmanager
    def _editing(self) -> Iterator[None]:
        for place in PLACES:
            (self.home / place).mkdir(parents=True, exist_ok=True)
        with exclusive(self.home / "edit.lock"):
            yield

    def add(self, config: RunConfig, origins: dict[str, str] | None = None) -> Entry:
        """A run with the settings ``config`` waits for its turn, behind the others."""
        entry = Entry(run_id=new_run_id(), added=time.time(), config=config, origins=origins or {})
        with self._editing():
            write_file(self._path("waiting", entry.run_id), msgspec.json.encode(entry))
        return entry

    def move(self, run_id: str, place: int) -> None:
        """Make a waiting entry the ``place``th, from 1; beyond the end is the last.

        Raises:
            InputError: it does not wait any more.
        """
        with self._editing():
            order = [entry.run_id for entry in self.read().waiting]
            if run_id not in order:
                raise InputError(f"run {run_id} does not wait any more", hint="`backprop queue list` shows what does")
            order.remove(run_id)
            order.insert(max(0, place - 1), run_id)
            self._rule(order=order)

    def remove(self, run_id: str) -> None:
        """Take out an entry that waits or is over; the directory of a run stays.

        Raises:
            InputError: it is being trained.
        """
        with self._editing():
            if self._path("running", run_id).exists():
                raise InputError(f"run {run_id} is being trained", hint=f"stop it: backprop-tui --attach {run_id}")
            for place in PLACES:
                self._path(place, run_id).unlink(missing_ok=True)

    def rule(self, **changes: object) -> None:
        """Change fields of the queue's ``Rules``."""
        with self._editing():
            self._rule(**changes)

    def _rule(self, **changes: object) -> None:
        rules = msgspec.structs.replace(self._rules(), **changes)
        write_file(self.home / "queue.json", msgspec.json.encode(rules))

    def _path(self, place: Place, run_id: str) -> Path:
        return self.home / place / f"{run_id}.json"

    def ensure_runner(self) -> Standing:
        """The queue as it is now. Where there is work and no runner lives, one is started in a session of its own."""
        now = self.read()
        if now.runner is None and not now.idle:
            with (self.home / "runner.log").open("ab") as log:
                subprocess.Popen(
                    [sys.executable, "-P", "-m", RUNNER],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=variables(),
                )
        return now

    # What the runner does with it

    def take_over(self) -> bool:
        """Become the runner; whether no other lives."""
        self.home.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.home / "runner.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in HELD:
                    raise
            if time.monotonic() > deadline:
                os.close(self._lock)
                return False
            time.sleep(0.02)

    def leave_when_idle(self) -> bool:
        """Be the runner no longer where there is nothing to do: whoever adds an entry after that finds none."""
        assert self._lock is not None
        with self._editing():
            if not self.read().idle:
                return False
            os.close(self._lock)
            return True

    def report(self, waits_for: str) -> None:
        """Say why the next entry is not begun."""
        assert self._lock is not None
        said = msgspec.json.encode(Runner(pid=os.getpid(), waits_for=waits_for))
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, said, 0)

    def claim(self, run_id: str) -> bool:
        """Make a waiting entry one that is begun; whether it was still there."""
        with self._editing():
            try:
                self._path("waiting", run_id).rename(self._path("running", run_id))
            except FileNotFoundError:
                return False
            flush_folder(self.home / "running")
        return True

    @contextmanager
    def engine_lock(self, run_id: str) -> Iterator[int]:
        """A descriptor for the engine of a claimed entry to hold; waits for one that an earlier runner started."""
        descriptor = os.open(self._path("running", run_id), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def finish(self, entry: Entry, status: str, message: str) -> None:
        """The run of a claimed entry is over."""
        ended = msgspec.structs.replace(entry, status=status, message=message, ended=time.time())
        with self._editing():
            claimed = self._path("running", entry.run_id)
            write_file(claimed, msgspec.json.encode(ended))
            claimed.rename(self._path("over", entry.run_id))
            flush_folder(self.home / "over")
