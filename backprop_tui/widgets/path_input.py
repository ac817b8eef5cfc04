"""The line at the bottom in which a person types: a path (completed with tab), a search, a row number."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from textual.app import ComposeResult
from textual.binding import Binding
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


def _common_start(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    return next((first[:end] for end in range(len(first), 0, -1) if last.startswith(first[:end])), "")


class PromptInput(Input):
    """The input of a prompt. Tab is its own key here, not the way to the next widget."""

    BINDINGS = [
        Binding("tab", "complete", "Complete", show=False),
        Binding("escape", "leave", "Cancel", show=False),
    ]

    class Complete(Message):
        pass

    class Leave(Message):
        pass

    def action_complete(self) -> None:
        self.post_message(self.Complete())

    def action_leave(self) -> None:
        self.post_message(self.Leave())


class Prompt(Vertical):
    """Asks for one line of text. ``ask`` shows it, enter answers, esc leaves."""

    class Answered(Message):
        def __init__(self, then: Callable[[str], object], text: str) -> None:
            super().__init__()
            self.then = then
            self.text = text

    class Left(Message):
        pass

    class Candidates(Message):
        """Paths found in a thread for the text as it was."""

        def __init__(self, text: str, found: list[str]) -> None:
            super().__init__()
            self.text = text
            self.found = found

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._then: Callable[[str], object] = bool
        self._endings: tuple[str, ...] = ()
        self._found: list[str] = []
        self._place = -1
        self.display = False

    def compose(self) -> ComposeResult:
        yield Static(id="prompt-label", markup=False)
        entry = PromptInput(id="prompt-input", compact=True)
        entry.cursor_blink = False
        yield entry
        yield Static(id="prompt-candidates", markup=False)

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
        self.query_one("#prompt-label", Static).update(label)
        self.query_one("#prompt-candidates", Static).update(help)
        entry = self.query_one(PromptInput)
        entry.value = text
        entry.cursor_position = len(text)
        self.display = True
        # At once, not after the next message: what is typed meanwhile belongs in here.
        self.screen.set_focus(entry)

    def close(self) -> None:
        self.display = False

    def on_descendant_blur(self) -> None:
        """Whoever looks elsewhere wants no answer any more."""
        self.close()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.close()
        self.post_message(self.Answered(self._then, event.value.strip()))

    def on_prompt_input_leave(self, event: PromptInput.Leave) -> None:
        event.stop()
        self.close()
        self.post_message(self.Left())

    def on_prompt_input_complete(self, event: PromptInput.Complete) -> None:
        event.stop()
        if not self._endings:
            return
        text = self.query_one(PromptInput).value
        if self._found and text == self._found[self._place]:
            self._take((self._place + 1) % len(self._found))
        else:
            self.run_worker(partial(self._look, text), thread=True, group="complete", exit_on_error=False)

    def _look(self, text: str) -> None:
        self.post_message(self.Candidates(text, candidates(text, self._endings)))

    def on_prompt_candidates(self, event: Candidates) -> None:
        event.stop()
        entry = self.query_one(PromptInput)
        if entry.value != event.text:
            return
        self._found, self._place = [], -1
        if not event.found:
            self.query_one("#prompt-candidates", Static).update("no file or directory begins like this")
            return
        common = _common_start(event.found)
        if len(common) > len(event.text):
            entry.value = common
            entry.cursor_position = len(common)
            if len(event.found) > 1:
                self._list(event.found, -1)
            else:
                self.query_one("#prompt-candidates", Static).update("")
            return
        self._found = event.found
        self._take(0)

    def _take(self, place: int) -> None:
        """Put one candidate into the input; tab again takes the next."""
        self._place = place
        entry = self.query_one(PromptInput)
        entry.value = self._found[place]
        entry.cursor_position = len(entry.value)
        self._list(self._found, place)

    def _list(self, found: list[str], place: int) -> None:
        first = max(0, min(place - 1, len(found) - _SHOWN))
        width = max(self.size.width - 4, 20)
        lines = []
        for number, name in enumerate(found[first : first + _SHOWN], first):
            short = safe(name.rstrip("/").rpartition("/")[2] + ("/" if name.endswith("/") else ""))
            lines.append(f"{'▸' if number == place else ' '} {fit(short, width).rstrip()}")
        more = len(found) - len(lines)
        if more > 0:
            lines[-1] += f"   (and {more} more)"
        self.query_one("#prompt-candidates", Static).update("\n".join(lines))
