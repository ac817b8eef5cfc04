"""A screen whose work runs in threads: begun, stopped, and told of by a timer that rests when there is none."""

from __future__ import annotations

from collections.abc import Callable

from backprop.core.errors import BackpropError
from textual import on
from textual.screen import Screen
from textual.timer import Timer
from textual.worker import Worker, WorkerState

from backprop_tui.screens.dataset.file import Job
from backprop_tui.screens.dataset.messages import Failed
from backprop_tui.widgets.styled import one_line


class JobScreen(Screen[None]):
    """Subclasses say in ``flush`` what is shown of the work; it is called while there is any, and at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Job] = {}
        """Work that is running, by kind: one of each."""
        self.notice = ""
        self._timer: Timer | None = None

    def on_unmount(self) -> None:
        for job in self.jobs.values():
            job.stop()

    def flush(self) -> None:
        """Show what changed since the last time."""
        raise NotImplementedError

    def tick(self) -> None:
        """Flush now, and several times a second until ``rest``."""
        if self._timer is None:
            self._timer = self.set_interval(0.25, self.flush)
        self._timer.resume()
        self.flush()

    def rest(self) -> None:
        """Stop flushing: nothing changes by itself any more, and nothing is drawn."""
        if self._timer is not None:
            self._timer.pause()

    def drop_ended(self) -> None:
        """Forget work that is done."""
        for work in [work for work, job in self.jobs.items() if job.ended]:
            del self.jobs[work]

    def begin(self, work: str, words: str, function: Callable[[Job], object]) -> None:
        """Run ``function`` in a thread as the one piece of ``work``; what ran under that name before is stopped."""
        if work in self.jobs:
            self.jobs[work].stop()
        job = self.jobs[work] = Job(words)
        self.notice = ""

        def run() -> None:
            try:
                function(job)
            except BackpropError as error:
                if not job.stopped():
                    self.post_message(Failed(work, error))
            finally:
                job.ended = True

        self.run_worker(run, thread=True, group=work, name=words, exit_on_error=False)
        self.tick()

    @on(Worker.StateChanged)
    def _say_defect(self, event: Worker.StateChanged) -> None:
        """A defect in a thread is said on screen; it does not end the application."""
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            self.post_message(Failed(event.worker.group, defect_in(event.worker.name, event.worker.error)))

    def action_stop_work(self) -> None:
        """Stop everything that is running in the background."""
        running = [job for job in self.jobs.values() if not job.ended]
        for job in running:
            job.stop()
        self.say("stopped" if running else "nothing is running")

    def say(self, text: str) -> None:
        """Show a line at the bottom until the next one."""
        self.notice = one_line(text)
        self.flush()


def defect_in(doing: str, error: BaseException) -> BackpropError:
    """An exception that is no error of ours, for a person to read."""
    return BackpropError(
        f"a defect in this program, while {doing}: {type(error).__name__}: {error}",
        hint="please report it, with the file or the row if you can share it",
    )
