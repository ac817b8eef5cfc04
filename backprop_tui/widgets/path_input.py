"""The line at the bottom in which a person types: a path (completed with tab), a search, a row number."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, Static

from backprop_tui.text import fit, safe

_SHOWN = 4
"""Lines of candidates."""


def candidates(text: str, endings: tuple[str, ...]) -> list[str]:
    """Paths that begin with ``text``: files with one of ``endings``, then directories (ending in a slash)."""
    folder, slash, start = text.rpartition("/")
    folders, files = [], []
    try:
        with os.scandir(Path(folder + slash or ".").expanduser()) as entries:
            for entry in entries:
                if not entry.name.startswith(start) or (entry.name.startswith(".") and not start.startswith(".")):
                    continue
                if entry.is_dir():
                    folders.append(f"{folder}{slash}{entry.name}/")
                elif entry.name.lower().endswith(endings):
                    files.append(f"{folder}{slash}{entry.name}")
    except OSError:
        return []
    return [*sorted(files), *sorted(folders)]


class Prompt(Vertical):
    """Asks for one line of text. ``ask`` shows it, enter answers, esc leaves, tab completes a path."""

    # Tab is the prompt's own key, not the way to the next widget.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "complete(1)", "complete", show=False),
        Binding("shift+tab", "complete(-1)", "the one before", show=False),
        Binding("escape", "leave", "leave", show=False),
    ]

    @dataclass
    class Answered(Message):
        """What was typed, and what it is for; ``None`` where the prompt was left."""

        then: Callable[[str], object]
        text: str | None

    @dataclass
    class Candidates(Message):
        """Paths found in a thread for the text as it was."""

        text: str
        found: list[str]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._label, self._below = Static(id="prompt-label", markup=False), Static(id="prompt-candidates", markup=False)
        self._entry = Input(id="prompt-input", compact=True)
        self._entry.cursor_blink = False
        self._then: Callable[[str], object] = bool
        self._endings: tuple[str, ...] = ()
        self._found: list[str] = []
        self._place = -1
        self.display = False

    def compose(self) -> ComposeResult:
        yield from (self._label, self._entry, self._below)

    def ask(
        self,
        label: str,
        then: Callable[[str], object],
        text: str = "",
        *,
        endings: tuple[str, ...] = (),
        help: str = "",
    ) -> None:
        """Show the prompt.

        Args:
            then: what the answer is for; it comes back with it.
            endings: of the files that tab completes; without them tab does nothing.
            help: shown below until tab is pressed.
        """
        self._then = then
        self._endings, self._found, self._place = endings, [], -1
        self._label.update(label)
        self._below.update(help)
        self._write(text)
        self.display = True
        # At once, not after the next message: what is typed meanwhile belongs in here.
        self.screen.set_focus(self._entry)

    def _write(self, text: str) -> None:
        self._entry.value = text
        self._entry.cursor_position = len(text)

    def on_descendant_blur(self) -> None:
        """Whoever looks elsewhere wants no answer any more."""
        self.display = False

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.display = False
        self.post_message(self.Answered(self._then, event.value.strip()))

    def action_leave(self) -> None:
        self.display = False
        self.post_message(self.Answered(self._then, None))

    def action_complete(self, by: int) -> None:
        text = self._entry.value
        if self._found and text == self._found[self._place]:
            self._take((self._place + by) % len(self._found))
        elif self._endings:
            self.run_worker(lambda: self._look(text), thread=True, group="complete", exit_on_error=False)

    def _look(self, text: str) -> None:
        self.post_message(self.Candidates(text, candidates(text, self._endings)))

    def on_prompt_candidates(self, event: Candidates) -> None:
        event.stop()
        if self._entry.value != event.text:
            return
        self._found, self._place = [], -1
        common = os.path.commonprefix(event.found)  # noqa: RUF071  (by characters is what is wanted)
        if not event.found:
            self._below.update("no file or directory begins like this")
        elif len(common) > len(event.text):
            self._write(common)
            self._list(event.found if len(event.found) > 1 else [], -1)
        else:
            self._found = event.found
            self._take(0)

    def _take(self, place: int) -> None:
        """Put one candidate into the input; tab again takes the next."""
        self._place = place
        self._write(self._found[place])
        self._list(self._found, place)

    def _list(self, found: list[str], place: int) -> None:
        first = max(0, min(place - 1, len(found) - _SHOWN))
        width = max(self.size.width - 4, 20)
        lines = []
        for number, name in enumerate(found[first : first + _SHOWN], first):
            short = safe(name.rstrip("/").rpartition("/")[2] + ("/" if name.endswith("/") else ""))
            lines.append(f"{'▸' if number == place else ' '} {fit(short, width).rstrip()}")
        if len(found) > len(lines):
            lines[-1] += f"   (and {len(found) - len(lines)} more)"
        self._below.update("\n".join(lines))
