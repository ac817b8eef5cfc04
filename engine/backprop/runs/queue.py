"""The queue: configured runs that are trained one after another, each a file in the user's data directory.

::

    queue/
        waiting/RUN_ID.json   an entry (``Entry``) that was not begun
        running/RUN_ID.json   one that was claimed, by a rename; its engine holds the file locked
        over/RUN_ID.json      how its run ended
        queue.json            the order, and what follows a failure (``Rules``)
        edit.lock             held by whoever changes something
        runner                what the runner waits for; it holds the file locked
        runner.log            what a runner had to complain of

An entry has the id that its run will have. Whoever finds a claimed one therefore asks the run's directory what became
of it: killed at any moment, application and runner lose no entry and begin none twice. The runner is a process of its
own (``worker.queue_runner``), started by whoever has work for it.
"""

from __future__ import annotations

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

from backprop.core.confinement import CONFINED
from backprop.core.errors import InputError, InvalidSettingError
from backprop.core.events import Moment
from backprop.core.extras import can_train, require_for
from backprop.core.files import exclusive, flush_folder, is_held, read_json, write_file
from backprop.core.log import variables
from backprop.core.paths import data_dir, expand
from backprop.core.settings import RunConfig
from backprop.runs.directory import new_run_id, require_output

SCHEMA = 1
RUNNER = "backprop.worker.queue_runner"
FAILURES = ("failed", "crashed", "interrupted", "damaged")
"""Ends of a run after which a queue may stop; that a person stopped it is none."""
AfterFailure = Literal["continue", "stop"]
Place = Literal["waiting", "running", "over"]
PLACES: tuple[Place, ...] = get_args(Place)
"""In the order in which an entry goes through them."""


class Entry(Struct, kw_only=True):
    """A run to be started. ``status`` is ``waiting``, ``running``, or once it is over the run's."""

    schema: int = SCHEMA
    run_id: str
    added: Moment
    config: RunConfig
    origins: dict[str, str] = {}
    """As in ``runs.record.RunRecord``."""
    status: str = "waiting"
    message: str = ""
    """Why it failed."""
    ended: Moment = 0.0

    @property
    def directory(self) -> Path:
        """Where its run is, or will be."""
        return expand(self.config.output_dir) / self.run_id

    @property
    def length(self) -> str:
        """How long the run is to be, as it was asked for."""
        steps = self.config.steps
        number, unit = (steps, "step") if steps else (self.config.epochs or "auto", "epoch")
        return f"{number if isinstance(number, str) else f'{number:,.10g}'} {unit}{'' if number == 1 else 's'}"


class Rules(Struct, kw_only=True):
    """What holds for the queue as a whole."""

    order: list[str] = []
    """Waiting entries as somebody arranged them; the others follow as they were added."""
    after_failure: AfterFailure = "continue"
    resumed: Moment = 0.0
    """Failures from before do not stop it."""


class Standing(Struct, kw_only=True):
    """The queue as it is now."""

    rules: Rules
    running: list[Entry]
    waiting: list[Entry]
    over: list[Entry]
    """The last to end first."""
    runner: str | None
    """What the runner waits for, empty while it has a run trained; ``None`` where none lives."""
    unreadable: list[str]
    """Files that are no entry of this version, with the reason; they are left alone."""

    @property
    def entries(self) -> list[Entry]:
        """All of them, the next to be over first."""
        return [*self.running, *self.waiting, *self.over]

    @property
    def stopped(self) -> str:
        """The failure after which nothing more is begun, in words; empty where something would be."""
        failed = (each for each in self.over if each.status in FAILURES and each.ended > self.rules.resumed)
        stops = self.rules.after_failure == "stop"
        return next((f"run {each.run_id} {each.status}" for each in failed if stops), "")

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, or it is not to be done."""
        return not self.running and (not self.waiting or bool(self.stopped))


class Queue:
    """The one queue of this user. Creating the object touches nothing on disk."""

    def __init__(self) -> None:
        self.home = data_dir() / "queue"
        self.runner = self.home / "runner"

    def read(self) -> Standing:
        """The queue as it is now; nothing is waited for."""
        unreadable: list[str] = []
        # An entry that moves on meanwhile is met twice, not missed: the later place counts.
        found = {entry.run_id: entry for place in PLACES for entry in self._entries(place, unreadable)}
        rules, runner = self._rules(unreadable), None
        order = {run_id: number for number, run_id in enumerate(rules.order)}
        waiting = [entry for entry in found.values() if entry.status == "waiting"]
        if is_held(self.runner):
            runner = self.runner.read_text(errors="replace")
        return Standing(
            rules=rules,
            running=[entry for entry in found.values() if entry.status == "running"],
            waiting=sorted(waiting, key=lambda entry: (order.get(entry.run_id, len(order)), entry.added)),
            over=sorted((entry for entry in found.values() if entry.ended), key=lambda entry: -entry.ended),
            runner=runner,
            unreadable=unreadable,
        )

    def count_waiting(self) -> int:
        """How many entries wait; none is read."""
        return sum(1 for _ in (self.home / "waiting").glob("*.json"))

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
                entry.status, entry.ended = place, 0.0
            yield entry

    def _rules(self, unreadable: list[str]) -> Rules:
        path = self.home / "queue.json"
        try:
            return read_json(path, Rules)
        except FileNotFoundError:  # nobody made any
            pass
        except (OSError, ValueError) as error:
            unreadable.append(f"{path}: {error}: the usual order and rules hold; `backprop queue run` writes it anew")
        return Rules()

    def find(self, prefix: str) -> Entry:
        """The entry whose id begins with ``prefix``.

        Raises:
            InputError: none or several do.
        """
        found = [entry for entry in self.read().entries if prefix and entry.run_id.startswith(prefix)]
        if len(found) != 1:
            hint = "`backprop queue list` shows the entries"
            raise InputError(f"{len(found) or 'no'} entries of the queue begin with {prefix!r}", hint=hint)
        return found[0]

    @contextmanager
    def editing(self) -> Iterator[None]:
        """Nobody else changes the queue meanwhile."""
        for place in PLACES:
            (self.home / place).mkdir(parents=True, exist_ok=True)
        with exclusive(self.home / "edit.lock"):
            yield

    def add(self, config: RunConfig, origins: dict[str, str] | None = None) -> Entry:
        """A run with the settings ``config`` waits for its turn, behind the others.

        Raises:
            MissingDependencyError: this installation cannot train.
            ConfigurationError: no run can be made in its output directory; it would fail when its turn comes.
            InputError: it would write where this process may not.
        """
        require_for(config)
        require_output(config)
        entry = Entry(run_id=new_run_id(), added=time.time(), config=config, origins=origins or {})
        with self.editing():
            write_file(self.path("waiting", entry.run_id), msgspec.json.encode(entry))
        return entry

    def move(self, run_id: str, place: int) -> None:
        """Make a waiting entry the ``place``th, from 1; beyond the end is the last.

        Raises:
            InputError: it does not wait any more.
        """
        with self.editing():
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
        with self.editing():
            if self.path("running", run_id).exists():
                raise InputError(f"run {run_id} is being trained", hint=f"stop it: backprop-tui --attach {run_id}")
            for place in PLACES:
                self.path(place, run_id).unlink(missing_ok=True)

    def rule(self, **changes: object) -> None:
        """Change fields of the queue's ``Rules``."""
        with self.editing():
            self._rule(**changes)

    def _rule(self, **changes: object) -> None:
        rules = msgspec.structs.replace(self._rules([]), **changes)
        write_file(self.home / "queue.json", msgspec.json.encode(rules))

    def path(self, place: Place, run_id: str) -> Path:
        """The file of an entry in one of the places."""
        return self.home / place / f"{run_id}.json"

    def claim(self, run_id: str) -> None:
        """Make an entry one that is begun, where it still waits."""
        with self.editing(), suppress(FileNotFoundError):
            self.path("waiting", run_id).rename(self.path("running", run_id))
            flush_folder(self.home / "running")

    def finish(self, entry: Entry, status: str, message: str) -> None:
        """The run of a claimed entry is over."""
        ended = msgspec.structs.replace(entry, status=status, message=message, ended=time.time())
        with self.editing():
            claimed = self.path("running", entry.run_id)
            write_file(claimed, msgspec.json.encode(ended))
            claimed.rename(self.path("over", entry.run_id))
            flush_folder(self.home / "over")

    def ensure_runner(self) -> Standing:
        """The queue as it is now. Where there is work and no runner lives, one is started in a session of its own.

        None is by an installation that cannot train: it would have the runs of others fail.
        """
        now = self.read()
        if now.runner is None and not now.idle and can_train():
            command = [sys.executable, "-P", "-m", RUNNER]
            free = {**variables(), CONFINED: ""}  # it trains what everybody added
            # It is handed the lock: at no moment does it look as if nobody worked.
            with suppress(BlockingIOError), exclusive(self.runner, wait=False) as lock:
                os.ftruncate(lock, 0)
                now.runner = ""
                with (self.home / "runner.log").open("ab") as log:
                    subprocess.Popen(command, stdin=lock, stdout=log, stderr=log, start_new_session=True, env=free)
        return now
