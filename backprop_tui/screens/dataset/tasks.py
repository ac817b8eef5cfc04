"""Work that takes longer than a frame: it runs in threads, says how far it is, and can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

from backprop.core.errors import BackpropError
from textual.message import Message
from textual.screen import Screen


class Failed(Message):
    """A piece of work ended with an error that is meant for a person."""

    def __init__(self, work: str, error: BackpropError) -> None:
        super().__init__()
        self.work = work
        self.error = error


class Task:
    """One piece of work: what it is, how far it is, and whether the person stopped it.

    A thread writes ``done`` and ``total``, the screen's flush reads them: no message per step.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = 0
        self.total = 0
        self.ended = False
        self._stop = threading.Event()
        self._ends: Callable[[], object] = bool

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total

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

    def words(self) -> str:
        share = f" {100 * self.done // self.total} %" if self.total else " …"
        return f"{self.name}{share}"


class Tasks:
    """The work that goes on for one screen, by kind: one of each."""

    def __init__(self, owner: Screen[None]) -> None:
        self._owner = owner
        self._tasks: dict[str, Task] = {}

    def begin(self, work: str, words: str, function: Callable[[Task], object]) -> Task:
        """Run ``function`` in a thread as the one piece of ``work``; what ran under that name before is stopped.

        What it raises is posted to the screen as ``Failed``: a defect in a thread does not end the application.
        """
        self.stop(work)
        task = self._tasks[work] = Task(words)

        def run() -> None:
            try:
                function(task)
            except BackpropError as error:
                if not task.stopped():
                    self.post(Failed(work, error))
            except Exception as error:
                self.post(Failed(work, defect_in(words, error)))
            finally:
                task.ended = True

        self._owner.run_worker(run, thread=True, group=work, name=words, exit_on_error=False)
        return task

    def post(self, message: Message) -> None:
        """Give the screen a message, from any thread."""
        self._owner.post_message(message)

    def goes_on(self, work: str) -> bool:
        task = self._tasks.get(work)
        return task is not None and not task.ended

    def stop(self, *works: str) -> bool:
        """Stop these (without names: everything); whether any was going on."""
        going = [task for work, task in self._tasks.items() if not task.ended and (not works or work in works)]
        for task in going:
            task.stop()
        return bool(going)

    def running(self) -> list[Task]:
        """What goes on, the oldest first; what is done is forgotten."""
        self._tasks = {work: task for work, task in self._tasks.items() if not task.ended}
        return list(self._tasks.values())


def defect_in(doing: str, error: BaseException) -> BackpropError:
    """An exception that is no error of ours, for a person to read."""
    return BackpropError(
        f"a defect in this program, while {doing}: {type(error).__name__}: {error}",
        hint="please report it, with the file or the row if you can share it",
    )
