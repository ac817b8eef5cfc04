"""What can be opened without typing a path: datasets opened before, those of the current directory, its folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backprop.data.formats import FORMATS
from backprop.data.reader import KINDS

from backprop_tui.keys import press
from backprop_tui.screens.dataset.file import offers
from backprop_tui.screens.tasks import Tasks
from backprop_tui.text import Row, from_home, safe, wrap
from backprop_tui.widgets.cells import labelled
from backprop_tui.widgets.list_view import ListView

_SEEN = 4
"""So much of the list is seen in any window."""


class OpeningPane(ListView):
    """Shown while no file is open; enter opens what is under the cursor."""

    def __init__(self, tasks: Tasks, *, id: str) -> None:
        super().__init__(id=id)
        self._tasks = tasks
        self.offered: Sequence[str] = ()
        """Paths and hub names; a folder ends in a slash."""
        self._title: list[Row] = []
        self.say([[("No dataset is open", "strong+bold")]])

    def say(self, lines: list[Row]) -> None:
        """Why no file is open, above the list."""
        self._title = lines
        self.redraw()

    def look(self) -> None:
        """Find what can be offered, in a thread."""
        self._tasks.begin("offer", "", lambda _: offers(), self._take)

    def _take(self, offered: list[str]) -> None:
        self.offered = offered
        self.resize_list(len(offered))

    def chosen(self) -> str:
        return self.offered[self.cursor] if self.offered else ""

    def head(self) -> list[Row]:
        width = max(self.size.width - 1, 20)
        path = "takes a path, or owner/name of the Hugging Face Hub"
        what = "opens what is chosen below" if self.offered else "opens a dataset of this directory: there is none"
        said = [
            *(part for line in self._title for part in wrap(line, width)),
            [],
            *labelled("enter   ", what, width, label_ink="key+bold"),
            *labelled(f"{press('data.open'):<8}", path, width, label_ink="key+bold"),
            [],
        ]
        kinds = [
            *labelled("files   ", f"{', '.join(KINDS)}, each also .gz or .zst", width),
            *labelled("rows    ", f"{', '.join(FORMATS)}: found from the rows", width),
            [],
        ]
        # Where the window is low, what can be chosen is worth more.
        room = self.size.height - min(len(self.offered), _SEEN)
        return [*said, *kinds] if len(said) + len(kinds) <= room else said

    def row_at(self, index: int, width: int) -> Row:
        name = self.offered[index]
        folder, _, last = name.rstrip("/").rpartition("/")
        if name.endswith("/") or not folder:
            return [(f" {safe(name)}", "text")]
        if not Path(name).is_absolute():
            return [(f" {safe(name)}", "text"), ("  opened before, from the Hugging Face Hub", "muted")]
        return [(f" {safe(last)}", "text"), (f"  opened before, in {safe(from_home(folder + '/'))}", "muted")]
