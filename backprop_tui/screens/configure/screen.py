"""The Configure screen: from a dataset to a running run; what it would be is known before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from backprop.cli.options import command_line
from backprop.core import saved_settings
from backprop.core.definition import Setting
from backprop.core.errors import InputError, InvalidSettingError
from backprop.core.models import known_models
from backprop.core.presets import MODEL_PRESETS, TRAINING_PRESETS
from backprop.hardware.devices import Info, info
from backprop.runs.engine_process import WarmEngine
from backprop.runs.queue import Queue
from textual import on
from textual.app import ComposeResult
from textual.containers import Container
from textual.timer import Timer

from backprop_tui.keys import Key, bindings, press
from backprop_tui.screens import again
from backprop_tui.screens.base import BaseScreen, OpenRun
from backprop_tui.screens.chooser import Choice, Chooser
from backprop_tui.screens.configure.about import About, gib, size_of
from backprop_tui.screens.configure.counting import Counting
from backprop_tui.screens.configure.draft import MISSING, Draft
from backprop_tui.screens.configure.forecast import Forecast
from backprop_tui.screens.configure.form import SettingsForm, changes, value_text
from backprop_tui.screens.configure.keys import KEYS
from backprop_tui.screens.dataset.file import ENDINGS, offers
from backprop_tui.screens.dialogs import Answer, Question
from backprop_tui.screens.tasks import Failed, Task
from backprop_tui.screens.trouble import show_error
from backprop_tui.text import Row, from_home, safe, short_path
from backprop_tui.widgets.bars import Bar, Words
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.path_input import Prompt

STILL = 0.7
"""Seconds without a change after which the engine gets ready for what the form says."""
AWAY = 300.0
"""Seconds on other screens after which the waiting engine gives its memory back."""
REPLACING = (
    Answer("no", "n", "Keep them", ""),
    Answer("replace", "r", "Replace them", ""),
)
STARTING = (
    Answer("no", "n", "Leave it", ""),
    Answer("queue", "l", "Queue it", "it starts when the other one is over"),
    Answer("start", "s", "Start it beside the other", ""),
)
_BEFORE = ":before"
"""Stands for settings that others took the place of; no name of saved ones."""


class ConfigureScreen(BaseScreen):
    """Every setting with its meaning. The engine is started ahead: the first step comes soon after the start."""

    NAME, KEYS = "configure", KEYS
    BINDINGS = bindings(KEYS)
    CSS_PATH = "screen.tcss"

    def __init__(self) -> None:
        super().__init__()
        self.draft = Draft()
        self.notice = ""
        self._offered: list[str] = []
        """Datasets that can be named without typing a path."""
        self.warm: WarmEngine | None = None
        self._still: Timer | None = None
        self._away: Timer | None = None
        self.counting = Counting(self.tasks, self._draw)
        self.forecast = Forecast(self.draft, self.counting)
        self._title, self._status = Bar(id="title"), Words(id="status")
        self.form, self.about = SettingsForm(id="form"), About(id="about")
        self._prompt = Prompt(id="prompt")

    def compose(self) -> ComposeResult:
        yield self.header
        yield self._title
        with Container(id="panes"):
            yield self.form
            yield self.about
        yield self._prompt
        yield self._status
        yield self.keybar

    def on_mount(self) -> None:
        self.form.focus()
        self.tasks.begin("offer", "", lambda _: offers(), self._take_offers)
        self.tasks.begin("machine", "", lambda _: info(), self._take_machine)
        self._changed()

    def _take_offers(self, offered: list[str]) -> None:
        self._offered = offered

    def _take_machine(self, machine: Info) -> None:
        self.draft.machine = machine
        self.draft.resolve()
        self._changed()

    def on_unmount(self) -> None:
        self._let_go()

    def on_screen_suspend(self) -> None:
        self._away = self.set_timer(AWAY, self._let_go)

    def _let_go(self) -> None:
        warm, self.warm = self.warm, None
        if warm is not None:
            warm.end()

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        if self._away is not None:
            self._away.stop()
        starting = self.watch_run is not None and self.watch_run.live
        if self.warm is None and not self.living and not starting:
            self.warm = WarmEngine()
            self._hint_when_still()

    # The values

    def take(self, values: Mapping[str, Any]) -> None:
        """Begin anew with these values."""
        before = self.draft.before
        self.draft.begin({name: value for name, value in values.items() if name != "at"})
        back = f"{press('configure.load')} brings back the settings that were here"
        self.notice = back if self.draft.before is not before else ""
        self._changed()
        if at := values.get("at"):
            self.form.go_to(at)
            self._draw()

    def set(self, name: str, value: Any) -> None:
        """Choose a value; see ``Draft.set``."""
        self.draft.set(name, value)
        self.notice = ""
        self._changed()

    def _changed(self) -> None:
        self.counting.look_at(self.draft.config)
        self._hint_when_still()
        self._draw()

    def _hint_when_still(self) -> None:
        """Have the waiting engine get ready for what the form says, once that has not changed for a moment."""
        if self._still is not None:
            self._still.stop()
        self._still = self.set_timer(STILL, self._hint) if self.is_attached else None

    def _hint(self) -> None:
        if self.warm is not None and self.draft.config is not None and self.draft.multi is None:
            self.warm.hint(self.draft.config)

    # What is shown

    def _draw(self) -> None:
        if self.form.is_attached:
            self.form.show(self.draft.found, self.draft.wrong, self.forecast.becomes())
            self.about.show(self.forecast.outlook(self.form.chosen))
            self.flush()

    def flush(self) -> None:
        name = short_path(self.draft.found.values["data"] or "")
        title: Row = [(" configure ", "strong+bold"), (safe(name), "text")]
        if self.draft.file:
            title.append((f"  {safe(self.draft.file)}", "info"))
        changed = len(changes(self.draft.found))
        title.append((f"  {changed} changed" if changed else "", "muted"))
        self._title.show(title)
        words = "  ".join(filter(None, [self.tasks.words(""), self.notice]))
        self._status.show(words)
        self.show_keys()

    def own_keys(self) -> list[Key]:
        missing = next(iter(self.draft.wrong), "")
        label = f"start: {missing} {'is missing' if self.draft.wrong.get(missing) == MISSING else 'is wrong'}"
        keys = [key._replace(label=label) if missing and key.name == "start" else key for key in KEYS]
        memory = self.about.outlook.memory
        return [key for key in keys if key.name != "fit" or (memory is not None and memory.changes)]

    @on(Failed)
    def _failed(self, event: Failed) -> None:
        if event.work == "queue":
            show_error(self, event.error, self.draft.given)
        else:
            self.counting.failed(event.error)

    @on(ListView.Moved, "#form")
    def _moved(self) -> None:
        self.about.show(self.forecast.outlook(self.form.chosen))
        self.say("")

    def say(self, notice: str) -> None:
        """Show a line at the bottom until something else is chosen."""
        self.notice = notice
        self.flush()

    # Changing

    @on(ListView.Chosen, "#form")
    def action_change(self) -> None:
        setting = self.form.chosen
        if setting is None:
            self.action_all()
        elif setting.kind == "switch" or (setting.choices and not setting.numbers and setting.name != "held_out"):
            self.action_turn(1)
        elif setting.name == "model":
            self._choose_model()
        else:
            self._ask(setting)

    def action_turn(self, by: int) -> None:
        """The next of the setting's choices."""
        setting = self.form.chosen
        if setting is None:
            return
        choices: list[Any] = [True, False] if setting.kind == "switch" else list(setting.choices)
        choices = [None, *choices] if setting.nullable else choices
        if not choices or setting.numbers:
            return
        value = self.draft.found.values[setting.name]
        at = choices.index(value) + by if value in choices else 0
        self.set(setting.name, choices[at % len(choices)])

    def _ask(self, setting: Setting) -> None:
        """Ask for a value; one that is wrong is asked for again, as it was typed."""
        shown = self.draft.given.get(setting.name, self.draft.found.values[setting.name])
        shown = shown if isinstance(shown, str) else value_text(setting, shown)
        endings = ENDINGS if setting.name in ("data", "held_out") else ()
        label, check = f"{setting.name}: {setting.help.removeprefix('dataset: ')}", partial(self._check, setting)
        offered = self._offered if endings else ()
        take = partial(self._set_text, setting.name)
        self._prompt.ask(label, take, shown, endings=endings, offered=offered, check=check)

    def _set_text(self, name: str, text: str) -> None:
        self.set(name, text or None)

    def _check(self, setting: Setting, text: str) -> str:
        """What is wrong with a value as far as it is typed; empty where nothing is."""
        try:
            if text.strip():
                setting.parse(text.strip())
        except InvalidSettingError as error:
            return error.message
        return ""

    def _choose_model(self) -> None:
        known = [(name, f"{each.licence} · {each.vram} · {each.remark}") for name, each in MODEL_PRESETS.items()]
        known += known_models()
        choices = [Choice(name, name, " · ".join(filter(None, (size_of(name), words)))) for name, words in known]
        other = "a Hugging Face name, a directory, or words to narrow the list"
        self.app.push_screen(Chooser("model", choices, other=other), partial(self._take_choice, "model"))

    def action_unset(self) -> None:
        if (setting := self.form.chosen) is not None:
            self.draft.unset(setting)
            self.notice = ""
            self._changed()

    def action_all(self) -> None:
        self.form.everything = not self.form.everything
        self._draw()

    def action_anew(self) -> None:
        self.take({})

    def action_fit(self) -> None:
        """Make the first of the changes that make the run fit, or that saves the most."""
        memory = self.forecast.memory()
        if memory is None or not memory.changes:
            self.say("the run fits" if memory is not None and memory.parts is not None else "not known yet")
            return
        fitting = [change for change in memory.changes if change.fits]
        change = fitting[0] if fitting else max(memory.changes, key=lambda change: change.saves)
        self.set(change.setting, change.value)
        self.say(f"{change.setting} is {change.value} now: {gib(change.saves)} less")

    def action_presets(self) -> None:
        choices = [Choice(name, name, preset.remark) for name, preset in TRAINING_PRESETS.items()]
        self.app.push_screen(Chooser("training preset", choices), partial(self._take_choice, "preset"))

    def _take_choice(self, name: str, value: str | None) -> None:
        if value:
            self.set(name, value)

    # Keeping

    def action_save(self) -> None:
        words = "a name: letters, digits, - and _"
        self._prompt.ask("Save these settings as", self._save, self.draft.file, help=words, check=_wrong_name)

    def _save(self, name: str) -> None:
        """Save what was chosen, its paths whole; over settings of this name only if the person says so."""
        if name in saved_settings.names() and name != self.draft.file:
            text = f"There are settings called {name}."
            self.confirm("save", text, REPLACING, partial(self._write, name))
        elif name:
            self._write(name)

    def _write(self, name: str) -> None:
        try:
            path = self.draft.save(name)
        except InputError as error:
            self.say(f"{error.message}; {error.hint}")
        else:
            self._changed()
            self.say(f"saved: {path}")

    def action_load(self) -> None:
        choices = [Choice(name, name) for name in saved_settings.names()]
        if self.draft.before is not None:
            choices.insert(0, Choice(_BEFORE, "those that were here before", ", ".join(self.draft.before[0])))
        if not choices:
            self.say(f"nothing is saved yet: {press('configure.save')} saves these settings")
            return
        self.app.push_screen(Chooser("saved settings", choices), self._load)

    def _load(self, name: str | None) -> None:
        if name == _BEFORE and self.draft.before is not None:
            self.draft.begin(*self.draft.before)
        elif name:
            self.draft.begin({}, name)
        self.notice = ""
        self._changed()

    def action_copy(self) -> None:
        if self.draft.config is None:
            self.say(f"there is no command yet: {next(iter(self.draft.wrong), 'data')} is missing")
        else:
            self.app.copy_to_clipboard(from_home(command_line(self.draft.config, self.draft.multi)))

    # Starting

    def action_start(self) -> None:
        """Start, or go to what is in the way."""
        if self._in_the_way():
            return
        if living := [*self.living, *self.living_elsewhere]:
            text = f"Run {living[0].state.run_id} is being trained: two share memory and time."
            self.app.push_screen(Question("start", text, STARTING), self._answered)
        else:
            self._start()

    def _answered(self, answer: str | None) -> None:
        if answer == "queue":
            self.action_queue()
        elif answer == "start":
            self._start()

    def action_queue(self) -> None:
        """Have the run trained when those before it are over."""
        if self._in_the_way():
            return
        assert self.draft.config is not None
        if self.draft.multi is not None:
            self.say(f"a session of several runs is not queued: {press('configure.start')} starts it")
            return
        config, origins = self.draft.config, self.draft.found.notes()

        def work(_: Task[str]) -> str:
            entry = Queue().add(config, origins)
            number = len(Queue().ensure_runner().waiting)
            shows = f"{press('runs.queue')} on Runs ({press('everywhere.runs')}) shows the queue"
            return f"run {entry.run_id} is queued, number {number}; {shows}"

        self.tasks.begin("queue", "queueing", work, self.say)

    def _in_the_way(self) -> bool:
        """Whether something is wrong; if so, go there."""
        if self.draft.wrong:
            name = next(iter(self.draft.wrong))
            self.form.go_to(name)
            self._draw()
            # What stands in a file or a variable is mended there: nothing is turned or asked for here.
            if name == "data" or name in self.draft.given:
                self.action_change()
        return bool(self.draft.wrong)

    def _start(self) -> None:
        assert self.draft.config is not None
        self.counting.stop()
        warm, self.warm = self.warm, None
        begin = partial(again.start, self.draft.config, self.draft.multi, self.draft.found.notes(), warm)
        self.post_message(OpenRun(begin, values=self.draft.given))


def _wrong_name(text: str) -> str:
    """Why settings cannot be saved under this name; empty where they can, and where none was typed."""
    try:
        if text.strip():
            saved_settings.path_of(text.strip())
    except InputError as error:
        return f"{error.message}: {error.hint}"
    return ""
