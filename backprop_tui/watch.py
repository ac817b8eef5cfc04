"""One run, watched: a thread reads the link, the screen's timer folds what came. Nothing else touches the state.

The thread only reads and puts aside; ``advance`` is called on the event loop, takes in a bounded amount and says
whether more waits, so that a journal of any length never holds up a key.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from backprop.core.errors import EXIT_USER, BackpropError, EngineCrashedError, RunError
from backprop.core.events import AnyEvent, Command, RunStarted
from backprop.runs import engine_client
from backprop.runs.engine_client import EngineClient
from backprop.runs.sessions import session_of
from backprop.runs.state import RunState, read_run

from backprop_tui.charts.series import RunSeries
from backprop_tui.hints import hint_here
from backprop_tui.keys import press
from backprop_tui.remedy import place_of, remedy_of, remedy_words
from backprop_tui.text import count, from_home
from backprop_tui.widgets.log import Problem
from backprop_tui.widgets.run_detail import resume_words

EVENTS_AT_ONCE = 4000
_BREATH = 0.05
"""The reading thread rests so long between two reads: a fast engine comes in portions."""
_WAITING = 1
"""Portions that may wait to be folded."""


class Watch:
    """A run on its way to the screen. ``state`` is empty until its directory was read."""

    def __init__(self, link: EngineClient) -> None:
        self.link = link
        self.path: Path = link.directory.path
        self.session = session_of(self.path)
        """Directory of the session that it is a run of, whose engine takes the commands."""
        self.state = RunState(run_id=link.run_id, path=str(self.path), alive=True)
        self.series = RunSeries()
        self.crash: EngineCrashedError | None = None
        self.error: BackpropError | None = None
        """Why the run cannot be read."""
        self.log = ""
        """The last lines of the engine's log, once it is over."""
        self.was_alive = False
        self._told = ""
        """Its status at the last ``news``."""
        self._inbox: deque[tuple[list[AnyEvent], bool, bool]] = deque()
        self._first: RunState | None = None
        self._rest: deque[AnyEvent] = deque()
        self._over = False
        self._closed = threading.Event()
        threading.Thread(target=self._read, name=f"watch-{link.run_id}", daemon=True).start()

    def _read(self) -> None:
        try:
            known = self._begin()
            while not self._closed.is_set():
                found = [event for event in self._next() if event.seq > known]
                # Steps that are taken again, after others that the state has let go of.
                if any(isinstance(event, RunStarted) and event.resumed_from is not None for event in found):
                    known = self._begin()
                if self.link.over:  # before its end is told: who sees that finds the log
                    self.log = self.link.directory.last_lines()
                self._inbox.append((found, self.link.alive(), self.link.over))
                if self.link.over:
                    if not self.path.is_dir():  # the engine only seems to be gone: it was looked for in the wrong place
                        raise RunError(
                            f"{self.path} is gone: it was deleted or moved while it was watched",
                            code="RUN_DAMAGED",
                            hint="where it was moved, `backprop-tui --attach PATH` watches it there",
                        )
                    return
                while not self._closed.wait(_BREATH) and len(self._inbox) > _WAITING:
                    pass
        except BackpropError as error:
            self.error = error
        except OSError as error:
            self.error = BackpropError(f"{self.path} cannot be read: {error.strerror}", code="RUN_DAMAGED")
        finally:
            if self._closed.is_set():
                self.link.detach()

    def _begin(self) -> int:
        """Read the whole run for the state to begin with; the number of its last event."""
        self._first = first = read_run(self.path)
        return first.last_seq

    def _next(self) -> list[AnyEvent]:
        try:
            return self.link.read(0.5)
        except RunError as error:
            if error.code != "RUN_ALREADY_ACTIVE":
                raise
            self.link = engine_client.attach(self.path)  # somebody else was faster: this is what goes on
            return []

    def advance(self) -> bool:
        """Fold in what came since the last call, a bounded amount; whether more waits."""
        if self._first is not None:
            self.state, self._first = self._first, None
            self.series = RunSeries()
            if self.state.ended and self.state.last_event_at < self.link.launched_at:
                self.state.await_start(self.link.launched_at)
            self.was_alive = self.was_alive or self.state.alive
        if self.error is not None:
            self.state.alive, self.state.journal_status = False, "damaged"
        budget = EVENTS_AT_ONCE
        while budget > 0 and (self._rest or self._inbox):
            if not self._rest:
                events, alive, over = self._inbox.popleft()
                self._rest.extend(events)
                before, self.state.alive = self.state.alive, alive and not over
                if self.state.alive and not before:  # whoever continues the run: silent since now, at most
                    self.state.awaited_since = time.time()
                self.was_alive = self.was_alive or self.state.alive
                self._over = self._over or over
            while self._rest and budget > 0:
                self.state.apply(self._rest.popleft())
                budget -= 1
        more = bool(self._rest or self._inbox)
        more = self.series.follow(self.state) or more
        self.series.release(self.state)
        if self._over and not more and self.crash is None and self.state.status == "crashed":
            self.crash = self.link.crash()
        return more

    def news(self) -> str:
        """What happened to the run since the last call, where that is worth a word: its end, a pause of its own."""
        state, before = self.state, self._told
        self._told = state.status if self.was_alive else ""
        if before in ("", state.status):
            return ""
        if state.status == "paused":
            return "" if state.paused_for in ("", "requested") else f"is paused: {state.paused_for}"
        return f"is over: {state.status}" if state.ended or state.status == "crashed" else ""

    def shows(self, path: Path) -> bool:
        """Whether it is the run in ``path``, however that is spelt."""
        return os.path.realpath(self.path) == os.path.realpath(path)

    @property
    def waits(self) -> bool:
        """Whether something was read that is not folded in yet."""
        return self._first is not None or bool(self._rest or self._inbox)

    @property
    def live(self) -> bool:
        """Whether an engine works on the run, so that it takes commands."""
        return self.state.alive and not self.state.ended and self.error is None and self.session is None

    @property
    def problem(self) -> Problem | None:
        """What is wrong with a run that failed, crashed or is damaged; ``None`` if it is sound."""
        state = self.state
        more = [again] if (again := resume_words(state, press("live.save"))) else []
        if state.step:
            more.append(f"its {count(state.step)} steps are kept: {press('live.panes')} shows the curve and the events")
        if self.error is not None:
            return Problem(
                f"cannot be read [{self.error.code}]", from_home(self.error.message), hint_here(self.error.hint)
            )
        if self.crash is not None:
            title = f"the engine is gone [{self.crash.code}]"
            return Problem(title, self.crash.message, hint_here(from_home(self.crash.hint)), more)
        if (last := state.last_failure) is not None:
            if last.code == "RUNTIME_TRAINING_FAILED":  # unexpected: what a person would have to report
                more.append(last.traceback)
            if remedy := remedy_of(last.details):
                more.append(f"{press('live.edit-settings')} edits its settings with {remedy_words(remedy)} filled in")
            failed = last.error()
            title = f"{'not continued' if state.refused else 'failed'} [{failed.code}]"
            # What has to be mended is said, and what was asked for is no fault: no traceback helps.
            log = "" if failed.exit_code == EXIT_USER or last.code == "RUNTIME_TRAINING_ABORTED" else self.log
            return Problem(title, failed.message, hint_here(failed.hint), more, place=place_of(failed), log=log)
        if state.damage and not state.alive:
            return Problem("damaged [RUN_DAMAGED]", from_home("\n".join(state.damage)), "what could be read is shown")
        return None

    def send(self, command: Command) -> None:
        """Give the engine a command.

        Raises:
            RunError: no engine listens, or it may not be told.
        """
        with _reaching():
            self.link.send(command)

    def kill(self) -> None:
        """End the engine at once, where it is there.

        Raises:
            RunError: it may not be ended.
        """
        with _reaching(), contextlib.suppress(ProcessLookupError):
            self.link.kill()

    def close(self) -> None:
        """Stop watching; the engine goes on."""
        self._closed.set()


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """Turn what the system refuses into an error of the run."""
    try:
        yield
    except OSError as error:
        hint = "it may be another user's: ask who started it"
        raise RunError(
            f"the engine cannot be reached: {error.strerror}", code="RUNTIME_IO_FAILED", hint=hint
        ) from error
