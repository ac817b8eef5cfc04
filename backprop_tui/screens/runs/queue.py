"""The queue on the Runs screen: runs that are trained one after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from backprop.core.errors import InputError
from backprop.runs import engine_client
from backprop.runs.queue import Entry, Queue, Standing
from rich.cells import cell_len
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical

from backprop_tui.hints import hint_here
from backprop_tui.keys import Key, bindings, press, table
from backprop_tui.screens.again import changed_settings
from backprop_tui.screens.base import BaseScreen, ConfigureRun, OpenRun
from backprop_tui.screens.dialogs import Answer
from backprop_tui.text import STATUS, Row, fit, from_home, safe, short_path
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.text_view import TextView

QUEUED = table(
    "queue",
    Key("escape", "esc", "screen.back", "back", "back to the list of runs", 1),
    Key("enter", "enter", "open", "open", "watch the run, once it is begun", 2),
    Key("K,shift+up", "K", "move(-1)", "earlier", "begin the entry before the one above it", 2),
    Key("J,shift+down", "J", "move(1)", "later", "begin it after the one below it", 2),
    Key("e", "e", "configure", "copy", "a copy on the Configure screen: change it there, and queue it", 2),
    Key("x,delete", "x", "remove", "remove", "take the entry out; the directory of a run that was begun stays", 2),
    Key("y", "y", "copy", "copy command", "copy the command that starts the same run", 3),
    Key("a", "a", "after_failure", "after a failure", "after a failure the queue goes on, or stops", 3),
    Key("g", "g", "go_on", "go on", "go on with a queue that stopped", 3),
)
"""While the queue is seen."""
REMOVING = (
    Answer("no", "n", "Keep it", ""),
    Answer("remove", "x", "Take it out", "it was not begun: nothing of it is left"),
)
_LEAST = 14
"""Cells of the run's name or its data, at least; the model gives way."""
_GLYPHS = {**STATUS, "waiting": ("·", "text")}


class EntryList(ListView):
    """What is trained, what waits with its number, and what is over."""

    now: Standing | None = None

    @property
    def chosen(self) -> Entry | None:
        entries = self.now.entries if self.now else []
        return entries[self.cursor] if self.cursor < len(entries) else None

    def show(self, now: Standing) -> None:
        """The cursor stays on its entry."""
        before = self.chosen
        self.now = now
        ids = [entry.run_id for entry in now.entries]
        self.resize_list(len(ids))
        if before is not None and before.run_id in ids:
            self.cursor = ids.index(before.run_id)

    def _columns(self) -> tuple[int, int, int]:
        """Cells of the run, the model and the name or data, each with a gap."""
        length = max((cell_len(entry.length) for entry in self.now.entries), default=0) if self.now else 0
        length = max(length, len("length")) + 1
        for run, model in ((14, 18), (14, 0), (9, 0)):
            if (name := self.size.width - 20 - run - model - length) >= _LEAST:
                break
        return run, model, max(name, 1)

    def head(self) -> list[Row]:
        run, model, name = self._columns()
        titles = f"{'':5}{'status':<14}{'run':<{run}}{fit('model', model)}{fit('name or data', name)}length"
        return [[(fit(titles, self.size.width), "muted+underline")]]

    def row_at(self, index: int, width: int) -> Row:
        assert self.now is not None
        entry, number = self.now.entries[index], index + 1 - len(self.now.running)
        glyph, ink = _GLYPHS.get(entry.status, ("?", "warn"))
        config = entry.config
        run, model, name = self._columns()
        return [
            (f"{number if entry.status == 'waiting' else '':>3}  ", "muted"),
            (f"{glyph} {entry.status:<12}", ink),
            (f"{entry.run_id[: run - 1]:<{run}}", "strong"),
            (fit(fit(safe(short_path(config.model)), model - 1), model), "text"),
            (fit(safe(config.run_name or short_path(config.data)), name - 1) + " ", "text"),
            (entry.length, "text"),
        ]


class QueuePane(Vertical):
    """The entries, and about the one under the cursor how it would be started and how it ended."""

    BINDINGS = bindings(QUEUED)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.queue, self.entries, self.about = Queue(), EntryList(id="entries"), TextView(id="entry")

    def compose(self) -> ComposeResult:
        yield self.entries
        yield self.about

    @property
    def state(self) -> Row:
        """How many wait, and why nothing is begun; empty where nothing is queued."""
        now = self.entries.now
        if now is None or (now.idle and not now.waiting):
            return []
        why = f": {now.runner}" if now.runner else ""
        why = f": stopped, {now.stopped}; {press('queue.go-on')} goes on" if now.stopped else why
        return [(f"  {len(now.waiting)} queued", "info"), (why, "warn")]

    def own_keys(self) -> list[Key]:
        """The keys that do something now."""
        entry, now = self.entries.chosen, self.entries.now
        hidden = set() if entry else {"open", "move", "configure", "remove", "copy"}
        hidden |= set() if entry and entry.status == "waiting" else {"move"}
        hidden |= set() if now and now.stopped else {"go_on"}
        return [key for key in QUEUED if key.name not in hidden]

    def look(self) -> None:
        """Read the queue in a thread; where there is work that nobody does, that is begun."""
        self._do(lambda: None)

    def _do(self, change: Callable[[], object]) -> None:
        def work() -> None:
            try:
                change()
            except (InputError, OSError) as error:
                words = f"{error.message}. {hint_here(error.hint)}" if isinstance(error, InputError) else str(error)
                self.app.call_from_thread(self.notify, words, severity="warning", timeout=6)
            self.app.call_from_thread(self._take, self.queue.ensure_runner())

        self.run_worker(work, thread=True, exit_on_error=False)

    def _take(self, now: Standing) -> None:
        if now != self.entries.now:
            self.entries.show(now)
            self._show_entry()

    @on(ListView.Moved)
    def _moved(self, event: ListView.Moved) -> None:
        event.stop()  # it is not the list of runs that moved
        self._show_entry()

    def _show_entry(self) -> None:
        entry, now = self.entries.chosen, self.entries.now
        queues = f"{press('configure.queue')} on the Configure screen does, or `backprop queue add`"
        rows: list[Row] = [[(f"nothing is queued: {queues}", "muted")]]
        if entry is not None:
            rows = [[("command    ", "muted"), (self._command(entry), "text")]]
            rows += [[("why        ", "muted"), (safe(hint_here(entry.message)), "bad")]] if entry.message else []
        if now is not None:
            does = "goes on" if now.rules.after_failure == "continue" else "stops"
            changes = f" ({press('queue.after-a-failure')} changes that)"
            rows.append([("failures   ", "muted"), (f"the queue {does} after one", "text"), (changes, "muted")])
            rows += [[(f"not read: {safe(each)}", "warn")] for each in now.unreadable]
        self.about.show_rows(rows)

    def _command(self, entry: Entry) -> str:
        from backprop.cli.options import command_line

        return from_home(command_line(entry.config))

    def action_copy(self) -> None:
        if (entry := self.entries.chosen) is not None:
            self.app.copy_to_clipboard(self._command(entry))

    @on(ListView.Chosen)
    def _chosen(self, event: ListView.Chosen) -> None:
        event.stop()
        self.action_open()

    def action_open(self) -> None:
        entry = self.entries.chosen
        if entry is not None and entry.directory.is_dir():
            self.post_message(OpenRun(partial(engine_client.attach, entry.directory), entry.directory))

    def action_move(self, by: int) -> None:
        entry, now = self.entries.chosen, self.entries.now
        if now is not None and entry is not None and entry.status == "waiting":
            place = self.entries.cursor + 1 - len(now.running) + by
            self._do(lambda: self.queue.move(entry.run_id, place))

    def action_remove(self) -> None:
        """Take an entry out; one that is trained is stopped where it is watched, one that waits is asked about."""
        if (entry := self.entries.chosen) is None:
            return
        what = f"run {entry.run_id} ({safe(entry.config.run_name or short_path(entry.config.data))}, {entry.length})"
        remove = partial(self._do, lambda: self.queue.remove(entry.run_id))
        if entry.status == "running":
            keys = f"{press('queue.open')} shows it, {press('live.stop')} stops it there"
            self.notify(f"run {entry.run_id} is being trained: {keys}", timeout=6)
        elif entry.status == "waiting" and isinstance(self.screen, BaseScreen):
            self.screen.confirm("queue", f"Take {what} out of the queue?", REMOVING, remove)
        else:
            remove()

    def action_configure(self) -> None:
        if (entry := self.entries.chosen) is not None:
            self.post_message(ConfigureRun(changed_settings(entry.config)))

    def action_after_failure(self) -> None:
        goes_on = self.entries.now is None or self.entries.now.rules.after_failure == "continue"
        self._do(lambda: self.queue.rule(after_failure="stop" if goes_on else "continue"))

    def action_go_on(self) -> None:
        self._do(lambda: self.queue.rule(resumed=time.time()))
