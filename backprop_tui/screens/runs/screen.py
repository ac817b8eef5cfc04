"""Every run of every directory that was seen: find one, look at it, open it, delete it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Lock

from backprop.core.errors import BackpropError
from backprop.runs import engine_client
from backprop.runs.deletion import delete_run, sizes
from backprop.runs.engine_client import EngineClient
from backprop.runs.state import RunState, read_run
from backprop.runs.summary import SORTS, RunSummary, matches
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Input

from backprop_tui.charts.loss_plot import LossPlot
from backprop_tui.charts.overlay import MOST
from backprop_tui.charts.series import RunSeries
from backprop_tui.keys import Key, bindings, press
from backprop_tui.run_reader import LIVING, OUTPUT, RunReader
from backprop_tui.screens import again
from backprop_tui.screens.base import BaseScreen, OpenRun, ShowOn
from backprop_tui.screens.dialogs import FORKING, REPLAYING, Answer
from backprop_tui.screens.runs import deleting
from backprop_tui.screens.runs.comparison import COMPARING, Comparison
from backprop_tui.screens.runs.keys import KEYS, TYPING, useful
from backprop_tui.screens.runs.queue import QUEUED, QueuePane
from backprop_tui.screens.runs.welcome import welcome
from backprop_tui.screens.trouble import edit, show_error
from backprop_tui.text import Row, count
from backprop_tui.widgets.bars import Bar
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.path_input import Prompt, candidates
from backprop_tui.widgets.run_detail import RunDetail
from backprop_tui.widgets.run_table import RunTable

_NAMED = 8
"""Of the files that are there, so many are named."""
LOOK_AGAIN = 3.0
"""Seconds between two looks at the runs while this screen is shown."""


class RunsScreen(BaseScreen):
    NAME, KEYS = "runs", KEYS
    BINDINGS = bindings(KEYS)
    CSS_PATH = "screen.tcss"
    AUTO_FOCUS = "#table"

    def __init__(self) -> None:
        super().__init__()
        self._header = Bar(id="runs-header")
        self._filter = Input(
            id="filter", placeholder="any words of id, name, model, dataset, status, tags, note", compact=True
        )
        self._filter.cursor_blink = False
        self._table = RunTable(id="table")
        self._lower = Horizontal(id="detail")
        self._detail = RunDetail(id="detail-rows")
        self._plot = LossPlot(id="detail-plot")
        self._comparison, self._queued = Comparison(id="comparison"), QueuePane(id="queue")
        self._prompt = Prompt(id="prompt")
        self.found: list[RunSummary] | None = None
        self.words = ""
        self.sort, self.backwards = next(iter(SORTS)), False
        self._shown_state: RunState | None = None
        self._series = RunSeries()
        self._reader, self._reading = RunReader(OUTPUT), Lock()
        self._files: list[str] = []
        """Datasets of the current directory, looked for where there is no run."""
        self._deleting = ""
        """What is being deleted, in words; emptied to end it."""
        self._troubled = False
        """It was said that the index over runs cannot be used."""

    def compose(self) -> ComposeResult:
        yield self.header
        yield self._header
        yield self._filter
        yield self._table
        with self._lower:
            yield self._detail
            yield self._plot
        yield self._comparison
        yield self._queued
        yield self._prompt
        yield self.keybar

    def on_mount(self) -> None:
        self.show_keys()
        self.set_interval(LOOK_AGAIN, self.look)

    def on_screen_resume(self) -> None:
        self._plot.redraw()  # its symbols may be others now
        self.look()

    def look(self) -> None:
        """Read the runs again in a thread; nothing is drawn where nothing changed."""
        if self.is_current:
            compared = self._comparison.paths
            if compared and any(run.path in compared and run.status in LIVING for run in self.found or ()):
                self._comparison.look()
            self._queued.look()
            self.run_worker(self._read_runs, thread=True, exclusive=True, group="look", exit_on_error=False)

    def _read_runs(self, *, wait: bool = False) -> None:
        if not self._reading.acquire(blocking=wait):
            return  # many runs are read for the first time
        take = partial(self.app.call_from_thread, self._take_runs)
        try:
            some = partial(self.app.call_from_thread, self._take_some)
            runs = self._reader.read([run.path for run in self._table.seen()], some)
            if not runs:
                from backprop.core.datasets import FILE_ENDINGS  # not for the first drawing of runs that are there

                self._files = [name for name in candidates("", FILE_ENDINGS) if not name.endswith("/")][:_NAMED]
            take(runs)
        finally:
            self._reading.release()
        trouble = self._reader.trouble
        if trouble and not self._troubled:
            self._troubled = True
            self.app.call_from_thread(self.notify, trouble, severity="warning", timeout=8)

    def _take_runs(self, found: list[RunSummary]) -> None:
        changed = found != self.found
        self.found = found
        if changed:
            before = self.chosen_path
            self.show()
            if self.chosen_path == before:  # else the table says that the cursor is on another
                self._read_chosen()

    def _take_some(self, found: list[RunSummary]) -> None:
        """Show the first of many; the cursor stays at the top until a person moves it."""
        untouched = self._table.cursor == 0
        self._take_runs(found)
        if untouched:
            self._table.cursor = 0

    def show(self) -> None:
        """Draw the list as it is filtered and sorted."""
        found = self.found or []
        runs = [run for run in found if matches(run, self.words)]
        every = f"  no run holds this: {press('everywhere.back')} shows every run"
        empty: list[Row] = [[], [(every, "muted")]] if found else []
        if self.found is not None and not found:
            empty = welcome(self._files, self.size.width)
        self._table.show(runs, self.sort, empty, backwards=self.backwards)
        self._lower.display = bool(runs) and not self._covered
        self._show_header()
        self.show_keys()

    def _show_header(self) -> None:
        found, shown = len(self.found or []), self._table.count
        number = f"{count(shown)} of {count(found)}" if self.words else count(found)
        filtered: Row = [("  with ", "muted"), (self.words, "warn")] if self.words else []
        marked: Row = [(f"  {count(len(self._table.marked))} marked", "mark")] if self._table.marked else []
        title: Row = [(" runs ", "strong+bold"), (number, "text"), *filtered, *marked]
        title += [*self._queued.state, (f"  {self._deleting}", "warn")]
        self._header.show(title)

    @property
    def chosen_path(self) -> str:
        """Directory of the run under the cursor; empty where there is none."""
        return self._table.chosen.path if self._table.chosen else ""

    def flush(self) -> None:
        self._show_header()
        self.show_keys()
        if self._shown_state is not None and self._series.taken < len(self._shown_state.curves):
            self._draw_plot(self._shown_state)

    @property
    def keys_in_front(self) -> tuple[Key, ...]:
        pane = COMPARING if self.has_class("-comparing") else QUEUED
        return pane if self._covered else ()

    def own_keys(self) -> list[Key]:
        if self.focused is self._filter:
            return TYPING
        if self._covered:
            pane = self._comparison if self.has_class("-comparing") else self._queued
            return [key._replace(action="") for key in pane.own_keys()]
        return useful(self._table.chosen, queued=bool(self._queued.state), marked=bool(self._table.marked))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The list's keys do nothing while it is not seen."""
        return not (self._covered and action in {key.name for key in KEYS})

    def on_list_view_moved(self) -> None:
        self.show_keys()
        self._read_chosen()

    def _read_chosen(self) -> None:
        path = self.chosen_path
        if path:
            read = partial(self._read_state, path)
            self.run_worker(read, thread=True, exclusive=True, group="detail", exit_on_error=False)
        else:
            self._take_state(None)

    def _read_state(self, path: str) -> None:
        try:
            state, files = read_run(Path(path)), sizes(Path(path))
        except (BackpropError, OSError):
            return  # deleted while it was looked at: the next look at the list drops it
        self.app.call_from_thread(self._take_state, state, files)

    def _take_state(self, state: RunState | None, files: Mapping[str, int] | None = None) -> None:
        if state is not None and state.path != self.chosen_path:
            return
        self._shown_state, self._series = state, RunSeries()
        self._detail.files = files or {}
        self._detail.show(state)
        if state is not None:
            self._draw_plot(state)

    def _draw_plot(self, state: RunState) -> None:
        """Draw the curve, caught up by a portion."""
        self._series.follow(state)
        self._plot.show(self._series.loss, state, state.step, [[("no step taken", "muted")]])

    @on(ListView.Chosen)
    def action_open(self) -> None:
        if self.chosen_path:
            path = Path(self.chosen_path)
            self.post_message(OpenRun(partial(engine_client.attach, path), path))

    def action_resume(self) -> None:
        if self._shown_state is not None:
            self.resume(self._shown_state)

    def action_copy(self) -> None:
        if self._shown_state is not None:
            self.copy(self._shown_state)

    def action_configure(self) -> None:
        """Go to the Configure screen with the chosen run's settings, and what its error proposes."""
        if self.chosen_path:
            shown = self._shown_state
            edit(self, self.chosen_path, shown.failed if shown and shown.path == self.chosen_path else None)

    @property
    def looked_at(self) -> str:
        run = self._table.chosen
        return run.path if run is not None and run.output_path else ""

    def action_show_on(self, screen: str) -> None:
        """Take the chosen run to another screen, where it has a result."""
        if self.looked_at:
            self.post_message(ShowOn(screen, self.looked_at))

    def action_demo(self) -> None:
        from backprop.core.resolve import resolve
        from backprop.demo import demo_config

        if self.watch_run is not None and self.watch_run.live:
            self.notify("a run is going already: it is on the Live screen", severity="warning", timeout=4)
        else:
            config = demo_config(resolve().values["output_dir"])
            self.post_message(OpenRun(partial(engine_client.start, config)))

    def action_sort(self) -> None:
        words = list(SORTS)
        self.sort = words[(words.index(self.sort) + 1) % len(words)]
        self.show()

    def action_reverse(self) -> None:
        self.backwards = not self.backwards
        self.show()

    def on_run_table_titled(self, message: RunTable.Titled) -> None:
        self.backwards = message.title == self.sort and not self.backwards
        self.sort = message.title
        self.show()

    def action_mark(self) -> None:
        self._table.mark()
        self._show_header()
        self.show_keys()

    def action_rescan(self) -> None:
        self.found = None
        self._reader.read_all()
        self.look()

    def action_filter(self) -> None:
        self.add_class("-filtering")
        self._filter.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.words = event.value.strip()
        self.show()

    def on_input_submitted(self) -> None:
        self.set_focus(self._table)
        self.set_class(bool(self.words), "-filtering")

    def action_back(self) -> None:
        """From the comparison or the queue to the list; there stop deleting, drop the marks, then the filter."""
        if self._deleting:
            self._deleting = ""
        elif self._covered:
            self._show_instead("")
        elif self._table.marked:
            self._table.marked.clear()
            self.show()
        elif self.has_class("-filtering") or self.words:
            self.set_focus(self._table)
            self._filter.value = ""
            self.remove_class("-filtering")

    def action_compare(self) -> None:
        if len(self._table.marked) < 2:
            self.notify(f"mark two runs or more with {press('runs.mark')}, then compare them", timeout=4)
            return
        runs = self._table.targets
        if len(runs) > MOST:
            self.notify(f"the first {MOST} of {len(runs)} marked runs are shown", severity="warning", timeout=4)
        self._show_instead("-comparing")
        self._comparison.open([run.path for run in runs[:MOST]])

    def action_queue(self) -> None:
        self._show_instead("-queueing")
        self._queued.entries.cursor = 0  # what is trained, or is begun next
        self.set_focus(self._queued.entries)

    @property
    def _covered(self) -> bool:
        """Whether something else is seen in place of the list."""
        return self.has_class("-comparing") or self.has_class("-queueing")

    def _show_instead(self, what: str) -> None:
        """Show what a class of the screen stands for in place of the list; with an empty one the list again."""
        for name in ("-comparing", "-queueing"):
            self.set_class(name == what, name)
        if not what:
            self._comparison.paths = []
            self.set_focus(self._table)
        self.show()

    def action_extend(self) -> None:
        state = self._shown_state
        if state is None or not state.ended:
            return
        path = Path(state.path)

        def extend(steps: str) -> None:
            if steps:
                self.post_message(OpenRun(partial(engine_client.extend, path, int(steps))))

        label = f"run {state.run_id} has taken {count(state.step)} of {count(state.total_steps)} steps; its new end:"
        self._prompt.ask(label, extend, numbers=range(state.step + 1, 10**9))

    def action_fork(self) -> None:
        self._begin_again(again.fork, FORKING, "A new run from the weights of its newest checkpoint.")

    def action_replay(self) -> None:
        words = "A new run from the same model and rows; others are refused. At the end the two curves are compared."
        self._begin_again(again.replay, REPLAYING, words)

    def _begin_again(self, begin: Callable[[Path], EngineClient], answers: tuple[Answer, ...], words: str) -> None:
        if self.chosen_path:
            message = OpenRun(partial(begin, Path(self.chosen_path)))

            def go() -> None:
                self.notify("the model is compared with the run's", timeout=4)
                self.post_message(message)

            self.confirm(answers[-1].value, words, answers, go)

    def action_delete(self) -> None:
        runs, shown = self._table.targets, self._shown_state
        size = sum(self._detail.files.values()) if shown and [run.path for run in runs] == [shown.path] else None
        if (busy := deleting.in_use(runs)) is not None:
            self.notify(f"run {busy} is being worked on: stop it first", severity="warning", timeout=4)
        elif runs:
            text, answers = deleting.question(runs, self.found or (), size)
            delete = partial(self._delete, [Path(run.path) for run in runs])
            begin = partial(self.run_worker, delete, thread=True, exit_on_error=False)
            self.confirm("delete", text, answers, begin)

    def _delete(self, paths: list[Path]) -> None:
        from backprop.core.refused import refused

        for number, path in enumerate(paths, 1):
            self._deleting = (
                f"deleting {number} of {len(paths)}, {press('everywhere.back')} stops" if len(paths) > 1 else "deleting"
            )
            try:
                delete_run(path)
            except (BackpropError, OSError) as error:
                known = error if isinstance(error, BackpropError) else refused(error)
                self.app.call_from_thread(show_error, self, known)
            if not self._deleting:
                break
        self._deleting = ""
        self._read_runs(wait=True)
