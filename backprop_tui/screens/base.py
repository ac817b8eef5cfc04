"""What every screen is: it states its name, its keys, which of them are useful now, and how it is brought up to date.

Screens ask the application for something by posting a message. They send exactly the cells that changed: Textual's own
partial update sends, for a changed stretch, everything from the widget's left edge to the stretch's end. That replaces
one method of Textual's compositor; the rest of it is used as it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_client import EngineClient
from backprop.runs.sessions import session_of
from backprop.runs.state import RunState
from rich.console import Console
from rich.control import Control
from textual._compositor import ChopsUpdate, Compositor
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input

from backprop_tui.hints import hint_here
from backprop_tui.keys import Key
from backprop_tui.screens import EVERYWHERE
from backprop_tui.screens.dialogs import RESUMING, Answer, Question, copies
from backprop_tui.screens.header import Header
from backprop_tui.screens.tasks import Delivered, Tasks
from backprop_tui.watch import Watch
from backprop_tui.widgets.bars import KeyBar
from backprop_tui.widgets.path_input import Prompt


@dataclass
class OpenRun(Message):
    """Watch a run on the Live screen: one that ``begin`` starts, continues or attaches to."""

    begin: Callable[[], EngineClient]
    path: Path | None = None
    """The directory of a run that exists."""
    values: Mapping[str, Any] | None = None
    """The settings of a new one."""


@dataclass
class ConfigureRun(Message):
    """Configure a new run on the Configure screen, beginning with these values of settings."""

    values: Mapping[str, Any]
    at: str = ""
    """The setting to look at."""


@dataclass
class ShowOn(Message):
    """Go to another screen with the run in a directory; to the Data screen with a line of a file too."""

    screen: str
    """As in ``SCREENS``."""
    source: str
    line: int | None = None
    """0: none of the file's lines."""


class BaseScreen(Screen[None]):
    NAME: ClassVar[str]
    """As in ``SCREENS``."""
    KEYS: ClassVar[tuple[Key, ...]]
    STOP: ClassVar[str] = ""
    """The id of the key that stops what goes on in the background; empty where there is none."""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high")]

    def __init__(self) -> None:
        super().__init__(id=self.NAME)
        self._compositor = _SparingCompositor()
        self.tasks = Tasks(self, self.STOP)
        self.header, self.keybar = Header(self.NAME), KeyBar(id="keybar")
        self.watch_run: Watch | None = None
        """The run that is open."""
        self.living: list[Watch] = []
        """Every run that is being trained and was opened here."""
        self.living_elsewhere: list[Watch] = []
        """Those that were not, as the queue's."""

    def flush(self) -> None:
        """Bring every widget up to date, as the application's timer wants it; what did not change is not drawn."""
        raise NotImplementedError

    def losing(self) -> str:
        """Work of the screen that ends with the application, in words; empty where there is none."""
        return ""

    @property
    def keys_in_front(self) -> tuple[Key, ...]:
        """The table of keys of a pane that is seen in place of what the screen shows; empty where there is none."""
        return ()

    def own_keys(self) -> list[Key]:
        """Those of the screen's keys that do something now."""
        return list(self.KEYS)

    def watch_focused(self) -> None:
        self.show_keys()

    def show_keys(self) -> None:
        """Bring the key bar up to date; an open prompt has keys of its own."""
        if isinstance(self.focused, Input) and isinstance(prompt := self.focused.parent, Prompt):
            self.keybar.show(prompt.keys())
            return
        # Letters and digits are text while a person types.
        keys = (*self.own_keys(), *(() if isinstance(self.focused, Input) else EVERYWHERE))
        self.keybar.show([key for key in keys if key.rank < 9])

    def on_header_opened(self, message: Header.Opened) -> None:
        path = message.watch.path
        self.post_message(OpenRun(partial(engine_client.attach, path), path))

    def copy(self, state: RunState) -> None:
        """Ask what of a run goes to the clipboard, and send it there: the terminal's own, also over SSH."""
        self.copy_one(copies(state, RunDirectory(Path(state.path)).last_lines() if state.last_failure else ""))

    def copy_one(self, texts: tuple[Answer, ...]) -> None:
        """Ask which of several texts goes to the clipboard: each answer's value is one."""

        def answered(text: str | None) -> None:
            if text:
                self.app.copy_to_clipboard(text)

        self.app.push_screen(Question("copy", "", texts), answered)

    def resume(self, state: RunState) -> None:
        """Continue a run, or its session; where the same again would fail the same, that is said first."""
        path = Path(state.path)
        message = OpenRun(partial(engine_client.resume, session_of(path) or path))
        failed = state.last_failure
        if failed is None or failed.retryable:
            self.post_message(message)
            return
        words = f"It failed: {failed.message}.\n\nWhat to do: {hint_here(failed.hint) or 'read its events'}."
        words += "\n\nContinued as it is, it will most likely fail again."
        self.confirm("resume", words, RESUMING, lambda: self.post_message(message))

    def confirm(self, title: str, text: str, answers: tuple[Answer, ...], then: Callable[[], object]) -> None:
        """Ask a question, and do what the last of its answers says only where that one is given."""

        def answered(value: str | None) -> None:
            if value == answers[-1].value:
                then()

        self.app.push_screen(Question(title, text, answers), answered)

    def on_delivered(self, event: Delivered) -> None:
        self.tasks.take(event)
        self.flush()

    def on_unmount(self) -> None:
        self.tasks.end()

    def on_prompt_answered(self, event: Prompt.Answered) -> None:
        if event.text is not None:
            event.then(event.text)
        self.flush()

    def take(self, values: Mapping[str, Any]) -> None:
        """Begin anew with what another screen asks for."""
        raise NotImplementedError

    @property
    def looked_at(self) -> str:
        """The directory of the run with a result that the screen shows; empty where it shows none."""
        return ""

    def offer(self, source: str) -> None:
        """The run of the screen that a person came from by a number; what goes on here stays."""

    def action_back(self) -> Awaitable[None] | None:
        """Escape: one layer out."""
        return None

    def on_screen_resume(self) -> None:
        if self.is_mounted:
            self.flush()

    def _compositor_refresh(self) -> None:
        """What cannot be shown yet waits for the next drawing. Textual draws it, and throws that away.

        It also draws once more what was just drawn with the whole screen and had asked for it before.
        """
        if not self.app._batch_count:
            whole = self._compositor.size.region in self._compositor._dirty_regions
            super()._compositor_refresh()
            if whole and self.app.screen is self:
                for widget in (self, *self._compositor.visible_widgets):
                    widget._repaint_required = False


class _ExactUpdate(ChopsUpdate):
    def render_segments(self, console: Console) -> str:
        sequences: list[str] = []
        for y, start, end in self.spans:
            for chop_end, (chop_start, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                left, right = max(start, chop_start), min(end, chop_end)
                if strip is None or left >= right:
                    continue
                sequences.append(Control.move_to(left, y).segment.text)
                sequences.append(strip.crop(left - chop_start, right - chop_start).render(console))
        return "".join(sequences)


class _SparingCompositor(Compositor):
    def render_partial_update(self) -> ChopsUpdate | None:
        update = super().render_partial_update()
        return None if update is None else _ExactUpdate(update.chops, update.spans, update.chop_ends)
