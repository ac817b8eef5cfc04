"""Work that takes longer than a frame: it runs in threads, says how far it is, and can be stopped; what it reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from backprop.core.errors import BackpropError
from backprop.core.events import ModelLoading
from backprop.runs.describe import describe
from msgspec import structs
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input

from backprop_tui.keys import press
from backprop_tui.text import clock, short_path

if TYPE_CHECKING:
    from backprop.core import jobs
    from backprop.runs.engine_jobs import EngineJob

Value = TypeVar("Value")
_EVERY = 0.5
"""Seconds between two looks at what has been found so far."""
_LONG = 3.0
"""Seconds after which the rest can be told, and a person would miss the work."""


@dataclass
class Notice(Message):
    """A line for the bottom of the screen, or none. What is known of the file may have changed."""

    text: str = ""


class RowsChanged(Message):
    """Other rows are shown, or they mean something else now."""


@dataclass
class GoToLine(Message):
    """Show the row of this line of the file."""

    line: int


@dataclass
class Failed(Message):
    """A piece of work ended with an error that is meant for a person."""

    work: str
    error: BackpropError


@dataclass
class Delivered(Message):
    """Work has come to something: threads touch no widget, so the screen hands it to whoever began the work."""

    task: Task[Any]
    value: object
    last: bool = False
    """Nothing more will come of it."""


class Task(Generic[Value]):
    """One piece of work: what it is, how far it is, and whether the person stopped it.

    A thread writes ``done`` and ``total``, the screen's flush reads them: no message per step.

    Args:
        name: what is done, in words; empty where it is over before a person could read them.
        deliver: called with what has been found so far, from any thread.
    """

    def __init__(self, name: str, deliver: Callable[[Value], object] = bool) -> None:
        self.name = name
        self.deliver = deliver
        self.done = 0
        self.total = 0
        self.ended = False
        self._began = time.monotonic()
        self._delivered_at = 0.0
        self._stop = threading.Event()
        self._ends: Callable[[], object] = bool

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def report(self, message: jobs.Message) -> None:
        """Show how far an engine process is that does the work."""
        from backprop.core.jobs import JobProgress  # no screen has work to show before it is drawn

        match message:
            case JobProgress():
                self.name = message.doing or self.name
                self.progress(message.done, message.total)
            case ModelLoading():
                self.name = describe(structs.replace(message, model=short_path(message.model)))
                self.progress(message.done, message.total)

    def when_started(self, engine: EngineJob) -> None:
        """The work is done by ``engine``, and ends with it."""
        self.when_stopped(engine.stop)

    def so_far(self, value: Callable[[], Value]) -> None:
        """Deliver what has been found by now, at most twice a second."""
        if time.monotonic() - self._delivered_at > _EVERY:
            self._delivered_at = time.monotonic()
            self.deliver(value())

    def stop(self) -> None:
        self._stop.set()
        self._ends()

    def when_stopped(self, end: Callable[[], object]) -> None:
        """Call ``end`` when the person stops the work: for work that waits for another process."""
        self._ends = end
        if self.stopped():
            end()

    def stopped(self) -> bool:
        return self._stop.is_set()

    @property
    def is_long(self) -> bool:
        return time.monotonic() - self._began > _LONG

    def words(self) -> str:
        """What is done and how far; where it takes its time, how long it will go on."""
        if not self.total:
            return f"{self.name} …"
        taken = time.monotonic() - self._began
        left = taken * (self.total - self.done) / self.done if self.done else 0.0
        more = f", {clock(left)} left" if self.is_long and left >= 1 else ""
        return f"{self.name} {100 * self.done // self.total} %{more}"


class Tasks:
    """The work that goes on for one screen, by kind: one of each; ``stop`` is the id of the key that stops it."""

    def __init__(self, owner: Screen[None], stop: str) -> None:
        self._owner, self._stop = owner, stop
        self._tasks: dict[str, Task[Any]] = {}
        self._takers: dict[str, Callable[[Any], object]] = {}

    def begin(
        self, work: str, words: str, function: Callable[[Task[Value]], Value | None], take: Callable[[Value], object]
    ) -> None:
        """Run ``function`` in a thread as the one piece of ``work``; what ran under that name before is forgotten.

        What it delivers, and what it returns, is given to ``take`` by the screen; what it raises is posted as
        ``Failed``: a defect in a thread does not end the application.
        """
        self.forget(work)
        task: Task[Value] = Task(words)
        task.deliver = lambda value: self._owner.post_message(Delivered(task, value))
        self._tasks[work], self._takers[work] = task, take

        def run() -> None:
            try:
                if (value := function(task)) is not None:
                    self._owner.post_message(Delivered(task, value, last=True))
            except Exception as error:  # a defect in a thread is told, and ends nothing
                task.ended = True  # before the screen hears of it: it draws what goes on
                if not task.stopped():
                    known = error if isinstance(error, BackpropError) else defect_in(words or "reading a row", error)
                    self._owner.post_message(Failed(work, known))
            finally:
                task.ended = True

        # No daemon: a copy half written and an engine process are put in order before the program ends.
        threading.Thread(target=run, name=work).start()

    def take(self, delivered: Delivered) -> None:
        """Pass on what was found, where the work was not forgotten meanwhile."""
        for work, task in self._tasks.items():
            if task is delivered.task:
                task.ended = task.ended or delivered.last
                self._takers[work](delivered.value)
                return

    def goes_on(self, work: str) -> bool:
        task = self._tasks.get(work)
        return task is not None and not task.ended

    def stop(self) -> bool:
        """Stop what a person sees going on, keeping what was found; whether anything was."""
        going = self.running()
        for task in going:
            task.stop()
        return bool(going)

    def end(self) -> None:
        """Stop everything, also what waits without a word: the screen goes, and a thread outlives the application."""
        for task in self._tasks.values():
            task.stop()

    def forget(self, *works: str) -> None:
        """Stop these; what they deliver is not wanted any more."""
        for work in works:
            if work in self._tasks:
                self._tasks.pop(work).stop()

    def running(self) -> list[Task[Any]]:
        """What goes on and takes its time, the oldest first."""
        return [task for task in self._tasks.values() if task.name and not task.ended]

    def words(self, more: str) -> str:
        """What goes on, in one line, and what more does that cannot be stopped."""
        running = [task.words() for task in self.running()]
        typing = isinstance(self._owner.focused, Input)  # the key would be one more letter of the text
        stops = f" ({press(self._stop)} stops it)" if running and self._stop and not typing else ""
        return "; ".join([*running, *filter(None, [more])]) + stops


def defect_in(doing: str, error: BaseException) -> BackpropError:
    """An exception that is no error of ours, for a person to read."""
    return BackpropError(
        f"a defect in this program, while {doing}: {type(error).__name__}: {error}",
        hint="please report it, with the file or the row if you can share it",
    )
