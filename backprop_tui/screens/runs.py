"""Every run of every directory that was seen: find one, look at it, open it, delete it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from backprop.core.definition import settings
from backprop.core.errors import BackpropError, RunError
from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex, RunSummary, delete_run
from backprop.runs.state import RunState, read_run
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Input

from backprop_tui.charts.loss_plot import LossPlot
from backprop_tui.charts.series import RunSeries
from backprop_tui.keys import Key, bindings
from backprop_tui.screens.base import BaseScreen, ConfigureRun, OpenRun
from backprop_tui.screens.dialogs import Question, deleting
from backprop_tui.text import Row, from_home
from backprop_tui.widgets.bars import Bar
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.run_detail import RunDetail
from backprop_tui.widgets.run_table import SORTS, RunTable

KEYS = (
    Key("enter", "enter", "open", "open", "watch the run: live, or as it was", 1),
    Key("c", "c", "resume", "resume", "continue a run that was stopped or crashed, exactly", 2),
    Key("slash", "/", "filter", "filter", "show the runs that hold a word", 2),
    Key("o", "o", "sort", "sort", "sort by the next column", 3),
    Key("d", "d", "demo", "demo", "start the demonstration run", 3),
    Key("e", "e", "configure", "configure", "configure a new run from this one's settings", 4),
    Key("x,delete", "x", "delete", "delete", "delete a run that is over (asks first)", 4),
    Key("r", "r", "rescan", "read again", "look for runs again", 9),
)
NEED_RUN = ("open", "resume", "filter", "sort", "configure", "delete")
"""Actions that need a run in the list."""

LOOK_AGAIN = 2.0
"""Seconds between two looks at the runs while this screen is shown."""
OUTPUT = Path("output")
"""Where runs are looked for besides those that the index knows."""

WELCOME: list[Row] = [
    [],
    [],
    [("  Welcome to backprop", "strong+bold")],
    [],
    [("  Fine-tune a language model here and see the difference.", "text")],
    [],
    [("  d", "key+bold"), ("   runs the demonstration: a small model, two minutes, no GPU needed", "text")],
    [("  3", "key+bold"), ("   looks at a dataset: what is in it, what is wrong, what would be trained", "text")],
    [("  ?", "key+bold"), ("   shows all keys", "text")],
    [],
    [("  Or with your own data, from the shell:", "muted")],
    [("  backprop-tui --data FILE --model NAME --steps 100", "info")],
]


class RunsScreen(BaseScreen):
    NAME, KEYS = "runs", KEYS
    BINDINGS = bindings(KEYS)

    def __init__(self) -> None:
        super().__init__()
        self._header = Bar(id="runs-header")
        self._filter = Input(id="filter", placeholder="any word of id, name, model, dataset, status", compact=True)
        self._filter.cursor_blink = False
        self._table = RunTable(id="table")
        self._lower = Horizontal(id="detail")
        self._detail = RunDetail(id="detail-rows")
        self._plot = LossPlot(id="detail-plot")
        self.found: list[RunSummary] | None = None
        self.words = ""
        self.sort = SORTS[0]
        self._shown_state: RunState | None = None
        self._series = RunSeries()
        self._troubled = False
        """It was said that the index over runs cannot be used."""

    def compose(self) -> ComposeResult:
        yield self._header
        yield self._filter
        yield self._table
        with self._lower:
            yield self._detail
            yield self._plot
        yield self.keybar

    def on_mount(self) -> None:
        self._table.focus()
        self.show_keys()
        self.set_interval(LOOK_AGAIN, self.look)
        self.look()

    def on_screen_resume(self) -> None:
        self.look()

    def look(self) -> None:
        """Read the runs again in a thread; nothing is drawn where nothing changed."""
        if self.is_current:
            self.run_worker(self._read_runs, thread=True, exclusive=True, group="look", exit_on_error=False)

    def _read_runs(self) -> None:
        with RunIndex() as index:
            index.scan(OUTPUT)
            found = index.summaries()
            trouble = index.trouble
        self.app.call_from_thread(self._take_runs, found)
        if trouble and not self._troubled:
            self._troubled = True
            self.app.call_from_thread(self.notify, trouble, severity="warning", timeout=8)

    def _take_runs(self, found: list[RunSummary]) -> None:
        changed = found != self.found
        self.found = found
        if changed:
            self.show()
            self._read_chosen()

    def show(self) -> None:
        """Draw the list as it is filtered and sorted."""
        found = self.found or []
        runs = [run for run in found if matches(run, self.words)]
        empty = WELCOME if self.found is not None and not found else [[], [("  no run holds this", "muted")]]
        if self.found is None:
            empty = []
        self._table.show(runs, self.sort, empty)
        self._lower.display = bool(runs)
        self._show_header()
        self.show_keys()

    def _show_header(self) -> None:
        found, shown = len(self.found or []), self._table.count
        number = f"{shown} of {found}" if self.words else str(found)
        filtered: Row = [("  with ", "muted"), (self.words, "warn")] if self.words else []
        title: Row = [(" runs ", "strong+bold"), (number, "text"), *filtered]
        self._header.show(title, self.chip() or [("backprop ", "muted")])

    @property
    def chosen_path(self) -> str:
        """Directory of the run under the cursor; empty where there is none."""
        return self._table.chosen.path if self._table.chosen else ""

    @property
    def shown_path(self) -> str:
        """Directory of the run that is shown in detail."""
        return self._shown_state.path if self._shown_state else ""

    def flush(self) -> None:
        self._show_header()
        if self._shown_state is not None and self._series.taken < len(self._shown_state.curves):
            self._draw_plot(self._shown_state)

    def own_keys(self) -> list[Key]:
        return [key for key in KEYS if self.chosen_path or key.name not in NEED_RUN]

    def on_list_view_moved(self) -> None:
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
            state = read_run(Path(path))
        except (BackpropError, OSError):
            return  # deleted while it was looked at: the next look at the list drops it
        self.app.call_from_thread(self._take_state, state)

    def _take_state(self, state: RunState | None) -> None:
        if state is not None and state.path != self.chosen_path:
            return
        self._shown_state, self._series = state, RunSeries()
        self._detail.show(state)
        if state is not None:
            self._draw_plot(state)

    def _draw_plot(self, state: RunState) -> None:
        """Draw the curve, caught up by a portion."""
        self._series.follow(state)
        self._plot.show(self._series.loss, state, state.step, [[("no step taken", "muted")]])

    def action_open(self) -> None:
        if self.chosen_path:
            path = Path(self.chosen_path)
            self.post_message(OpenRun(partial(engine_client.attach, path), path))

    def on_list_view_chosen(self, message: ListView.Chosen) -> None:
        self.action_open()

    def action_resume(self) -> None:
        if self.chosen_path:
            self.post_message(OpenRun(partial(engine_client.resume, Path(self.chosen_path))))

    def action_configure(self) -> None:
        """Go to the Configure screen with the settings of the chosen run that differ from the defaults."""
        if not self.chosen_path:
            return
        try:
            config = RunDirectory(Path(self.chosen_path)).find_record().config
        except RunError as error:
            self.notify(f"{error.message}. {error.hint}", severity="warning", timeout=6)
            return
        values = {name: getattr(config, name) for name in settings() if name != "run_name"}
        self.post_message(ConfigureRun({n: value for n, value in values.items() if value != settings()[n].default}))

    def action_demo(self) -> None:
        from backprop.demo import demo_config

        if self.watch_run is not None and self.watch_run.live:
            self.notify("a run is going already: it is on the Live screen", severity="warning", timeout=4)
        else:
            self.post_message(OpenRun(partial(engine_client.start, demo_config())))

    def action_sort(self) -> None:
        self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        self.show()

    def action_rescan(self) -> None:
        self.found = None
        self.look()

    def action_filter(self) -> None:
        self.add_class("-filtering")
        self._filter.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.words = event.value.strip()
        self.show()

    def on_input_submitted(self) -> None:
        self.set_class(bool(self.words), "-filtering")
        self._table.focus()

    def action_back(self) -> None:
        """Drop the filter."""
        if self.has_class("-filtering") or self.words:
            self._filter.value = ""
            self.remove_class("-filtering")
            self._table.focus()

    def action_delete(self) -> None:
        run = self._table.chosen
        if run is None:
            return
        if RunDirectory(Path(run.path)).is_locked():
            self.notify("this run is being worked on: stop it first", severity="warning", timeout=4)
            return

        def answered(value: str | None) -> None:
            if value == "delete":
                self.run_worker(lambda: self._delete(Path(run.path)), thread=True, exit_on_error=False)

        text = f"{run.model} on {run.dataset}, {run.steps} steps, {run.status}."
        self.app.push_screen(Question("delete", text, deleting(run.run_id, from_home(run.path))), answered)

    def _delete(self, path: Path) -> None:
        try:
            delete_run(path)
        except (RunError, OSError) as error:
            self.app.call_from_thread(self.notify, str(error), severity="error", timeout=8)
        self._read_runs()


def matches(run: RunSummary, words: str) -> bool:
    """Whether every word is somewhere in what the list shows of the run."""
    text = " ".join((run.run_id, run.name, run.model, run.dataset, run.status, run.kind, run.method, run.mode)).lower()
    return all(word in text for word in words.lower().split())
