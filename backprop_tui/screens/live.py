"""One run while it trains, or as it was."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from pathlib import Path

from backprop.core.errors import RunError
from backprop.core.events import Abort as AbortCommand
from backprop.core.events import CheckpointNow, Command, Pause, PhaseChanged, Resume, SampleNow, Stop
from backprop.runs import engine_client
from backprop.runs.describe import describe
from backprop.runs.state import RunState
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from backprop_tui.charts.loss_plot import LossPlot
from backprop_tui.charts.series import Curve
from backprop_tui.charts.sparkline import Readings
from backprop_tui.hints import hint_here
from backprop_tui.keys import Key, bindings, press, table
from backprop_tui.screens.base import BaseScreen, OpenRun, ShowOn
from backprop_tui.screens.dialogs import ABORTING
from backprop_tui.screens.trouble import edit
from backprop_tui.text import Row
from backprop_tui.watch import Watch
from backprop_tui.widgets.bars import PaneTabs
from backprop_tui.widgets.facts import DataPane, FactsPanel
from backprop_tui.widgets.gpu import GpuPanel
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.log import EventLog, ProblemPane
from backprop_tui.widgets.samples import SamplesPane, pairs
from backprop_tui.widgets.session import ForgettingPane, RunsPane, run_number
from backprop_tui.widgets.status import Progress, RunHeader

KEYS = table(
    "live",
    Key("p", "p", "pause", "pause", "pause after this step, or go on", 1),
    Key("s", "s", "stop", "stop", "finish this step, save, and end the run", 2),
    Key("c", "c", "checkpoint", "save", "save a checkpoint now; of a run that is over: continue it", 2),
    Key("g", "g", "sample", "sample", "answer the sample prompts with the model as it is", 4),
    Key("a", "a", "abort", "abort", "end at once without saving (asks first)", 6),
    Key("e", "e", "edit", "edit settings", "configure a new run from its settings, its error's remedy filled in", 5),
    Key("y", "y", "copy", "copy", "copy its id, a command, its error; over SSH too", 6),
    Key("t", "t", "show_on('chat')", "talk", "talk to the finished run's model on the Chat screen", 1),
    Key("w", "w", "show_on('export')", "export", "write its model in another format on the Export screen", 1),
    Key("tab", "tab", "pane(1)", "panes", "events, samples, data, a session's runs and forgetting: the next", 2),
    Key("shift+tab", "shift+tab", "pane(-1)", "previous pane", "the previous one", 9),
    Key("l", "l", "log_y", "log", "logarithmic or linear loss axis", 5),
    Key("plus,equals_sign", "+", "smooth(1)", "smooth", "smooth the loss more", 5),
    Key("minus", "-", "smooth(-1)", "smooth less", "smooth it less", 9),
    Key("b", "b", "symbols", "symbols", "draw with braille, blocks or ASCII", 9),
)
SESSION = Key("escape", "esc", "screen.back", "session", "to the session that this run is of", 1, "everywhere.back")
COMMANDS = ("pause", "stop", "checkpoint", "sample", "abort")
"""Actions that need a living engine."""


class LiveScreen(BaseScreen):
    NAME, KEYS = "live", KEYS
    BINDINGS = bindings(KEYS)
    CSS_PATH = "live.tcss"

    def __init__(self) -> None:
        super().__init__()
        self._header = RunHeader(id="header")
        self._progress = Progress(id="progress")
        self._plot = LossPlot(id="plot")
        self._readings = (Readings(id="readings-low"), Readings(id="readings-tall"))
        self._gpus = (GpuPanel(id="gpu-low"), GpuPanel(id="gpu-tall"))
        self._facts = FactsPanel(id="facts")
        self._tabs = PaneTabs(id="tabs")
        self._events, self._samples = EventLog(id="events"), SamplesPane(id="samples")
        self._data, self._problem = DataPane(id="data"), ProblemPane(id="problem")
        self._runs, self._forgetting = RunsPane(id="timeline"), ForgettingPane(id="forgetting")
        panes = (self._events, self._samples, self._data, self._runs, self._forgetting, self._problem)
        self._contents = {str(pane.id): pane for pane in panes}
        self.pane = "events"
        self._at_readings = False
        """The small curves take part in every other drawing: a key that waits for one waits less."""
        self._chosen_by_hand = False
        self._watch: Watch | None = None
        self._asked: tuple[str, tuple[str, ...], int] | None = None
        """What was asked of the engine, in words, the events that answer it, and how many there were before."""

    def compose(self) -> ComposeResult:
        yield self.header
        yield self._header
        yield self._progress
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield self._plot
                yield self._readings[0]
                yield self._gpus[0]
                yield self._tabs
                yield from self._contents.values()
            with Vertical(id="side"):
                yield self._readings[1]
                yield self._gpus[1]
                yield self._facts
        yield self.keybar

    def on_mount(self) -> None:
        self._show_pane("events")
        self.flush()

    def flush(self) -> None:
        watch = self.watch_run
        if watch is not self._watch:
            back = watch is not None and self._watch is not None and self._watch.session == watch.path
            self._watch, self._asked, self._chosen_by_hand = watch, None, back
            self._show_pane("timeline" if back else "events")
        state = watch.state if watch else None
        if self._asked and (state is None or state.ended or count_of(state, self._asked[1]) > self._asked[2]):
            self._asked = None
        problem = watch.problem if watch else None
        self._header.show(state, self._asked[0] if self._asked else "")
        self._progress.show(state)
        self._choose_pane(watch, problem is not None)
        self._tabs.show(self._panes(state, problem is not None), self.pane)
        self._draw_curves(watch)
        self.set_class(state is not None and not state.gpus, "-no-gpu")
        for panel in self._gpus:
            panel.show(state)
        for view in (self._facts, self._events, self._samples, self._data, self._runs, self._forgetting):
            view.show(state)
        self._problem.show(problem)
        self.show_keys()

    def _draw_curves(self, watch: Watch | None) -> None:
        if watch is None:
            hint = f"{press('everywhere.runs')} shows the runs; there {press('runs.demo')} starts the demo"
            self._plot.show(Curve(), None, 0, [[("no run is open", "strong")], [(hint, "muted")]])
        else:
            state = watch.state
            self._plot.show(watch.series.loss, state, state.total_steps, phases_so_far(state))
        self._at_readings = not self._at_readings
        for readings in self._readings if self._at_readings else ():
            readings.show(watch.series if watch else None, watch.state.total_steps if watch else 0, self._plot.symbols)

    def _choose_pane(self, watch: Watch | None, problem: bool) -> None:
        """Show what matters at the end: what went wrong, or the answers before and after."""
        if watch is None or self._chosen_by_hand:
            return
        ended = self.pane == "events" and watch.was_alive and watch.state.finished is not None
        if problem and self.pane != "problem":
            self._show_pane("problem")
        elif not problem and ended and any(pair.before and pair.after for pair in pairs(watch.state.samples)):
            self._show_pane("samples")

    def _panes(self, state: RunState | None, problem: bool) -> list[tuple[str, str]]:
        panes = [("events", "events"), ("samples", "samples"), ("data", "data")]
        if state is not None and state.samples:
            panes[1] = ("samples", f"samples {len(pairs(state.samples))}")
        if state is not None and state.multi:
            panes += [("timeline", f"runs {run_number(state)}".strip()), ("forgetting", "forgetting")]
        return [("problem", "problem"), *panes] if problem else panes

    def _show_pane(self, name: str) -> None:
        self.pane = name
        self.set_class(name != "events", "-reading")
        self.set_focus(self._contents[name])
        for other, content in self._contents.items():
            content.display = other == name

    def own_keys(self) -> list[Key]:
        state = self._watch.state if self._watch is not None and self._watch.live else None
        hidden = set(COMMANDS) if state is None else set()
        if state is not None and not state.config.get("sample_prompts"):
            hidden.add("sample")
        labels = {"pause": "go on"} if state is not None and state.status == "paused" else {}
        if self._watch is None or not self._watch.state.output_path:
            hidden.add("show_on")
        if self._watch is None or self._watch.live:
            hidden.add("edit")
        if self._watch is None:
            hidden |= {"copy", "log_y", "smooth", "symbols"}
        elif self._watch.state.can_resume:
            hidden.discard("checkpoint")
            labels = {"checkpoint": "resume"}
        first = {"edit": 1} if self._watch is not None and self._watch.state.last_failure is not None else {}
        keys = [
            key._replace(label=labels.get(key.name, key.label), rank=first.get(key.name, key.rank))
            for key in KEYS
            if key.name not in hidden
        ]
        return [*keys, SESSION] if self._watch is not None and self._watch.session is not None else keys

    async def action_back(self) -> None:
        """To the list of runs; from a run of a session to that."""
        if self._watch is not None and self._watch.session is not None:
            self._open(self._watch.session)
        else:
            await self.run_action("app.go('runs')")

    @on(ListView.Chosen, "#timeline")
    def _open_inner(self) -> None:
        if self._watch is not None and self._runs.chosen:
            self._open(self._watch.path / "runs" / self._runs.chosen)

    def _open(self, path: Path) -> None:
        self.post_message(OpenRun(partial(engine_client.attach, path), path))

    def on_pane_tabs_chosen(self, message: PaneTabs.Chosen) -> None:
        self._chosen_by_hand = True
        self._show_pane(message.name)
        self.flush()

    def action_pane(self, by: int) -> None:
        names = [name for name, _ in self._tabs.titles]
        at = names.index(self.pane) if self.pane in names else 0
        self.on_pane_tabs_chosen(PaneTabs.Chosen(names[(at + by) % len(names)]))

    def action_log_y(self) -> None:
        self._plot.toggle_log()

    def action_smooth(self, by: int) -> None:
        self._plot.smooth_more(by)

    def action_symbols(self) -> None:
        self._plot.next_symbols()
        self.flush()

    def action_pause(self) -> None:
        if self._watch is not None and self._watch.state.status == "paused":
            self._ask(Resume(), "going on…", "resumed")
        else:
            self._ask(Pause(), "pausing after this step…", "paused")

    def action_stop(self) -> None:
        self._ask(Stop(), "stopping after this step…")

    def action_copy(self) -> None:
        if self._watch is not None:
            self.copy(self._watch.state)

    def action_edit(self) -> None:
        if self._watch is not None and not self._watch.live:
            edit(self, self._watch.state.path, self._watch.state.last_failure)

    @property
    def looked_at(self) -> str:
        watch = self._watch
        return str(watch.path) if watch is not None and watch.state.output_path else ""

    def action_show_on(self, screen: str) -> None:
        if self.looked_at:
            self.post_message(ShowOn(screen, self.looked_at))

    def action_checkpoint(self) -> None:
        if self._watch is not None and self._watch.state.can_resume:
            self.resume(self._watch.state)
            return
        self._ask(CheckpointNow(), "saving after this step…", "checkpoint_saved", "checkpoint_failed")

    def action_sample(self) -> None:
        if self._watch is not None and self._watch.live and not self._watch.state.config.get("sample_prompts"):
            self.notify(
                "this run has no sample prompts: sample_prompts on Configure are answered by the next", timeout=4
            )
            return
        self._ask(SampleNow(), "answering after this step…", "sample")

    def action_abort(self) -> None:
        if self._may_command():
            text = "End this run now? The last saved checkpoint stays."
            self.confirm("abort", text, ABORTING, lambda: self._ask(AbortCommand(), "aborting…"))

    def _may_command(self) -> bool:
        if self._watch is not None and self._watch.live:
            return True
        inner = self._watch is not None and self._watch.session is not None
        there = f"its session takes commands: {press('everywhere.back')} leads there"
        words = there if inner else "no engine is working here"
        self.notify(words, severity="warning", timeout=4)
        return False

    def _ask(self, command: Command, words: str, *answers: str) -> None:
        """Send a command; ``words`` are shown until one of the events ``answers``, or the end, has come."""
        if not self._may_command() or self._watch is None:
            return
        try:
            self._watch.send(command)
        except RunError as error:
            self.notify(f"{error.message}. {hint_here(error.hint)}", severity="warning", timeout=6)
            return
        self._asked = (words, answers, count_of(self._watch.state, answers))
        self.flush()


def count_of(state: RunState, types: tuple[str, ...]) -> int:
    return sum(event.type in types for event in state.notable)


def phases_so_far(state: RunState) -> list[Row]:
    """What is done and what is being done, before the first step."""
    changes = [event for event in state.notable if isinstance(event, PhaseChanged)]
    words = [describe(next(group)) for _, group in groupby(changes, lambda event: event.phase)]
    doing: list[Row] = []
    if not state.ended:
        doing = [[("● ", "info"), (words.pop() if words else "starting the engine", "strong")]]
    return [*([("✓ ", "good"), (done, "muted")] for done in words), *doing]
