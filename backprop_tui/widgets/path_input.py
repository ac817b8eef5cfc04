"""The line at the bottom in which a person types: a path (completed with tab), a search, a row number."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from backprop.core.errors import InputError
from backprop.core.paths import expand
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static

from backprop_tui.keys import Key
from backprop_tui.text import count, fit, from_home, safe

_SHOWN = 4
"""Lines of candidates."""


def candidates(text: str, endings: tuple[str, ...]) -> list[str]:
    """Paths that begin with ``text``: files with one of ``endings``, then directories (ending in a slash)."""
    folder, slash, start = text.lstrip("'\"").rpartition("/")
    folders, files = [], []
    try:
        with os.scandir(expand(folder + slash)) as entries:
            for entry in entries:
                if not entry.name.startswith(start) or (entry.name.startswith(".") and not start.startswith(".")):
                    continue
                if _is_folder(entry):
                    folders.append(f"{folder}{slash}{entry.name}/")
                elif entry.name.lower().endswith(endings):
                    files.append(f"{folder}{slash}{entry.name}")
    except (OSError, InputError):
        return []
    return [*sorted(files), *sorted(folders)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one; what cannot be looked at, such as a link that leads back to itself, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


class Prompt(Vertical):
    """Asks for one line of text. ``ask`` shows it, enter answers, esc leaves, tab completes a path.

    Whoever had the keys before has them again afterwards.
    """

    DEFAULT_CSS = """
    Prompt { height: auto; background: $surface; padding: 0 1; }
    Prompt Static { height: auto; color: $text-muted; }
    Prompt Input { background: $surface; }
    """
    # Tab is the prompt's own key, not the way to the next widget.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab,down", "complete(1)", "complete", show=False),
        Binding("shift+tab,up", "complete(-1)", "the one before", show=False),
        Binding("escape", "leave", "leave", show=False),
    ]

    @dataclass
    class Answered(Message):
        """What was typed, and what it is for; ``None`` where the prompt was left."""

        then: Callable[[str], object]
        text: str | None

    @dataclass
    class Candidates(Message):
        """Paths found in a thread for the text as it was: to complete it, or only to be seen while a person types."""

        text: str
        found: list[str]
        complete: bool

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._label, self._below = Static(id="prompt-label", markup=False), Static(id="prompt-candidates", markup=False)
        self._entry = Input(id="prompt-input", compact=True)
        self._entry.cursor_blink = False
        self._then: Callable[[str], object] = bool
        self._numbers: range | None = None
        self._check: Callable[[str], str] | None = None
        self._help = ""
        self._endings: tuple[str, ...] = ()
        self._found: Sequence[str] = ()
        self._offered: Sequence[str] = ()
        self._found_for = ""
        """The text that ``_found`` belongs to."""
        self._place = -1
        self._before: Widget | None = None
        self.display = False

    def compose(self) -> ComposeResult:
        yield from (self._label, self._entry, self._below)

    def keys(self) -> list[Key]:
        """What works while a person types."""
        complete = [Key("tab", "tab", "", "next", "", 1)] if self._endings else []
        return [Key("enter", "enter", "", "answer", "", 1), *complete, Key("escape", "esc", "", "leave", "", 1)]

    def ask(
        self,
        label: str,
        then: Callable[[str], object],
        text: str = "",
        *,
        endings: tuple[str, ...] = (),
        offered: Sequence[str] = (),
        numbers: range | None = None,
        check: Callable[[str], str] | None = None,
        help: str = "",
    ) -> None:
        """Show the prompt.

        Args:
            then: what the answer is for; it comes back with it.
            endings: of the files that tab completes; without them tab does nothing.
            offered: what tab takes while nothing was typed.
            numbers: the answer is one of these (or nothing): no other character can be typed.
            check: what is wrong with an answer, said as it is typed; one that is wrong is not taken.
            help: shown below until tab is pressed.
        """
        if not self.display:
            self._before = self.screen.focused
        self._then, self._numbers, self._endings = then, numbers, endings
        self._check, self._help = check, help
        self._offered = offered
        self._found = () if text else offered
        # A path is mended or gone on with, anything else is written anew.
        self._entry.select_on_focus = not endings
        self._found_for, self._place = text, -1
        self._entry.restrict = None if numbers is None else r"[0-9,]*"
        self._label.update(label)
        self._below.update(help)
        self._write(text)
        self.display = True
        if self._found and not help:
            self._list()
        # At once, not after the next message: what is typed meanwhile belongs in here.
        self.screen.set_focus(self._entry)

    def _write(self, text: str) -> None:
        self._entry.value = text
        self._entry.cursor_position = len(text)

    def on_descendant_blur(self) -> None:
        """Whoever looks elsewhere wants no answer any more; another window of the desktop is not elsewhere."""
        if self.app.app_focus and self.screen.focused is not self._entry:
            self.display = False

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        problem = self._check(event.value) if self._check is not None else ""
        if problem:
            self._below.update(f"✗ {problem}")
        elif self._endings and event.value != self._found_for:
            self._look(complete=False)
        elif not self._endings:
            self._below.update(self._help)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        if self._check is not None and self._check(text):
            return
        if self._numbers is not None and (text := text.replace(",", "")) and int(text) not in self._numbers:
            self._below.update(f"✗ a number {between(self._numbers)} is needed")
        else:
            self._end(text)

    def action_leave(self) -> None:
        self._end(None)

    def _end(self, text: str | None) -> None:
        self.display = False
        if self._before is not None and self._before.is_attached:
            self.screen.set_focus(self._before)
        self.post_message(self.Answered(self._then, text))

    def action_complete(self, by: int) -> None:
        text = self._entry.value
        if self._found and text == self._found_for:
            self._take((self._place + by if self._place >= 0 or by > 0 else by) % len(self._found))
        elif self._endings:
            self._look(complete=True)

    def _look(self, *, complete: bool) -> None:
        """Find what begins like the text; where there is none, what is offered."""
        text, endings = self._entry.value, self._endings

        def look() -> None:
            self.post_message(self.Candidates(text, candidates(text, endings), complete))

        if text or complete:
            self.run_worker(look, thread=True, group="complete", exit_on_error=False)
        else:
            self._found, self._found_for, self._place = self._offered, text, -1
            self._list()

    def on_prompt_candidates(self, event: Candidates) -> None:
        event.stop()
        if self._entry.value != event.text:
            return
        before, self._found, self._place = self._found, (), -1
        if not event.complete:
            self._found = event.found
            if before or event.found:  # else what was said of a path that nothing begins like stays
                self._list()
            return
        common = os.path.commonprefix(event.found)  # noqa: RUF071  (by characters is what is wanted)
        if not event.found:
            self._below.update("no file or directory begins like this")
        elif len(common) > len(event.text):
            self._write(common)
            self._found = event.found if len(event.found) > 1 else ()
            self._found_for = common
            self._list()
        else:
            self._found = event.found
            self._take(0)

    def _take(self, place: int) -> None:
        """Put one candidate into the input; tab again takes the next."""
        self._place = place
        self._found_for = self._found[place]
        self._write(self._found_for)
        self._list()

    def _list(self) -> None:
        found, place = self._found, self._place
        first = max(0, min(place - 1, len(found) - _SHOWN))
        width = max(self.screen.size.width - 24, 20)
        lines = [] if found else [self._help]
        for number, name in enumerate(found[first : first + _SHOWN], first):
            folder, _, last = name.removesuffix("/").rpartition("/")
            last += "/" * name.endswith("/")
            # What is offered comes from many folders, what completes a path from one.
            last += f"  in {from_home(folder + '/')}" if found is self._offered and folder else ""
            lines.append(f"{'▸' if number == place else ' '} {fit(safe(last), width).rstrip()}")
        if found and len(found) > len(lines):
            lines[-1] += f"   (and {count(len(found) - len(lines))} more)"
        self._below.update("\n".join(lines))


def between(numbers: range) -> str:
    """``from 16 to 1,024``."""
    return f"from {count(numbers.start)} to {count(numbers.stop - 1)}"
