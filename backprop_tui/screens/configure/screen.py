"""The Configure screen: from a dataset to a running run; what it would be is known before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from backprop.cli.options import command_line
from backprop.core import saved_settings
from backprop.core.definition import Setting, all_settings, settings
from backprop.core.errors import BackpropError, InputError, InvalidSettingError
from backprop.core.locate import locate
from backprop.core.models import find_tokenizer, known_models, require_model
from backprop.core.multi_run import advice, require_mergeable, runs_of
from backprop.core.presets import MODEL_PRESETS, TRAINING_PRESETS, default_model
from backprop.core.resolve import Origin, Resolution, resolve
from backprop.core.settings import MultiConfig, RunConfig
from backprop.data.plan import Plan, plan, warnings
from backprop.data.reader import require_rows
from backprop.data.truncate import CountedLengths
from backprop.hardware.devices import Info, info
from backprop.hardware.estimate import first_batch_size, fitted, longest_rows, require_size
from backprop.runs.engine_process import WarmEngine
from backprop.runs.queue import Queue
from textual import on
from textual.app import ComposeResult
from textual.containers import Container
from textual.timer import Timer

from backprop_tui.keys import Key, bindings
from backprop_tui.screens import again, number_of
from backprop_tui.screens.base import BaseScreen, OpenRun
from backprop_tui.screens.chooser import Choice, Chooser
from backprop_tui.screens.configure.about import About, MemoryOutlook, Outlook, gib, memory_of, size_of
from backprop_tui.screens.configure.counting import Counting
from backprop_tui.screens.configure.form import SettingsForm, changes, value_text
from backprop_tui.screens.configure.keys import KEYS
from backprop_tui.screens.dataset.file import ENDINGS
from backprop_tui.screens.dialogs import Answer, Question
from backprop_tui.screens.tasks import Delivered, Failed, Task, Tasks
from backprop_tui.screens.trouble import show_error
from backprop_tui.text import Row, from_home, rows_of, safe, short_path
from backprop_tui.widgets.bars import Bar
from backprop_tui.widgets.list_view import ListView
from backprop_tui.widgets.path_input import Prompt

MISSING = "name a dataset"
STILL = 0.7
"""Seconds without a change after which the engine gets ready for what the form says."""
AWAY = 300.0
"""Seconds on other screens after which the waiting engine gives its memory back."""
PATHS = ("data", "model", "held_out", "output_dir")
REPLACING = (
    Answer("no", "n", "Keep them", ""),
    Answer("replace", "r", "Replace them", ""),
)
STARTING = (
    Answer("no", "n", "Leave it", ""),
    Answer("queue", "l", "Queue it", "it starts when the other one is over"),
    Answer("start", "s", "Start it beside the other", ""),
)


class ConfigureScreen(BaseScreen):
    """Every setting with its meaning. The engine is started ahead: the first step comes soon after the start."""

    NAME, KEYS = "configure", KEYS
    BINDINGS = bindings(KEYS)
    CSS_PATH = "screen.tcss"

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}
        """What was chosen on this screen, by setting."""
        self.file = ""
        """The saved configuration under it."""
        self.found: Resolution = resolve({}, kind="screen")
        self.wrong: dict[str, str] = {}
        self.config: RunConfig | None = None
        """The run, located, where nothing is wrong with it."""
        self.multi: MultiConfig | None = None
        """What makes it a session of several runs."""
        self.notice = ""
        self.warm: WarmEngine | None = None
        self._still: Timer | None = None
        self._away: Timer | None = None
        self.machine: Info | None = None
        self._planned: tuple[RunConfig, CountedLengths, int, Plan | None] | None = None
        """What the last plan was made of, and the plan."""
        self.tasks = Tasks(self)
        self.counting = Counting(self.tasks, self._draw)
        self._title, self._status = Bar(id="title"), Bar(id="status")
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
        self.tasks.begin("machine", "", lambda _: info(), self._take_machine)
        self._resolve()

    def _take_machine(self, machine: Info) -> None:
        self.machine = machine
        self._resolve()

    def on_unmount(self) -> None:
        self.tasks.end()
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
        self.given, self.file = dict(values), ""
        at = self.given.pop("at", "")
        self._resolve()
        if at:
            self.form.go_to(at)
            self._draw()

    def set(self, name: str, value: Any) -> None:
        """Choose a value, text or not; ``None`` takes the default again. Of steps and epochs the newer one counts."""
        self.given.pop(name, None)
        if value is not None:
            setting = all_settings().get(name)  # a preset is none
            several = isinstance(value, str) and setting is not None and setting.kind == "repeated"
            self.given[name] = value.split(" | ") if several else value
            if name in ("steps", "epochs"):
                self.given.pop("epochs" if name == "steps" else "steps", None)
        self.notice = ""
        self._resolve()

    def _resolve(self) -> None:
        """From what was chosen to every value, and what is wrong with them."""
        self.found = resolve(self.given, kind="screen", file=self.file or None)
        self.wrong, self.config, self.multi = {}, None, None
        if self.found.several and (tasks := self.found.values["tasks"]):
            self.found.values["data"] = tasks[0]
        if self.machine is not None and self.found.origins["model"].kind == "default":
            backend = self.found.values["backend"]
            self.found.values["model"], why = default_model(backend, gpu=self.machine.gpu_problem is None)
            self.found.origins["model"] = Origin("rule", reason=why)
        for error in self.found.errors:
            self._blame(error, otherwise="a settings file")
        if not self.found.values["data"]:
            self.wrong["data"] = MISSING
        if not self.wrong:
            try:
                config = require_rows(locate(self.found.config()))
                require_model(config.model)
                require_size(config)
                if self.found.several:
                    multi = self.found.multi()
                    named = [msgspec.structs.replace(config, data=each) for each in multi.tasks]
                    multi.tasks = [require_rows(locate(each)).data for each in named] or [config.data]
                    require_mergeable(config, multi)
                    self.multi = multi
                self.config = config
            except BackpropError as error:
                self._blame(error)
        self.counting.look_at(self.config)
        self._hint_when_still()
        self._draw()

    def _hint_when_still(self) -> None:
        """Have the waiting engine get ready for what the form says, once that has not changed for a moment."""
        if self._still is not None:
            self._still.stop()
        self._still = self.set_timer(STILL, self._hint) if self.is_attached else None

    def _hint(self) -> None:
        if self.warm is not None and self.config is not None and self.multi is None:
            self.warm.hint(self.config)

    def _blame(self, error: BackpropError, otherwise: str = "data") -> None:
        field = str(error.details.get("field") or ("model" if "model" in error.details else otherwise))
        self.wrong.setdefault(field, "; ".join(filter(None, [error.message, error.hint])) + f" ({error.code})")

    # What is shown

    def _draw(self) -> None:
        if self.form.is_attached:
            self.form.show(self.found, self.wrong, self._becomes())
            self.about.show(self._outlook())
            self.flush()

    def _plan(self) -> Plan | None:
        """The run as far as it is known."""
        config, counted = self.config, self.counting.counted
        if config is None or counted is None or counted.unit != "tokens":
            return None
        free = self._free()
        last = self._planned
        if last is None or last[0] is not config or last[1] is not counted or last[2] != free:
            known, reasons = fitted(config, free)
            most = longest_rows(known, free)
            batch_size = partial(first_batch_size, free=free)
            planned = plan(known, counted, find_tokenizer(config.model), batch_size=batch_size, most=most)
            planned = planned and msgspec.structs.replace(planned, reasons=planned.reasons | reasons)
            self._planned = last = (config, counted, free, planned)
        return last[3]

    def _outlook(self) -> Outlook:
        setting, config, counted, planned = self.form.chosen, self.config, self.counting.counted, self._plan()
        found = Outlook(setting=setting, data=self.counting.words, plan=planned)
        found.problem = next(iter(self.wrong.values()), "")
        if setting is not None:
            found.origin, found.wrong = self.found.origins[setting.name], self.wrong.get(setting.name, "")
            found.reason = planned.reasons.get(setting.name, "") if planned else ""
        if config is not None:
            found.command, found.memory = from_home(command_line(config, self.multi)), self._memory()
            trained = found.memory.trained_parameters if found.memory else 0
            found.warnings = warnings(config, planned, trained)
        if counted is not None:
            found.data, found.whole = f"{found.data}, {rows_of(counted.rows)}", counted.whole
        if self.multi is not None:
            number, how = runs_of(self.multi), self.multi.merge_mode
            found.data = f"{number} runs in sequence, merged by {how}; of the first: {found.data}"
            found.warnings = [*advice(self.multi), *found.warnings]
        if planned is not None and (pace := self.counting.pace) is not None:
            found.takes, found.pace = pace.takes(planned.tokens), pace.source
        return found

    def _memory(self) -> MemoryOutlook | None:
        """What the run takes, with the batch size that it begins with."""
        if self.config is None or self.machine is None:
            return None
        card = next((card for card in self.machine.gpus if card.vram_free is not None), None)
        planned = self._plan()
        config = self.config if planned is None else planned.chosen
        if config.batch_size == "auto":
            config = msgspec.structs.replace(config, batch_size=first_batch_size(config, self._free()))
        return memory_of(config, card, self.counting.peaks)

    def _free(self) -> int:
        """Bytes that are free on the card that the run would use; 0 where it would use none."""
        cards = self.machine.gpus if self.machine and self.found.values["backend"] != "cpu" else []
        return max((card.vram_free or 0 for card in cards), default=0)

    def _becomes(self) -> dict[str, str]:
        """What values chosen by rule come to, where that is known."""
        planned = self._plan()
        if planned is None:
            return {}
        values = {name: getattr(planned.chosen, name) for name in settings()}
        values |= {"steps": planned.schedule.steps, "warmup_steps": planned.schedule.warmup_steps}
        if planned.chosen.steps is not None:
            values["epochs"] = round(planned.passes, 2)
        found = {name: value_text(settings()[name], value) for name, value in values.items()}
        return {**found, "held_out": rows_of(planned.held_out)}

    def flush(self) -> None:
        name = short_path(self.found.values["data"] or "")
        title: Row = [(" configure ", "strong+bold"), (safe(name), "text")]
        if self.file:
            title.append((f"  {safe(self.file)}", "info"))
        changed = len(changes(self.found))
        title.append((f"  {changed} changed" if changed else "", "muted"))
        self._title.show(title)
        words = "  ".join(filter(None, [self.tasks.words(""), self.notice]))
        self._status.show([(safe(words), "text")])
        self.show_keys()

    def own_keys(self) -> list[Key]:
        missing = next(iter(self.wrong), "")
        label = f"start: {missing} {'is missing' if self.wrong.get(missing) == MISSING else 'is wrong'}"
        keys = [key._replace(label=label) if missing and key.name == "start" else key for key in KEYS]
        memory = self.about.outlook.memory
        return [key for key in keys if key.name != "fit" or (memory is not None and memory.changes)]

    @on(Delivered)
    def _delivered(self, event: Delivered) -> None:
        self.tasks.take(event)
        self._draw()

    @on(Failed)
    def _failed(self, event: Failed) -> None:
        if event.work == "queue":
            show_error(self, event.error, self.given)
        else:
            self.counting.failed(event.error)

    @on(ListView.Moved, "#form")
    def _moved(self) -> None:
        self.about.show(self._outlook())
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
        value = self.found.values[setting.name]
        at = choices.index(value) + by if value in choices else 0
        self.set(setting.name, choices[at % len(choices)])

    def _ask(self, setting: Setting) -> None:
        """Ask for a value; one that is wrong is asked for again, as it was typed."""
        shown = self.given.get(setting.name, self.found.values[setting.name])
        shown = shown if isinstance(shown, str) else value_text(setting, shown)
        endings = ENDINGS if setting.name in ("data", "held_out") else ()
        label, check = f"{setting.name}: {setting.help}", partial(self._check, setting)
        self._prompt.ask(label, lambda text: self.set(setting.name, text or None), shown, endings=endings, check=check)

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
        """The default again, also where a file or a variable under the screen says another value."""
        setting = self.form.chosen
        if setting is None:
            return
        self.set(setting.name, None)
        if setting.name in changes(self.found):
            self.given[setting.name] = setting.default
            self._resolve()

    def action_all(self) -> None:
        self.form.everything = not self.form.everything
        self._draw()

    def action_anew(self) -> None:
        self.take({})

    def action_fit(self) -> None:
        """Make the first of the changes that make the run fit, or that saves the most."""
        memory = self._memory()
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
        self._prompt.ask("Save these settings as", self._save, self.file, help="a name: letters, digits, - and _")

    def _save(self, name: str) -> None:
        """Save what was chosen, its paths whole; over settings of this name only if the person says so."""
        if name in saved_settings.names() and name != self.file:
            text = f"There are settings called {name}."
            self.confirm("save", text, REPLACING, partial(self._write, name))
        elif name:
            self._write(name)

    def _write(self, name: str) -> None:
        given = self.found.given()
        values = {each: getattr(self.config, each) if self.config and each in PATHS else given[each] for each in given}
        if self.multi is not None:  # a preset's number of runs may have given way to that of the datasets
            values |= {"tasks": self.multi.tasks, "runs": self.multi.runs}
        try:
            path = saved_settings.save(name, values, replace=True)
        except InputError as error:
            self.say(f"{error.message}; {error.hint}")
        else:
            self._load(name)
            self.say(f"saved: {path}")

    def action_load(self) -> None:
        names = saved_settings.names()
        if not names:
            self.say("nothing is saved yet: w saves these settings")
            return
        choices = [Choice(name, name) for name in names]
        self.app.push_screen(Chooser("saved settings", choices), self._load)

    def _load(self, name: str | None) -> None:
        if name:
            self.file, self.given = name, {}
            self._resolve()

    def action_copy(self) -> None:
        if self.config is None:
            self.say(f"there is no command yet: {next(iter(self.wrong), 'data')} is missing")
        else:
            self.app.copy_to_clipboard(from_home(command_line(self.config, self.multi)))

    # Starting

    def action_start(self) -> None:
        """Start, or go to what is in the way."""
        if self._in_the_way():
            return
        if self.living:
            text = f"Run {self.living[0].state.run_id} is being trained: two share memory and time."
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
        assert self.config is not None
        if self.multi is not None:
            self.say("a session of several runs is not queued: s starts it")
            return
        config, origins = self.config, self.found.notes()

        def work(_: Task[str]) -> str:
            entry = Queue().add(config, origins)
            number = len(Queue().ensure_runner().waiting)
            return f"run {entry.run_id} is queued, number {number}; u on Runs ({number_of('runs')}) shows the queue"

        self.tasks.begin("queue", "queueing", work, self.say)

    def _in_the_way(self) -> bool:
        """Whether something is wrong; if so, go there."""
        if self.wrong:
            name = next(iter(self.wrong))
            self.form.go_to(name)
            self._draw()
            # What stands in a file or a variable is mended there: nothing is turned or asked for here.
            if name == "data" or name in self.given:
                self.action_change()
        return bool(self.wrong)

    def _start(self) -> None:
        assert self.config is not None
        self.counting.stop()
        warm, self.warm = self.warm, None
        begin = partial(again.start, self.config, self.multi, self.found.notes(), warm)
        self.post_message(OpenRun(begin, values=self.given))
