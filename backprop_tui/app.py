"""The application: its screens, and one watched run that is drawn a few times a second."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from backprop.core.errors import BackpropError
from backprop.core.settings import RunConfig
from backprop.core.settings_sources import keys_file
from backprop.runs import engine_client
from backprop.runs.index import RunIndex
from backprop.runs.sessions import session_of
from textual import events
from textual.app import ScreenStackError, SystemCommand
from textual.binding import BindingType
from textual.driver import Driver
from textual.notifications import Notification, Notify, SeverityLevel
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.worker import Worker, WorkerState

from backprop_tui import terminal, themes
from backprop_tui.charts.curve_plot import CurvePlot
from backprop_tui.clipboard import hand_over
from backprop_tui.elsewhere import Elsewhere
from backprop_tui.keys import bindings, press, shown, take_own
from backprop_tui.leaving import Leaving
from backprop_tui.remembered import recall, remember
from backprop_tui.screens import EVERYWHERE, SCREENS, Entry
from backprop_tui.screens.base import BaseScreen, ConfigureRun, OpenRun, ShowOn
from backprop_tui.screens.dialogs import HEIGHT, WIDTH, Help, TooSmall
from backprop_tui.screens.jump import Jump
from backprop_tui.screens.trouble import show_error
from backprop_tui.text import many_lines
from backprop_tui.watch import Watch

CADENCES = (4.0, 2.0, 1.0)
"""Drawings a second that can be chosen."""
CATCH_UP = 0.02
QUIET = 1.0
"""Seconds between two drawings where nothing goes on: what other processes change is seen then."""


class BackpropApp(Leaving, inherit_bindings=False):
    TITLE = "backprop"
    CSS_PATH = "app.tcss"
    DEFAULT_MODE = "runs"
    BINDINGS: ClassVar[list[BindingType]] = bindings(EVERYWHERE)
    ENABLE_COMMAND_PALETTE = True
    ALLOW_SELECT = False
    """Nothing that is shown can be selected but messages, and a second click on one would meet it when it is gone."""

    def __init__(
        self,
        config: RunConfig | None = None,
        attach: Path | None = None,
        origins: dict[str, str] | None = None,
    ) -> None:
        """Open with a run to start (``config``), one to watch (``attach``), or the list of runs.

        ``origins`` says where the values of ``config`` come from (``runs.record.RunRecord``).
        """
        if config is not None or attach is not None:
            self.DEFAULT_MODE = "live"  # type: ignore[misc]  # looked up on the instance when it is made
        no_color = bool(os.environ.get("NO_COLOR"))
        super().__init__(ansi_color=True if no_color else None)
        self._own_keys = _own_keys()
        take_own(self._own_keys[0])  # before the first sentence that names a key
        for entry in SCREENS:
            self.add_mode(entry.name, partial(self._make, entry))
        for theme in themes.OWN:
            self.register_theme(theme)
        few = no_color or self.console.color_system == "standard"
        chosen = "" if few else recall("theme")
        self.theme = themes.SIXTEEN.name if few else chosen if chosen in self.available_themes else themes.DARK.name
        self._remembers_theme = not few
        self.stylesheet = themes.ParsedOnce(variables=self.get_css_variables())
        self.animation_level = "none"
        CurvePlot.take_symbols(recall("symbols"))
        self.watched: Watch | None = None
        self.others: list[Watch] = []
        """Runs that were open before and are still being trained."""
        self.elsewhere = Elsewhere(self, self.opened, self.tell)
        self.error: BackpropError | None = None
        """Why the run of the command line could not start."""
        self.small = False
        self._beginning = False
        """A run is being begun."""
        self._asked_config, self._asked_run = config, attach
        self._origins = origins
        self._cadence = 1 if "SSH_CONNECTION" in os.environ else 0
        self._timer: Timer | None = None
        self._catching_up = False
        self._flushed_at = self._busy_at = 0.0
        self._shown_elsewhere: tuple[int, str] = (0, "")
        self._said: list[tuple[Watch, Notification]] = []
        """What was said of runs."""
        self._made: list[BaseScreen] = []
        self._loop_of_screen: asyncio.AbstractEventLoop | None = None

    def get_driver_class(self) -> type[Driver]:
        if sys.platform == "win32":
            return super().get_driver_class()
        from backprop_tui.terminal import continuing_driver

        return continuing_driver()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return themes.inks(self.current_theme)

    def on_mount(self) -> None:
        self._loop_of_screen = asyncio.get_running_loop()
        self._set_timer()
        self.call_after_refresh(_collect_garbage_again)
        self.call_after_refresh(self.elsewhere.look)
        self.mode_change_signal.subscribe(self, lambda mode: self._cover_if_small(not self.small))
        # The terminal came back empty.
        self.app_resume_signal.subscribe(self, lambda _: self.refresh(layout=True))
        self._set_own_keys(*self._own_keys)
        if self._remembers_theme:
            self.theme_changed_signal.subscribe(self, lambda theme: remember("theme", theme.name))
        if self._asked_config is not None:
            self._start_asked_run(self._asked_config)
        elif self._asked_run is not None:
            self._show_run(Watch(engine_client.attach(self._asked_run)))

    def _set_own_keys(self, keymap: dict[str, str], problems: list[str]) -> None:
        self.set_keymap(keymap)
        if problems:
            words = "\n".join([*problems[:3], "`backprop-tui --keys` lists all keys"])
            self.notify(words, severity="warning", timeout=15)

    def _make(self, entry: Entry) -> BaseScreen:
        """A screen of the table, when it is opened first."""
        screen: BaseScreen = entry.load_screen()()
        screen.watch_run, screen.living = self.watched, self.living()
        # Known before its widgets are there, they do not style each of them twice.
        width, height = self.size
        screen.add_class(*screen._get_breakpoint_classes(width, screen.HORIZONTAL_BREAKPOINTS))
        screen.add_class(*screen._get_breakpoint_classes(height, screen.VERTICAL_BREAKPOINTS))
        self._made.append(screen)
        return screen

    # Drawing

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(1 / CADENCES[self._cadence], self._tick)

    def _tick(self) -> None:
        """Flush, and seldom where for a while nobody pressed a key and nothing was trained, worked on or found."""
        now = time.monotonic()
        watches = (*self.opened(), *self.elsewhere.watches)
        busy = self._catching_up or self._shown_elsewhere != (self.elsewhere.queued, self.elsewhere.place)
        busy = busy or any(watch.live or watch.waits for watch in watches)
        if busy or any(screen.tasks.running() for screen in self._made):
            self._busy_at = now
        if now - self._busy_at < QUIET or now - self._flushed_at >= QUIET:
            self.flush()

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.InputEvent):
            self._busy_at = time.monotonic()
        await super().on_event(event)

    def flush(self) -> None:
        """The one place where a run's news reach the screen."""
        self._flushed_at = time.monotonic()
        if not self._catching_up:
            self._advance()
        self._tell_news()
        living = self.living()
        self.go_on_leaving(living)
        try:
            screen = self.screen
        except ScreenStackError:  # the timer ticks before the first screen is there, and after the last one went
            return
        if isinstance(screen, BaseScreen) and screen.is_mounted:
            screen.living, screen.living_elsewhere = living, self.elsewhere.living
            every = sorted(
                [*living, *self.elsewhere.living],
                key=lambda watch: screen.NAME == "live" and watch is self.watched,
            )
            self._shown_elsewhere = self.elsewhere.queued, self.elsewhere.place
            screen.header.show(every, *self._shown_elsewhere)
            screen.flush()

    def losing(self) -> list[str]:
        return [words for screen in self._made if (words := screen.losing())]

    def living(self) -> list[Watch]:
        """Every run that is being trained and was opened here, the one that is open first."""
        for other in [other for other in self.others if not other.live]:
            self.others.remove(other)
            other.close()
        return [watch for watch in self.opened() if watch.live]

    def _advance(self) -> None:
        for other in (*self.others, *self.elsewhere.watches):
            other.advance()
        self._catching_up = self.watched is not None and self.watched.advance()
        if self._catching_up:
            self.set_timer(CATCH_UP, self._advance)

    # What is told

    def opened(self) -> list[Watch]:
        """The runs that were opened here, over or not."""
        return [watch for watch in (self.watched, *self.others) if watch is not None]

    def _tell_news(self) -> None:
        """Say what happened to runs that the screen does not show."""
        for watch in (*self.opened(), *self.elsewhere.watches):
            if (news := watch.news()) and not self.leaving:
                self.tell(watch, news)
        for watch, said in [each for each in self._said if self._seen(each[0])]:
            if said in self._notifications:
                self._unnotify(said)
                self._said.remove((watch, said))

    def _seen(self, watch: Watch) -> bool:
        """Whether the screen shows what a run does."""
        return self.current_mode == "runs" or (watch is self.watched and self.current_mode == "live")

    def delay_update(self, delay: float = 0.01) -> None:
        """Textual holds a screen that it switches to back for 50 ms, so that it is whole when it is drawn."""
        super().delay_update(delay)

    def tell(self, watch: Watch, words: str) -> None:
        """Say what a run does that is not seen, and the key that leads to it; until it is seen."""
        name = "live" if watch is self.watched else "runs"
        if not self._seen(watch):
            words = f"run {watch.state.run_id} {words} ({press(f'everywhere.{name}')} shows it)"
            said = Notification(words, timeout=8, markup=False)
            self._said = [each for each in self._said if not each[1].has_expired]
            self._said.append((watch, said))
            self.post_message(Notify(said))

    def on_resize(self, event: events.Resize) -> None:
        self._cover_if_small(event.size.width >= WIDTH and event.size.height >= HEIGHT)

    def _cover_if_small(self, fits: bool) -> None:
        covered = isinstance(self.screen, TooSmall)
        if not fits and not covered and (not self.small or not self.screen.is_modal):
            self.push_screen(TooSmall())
        elif fits and covered:
            self.screen.dismiss()
        self.small = not fits

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,
    ) -> None:
        """Show a message for a while. It is text: what a path or an error holds in brackets is no markup."""
        super().notify(many_lines(message), title=title, severity=severity, timeout=timeout, markup=False)

    def copy_to_clipboard(self, text: str) -> None:
        """Hand a text to the clipboard, in a thread, and say what became of it."""
        self._clipboard = text
        write = self._driver.write if self._driver is not None else bool
        environment = {} if self.is_web else os.environ

        def work() -> None:
            self.call_from_thread(self.notify, hand_over(text, write, environment), timeout=4)

        self.run_worker(work, thread=True, exit_on_error=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """A thread that failed is told about; it does not take the application along."""
        error = event.worker.error
        if event.state is WorkerState.ERROR and error is not None:
            from backprop_tui.screens.tasks import defect_in

            known = error if isinstance(error, BackpropError) else defect_in("working in the background", error)
            show_error(self.screen, known, log="".join(traceback.format_exception(error)))

    def leave_for(self, number: int) -> None:
        """Leave because of a signal, from its handler."""
        if self._loop_of_screen is not None:
            self._loop_of_screen.call_soon_threadsafe(lambda: self.exit(return_code=128 + number))

    # Runs

    def _start_asked_run(self, config: RunConfig) -> None:
        """Start the run of the command line; one that cannot start is said there, by whoever runs the application."""
        try:
            self._show_run(Watch(engine_client.start(config, origins=self._origins)))
        except BackpropError as error:
            self.error = error
            self.exit(return_code=error.exit_code)

    def on_open_run(self, message: OpenRun) -> None:
        """Show a run on the Live screen, living or over; where it cannot be begun, why is said."""
        if self.watched is not None and message.path is not None and self.watched.shows(message.path):
            self.switch_mode("live")
            return
        others = (*self.others, *self.elsewhere.watches)
        known = next((other for other in others if message.path is not None and other.shows(message.path)), None)
        if known is not None:
            self._show_run(known)
        elif message.path is not None:
            self._begin(message, lambda do, *given: do(*given))
        elif not self._beginning:  # a key pressed twice begins one run
            self._beginning = True
            self.run_worker(lambda: self._begin(message, self.call_from_thread), thread=True, exit_on_error=False)

    def _begin(self, message: OpenRun, call: Callable[..., object]) -> None:
        """Begin to watch a run; a new one in a thread, which may read whole checkpoints before."""
        try:
            watch = Watch(message.begin())
        except BackpropError as error:
            call(show_error, self.screen, error, message.values)
        else:
            call(self._show_run, watch)
        finally:
            self._beginning = self._beginning and message.path is not None

    async def on_configure_run(self, message: ConfigureRun) -> None:
        """Go to the Configure screen with the values that another screen chose."""
        await self._go_with("configure", {**message.values, "at": message.at})

    async def on_show_on(self, message: ShowOn) -> None:
        """Go to a screen with the run that another one chose."""
        await self._go_with(message.screen, {"source": message.source, "line": message.line})

    async def _go_with(self, name: str, values: Mapping[str, Any]) -> None:
        await self.switch_mode(name)
        if isinstance(self.screen, BaseScreen):
            self.screen.take(values)

    def _show_run(self, watch: Watch) -> None:
        old, self.watched = self.watched, watch
        for others in (self.others, self.elsewhere.watches):
            if watch in others:
                others.remove(watch)
        if old is not None and old.live:
            self.others.insert(0, old)
        elif old is not None:
            old.close()
        for screen in self._made:
            screen.watch_run = watch
        self.run_worker(lambda: _remember(watch.path), thread=True, exit_on_error=False)
        if self.current_mode != "live":
            self.switch_mode("live")
        self.set_timer(CATCH_UP, self.flush)

    # Keys

    async def action_go(self, name: str) -> None:
        source = self.screen.looked_at if isinstance(self.screen, BaseScreen) else ""
        await self.switch_mode(name)
        if source and isinstance(self.screen, BaseScreen):
            self.screen.offer(source)

    def action_help(self) -> None:
        pane = self.screen.keys_in_front if isinstance(self.screen, BaseScreen) else ()
        self.push_screen(Help(self.current_mode, pane))

    def action_jump(self) -> None:
        """Letters on what can have the keys; over a dialog there is nowhere to go."""
        if isinstance(self.screen, BaseScreen):

            def chosen(target: Widget | None) -> None:
                if target is not None:
                    target.focus()

            self.push_screen(Jump([each for each in self.screen.focus_chain if each.region]), chosen)

    def action_cadence(self) -> None:
        self._cadence = (self._cadence + 1) % len(CADENCES)
        self._set_timer()
        self.notify(f"drawing at most {CADENCES[self._cadence]:g} times a second", timeout=2)

    def action_mouse(self) -> None:
        """Have the terminal report the mouse, or not; it is remembered."""
        if self._driver is not None:
            on = terminal.switch_mouse(self._driver)
            remember("mouse", "on" if on else "off")
            words = "on" if on else "off: the terminal selects by itself"
            self.notify(f"the mouse is {words}", timeout=4)

    # Palette

    def action_command_palette(self) -> None:
        if not self.screen.is_modal:  # a question is answered first
            from backprop_tui.palette import KnownByName, Palette

            self.push_screen(Palette(providers=[*self.COMMANDS, KnownByName]))

    def search_themes(self) -> None:
        from textual.theme import ThemeProvider

        from backprop_tui.palette import Palette

        self.push_screen(Palette(providers=[ThemeProvider], placeholder="Search for themes…"))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Every key that works here, by its name, and the themes: a line each."""
        from backprop_tui.palette import in_one_line

        for key in (*(screen.KEYS if isinstance(screen, BaseScreen) else ()), *EVERYWHERE):
            if key.name not in ("command_palette", "back", "interrupt"):
                title = f"{key.label.capitalize():<14}{shown(key):>9}  {key.help}"
                yield SystemCommand(in_one_line(title, self), "", partial(screen.run_action, key.action))
        title = f"{'Theme':<23}  change the colours; ansi-dark and ansi-light use the terminal's own"
        yield SystemCommand(in_one_line(title, self), "", self.search_themes)


def _own_keys() -> tuple[dict[str, str], list[str]]:
    if not os.path.lexists(keys_file()):
        return {}, []
    from backprop_tui.own_keys import own_keys

    return own_keys()


def _collect_garbage_again() -> None:
    gc.freeze()
    gc.enable()


def _remember(path: Path) -> None:
    with RunIndex() as index:
        index.add(session_of(path) or path)
