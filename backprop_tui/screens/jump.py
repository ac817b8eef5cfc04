"""Jump mode: a letter on everything that can have the keys; the letter gives them to it."""

from __future__ import annotations

from textual import events
from textual.app import ComposeResult
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Static

LETTERS = "asdfghjklwertyuiopzxcvbnm"


class Jump(ModalScreen[Widget]):
    """Lies over a screen that stays to be seen; answers with the widget, or with nothing."""

    def __init__(self, targets: list[Widget]) -> None:
        super().__init__(id="jump")
        self._targets = dict(zip(LETTERS, targets, strict=False))

    def compose(self) -> ComposeResult:
        for letter, target in self._targets.items():
            label = Static(f" {letter} ", classes="letter", markup=False)
            label.styles.offset = target.region.offset
            yield label

    def on_key(self, event: events.Key) -> None:
        event.stop()
        self.dismiss(self._targets.get(event.key))

    def on_click(self) -> None:
        self.dismiss(None)
