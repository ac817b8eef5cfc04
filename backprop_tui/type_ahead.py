"""Keys that come in one burst - typed ahead, or held up by a slow line - are handled one after the other.

Textual hands a key to the widget that has the focus when it comes, and what the key does happens later, when it has
come up to the application. The second key of a burst would so be taken for a command of the screen that the first one
leaves: ``/done`` typed at once would filter nothing and start the demonstration with its ``d``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

from textual import events
from textual.app import App
from textual.message import Message
from textual.screen import Screen

LOST = 0.2
"""Seconds after which a key that holds up others is taken for handled: the widget that had it went with it."""


@dataclass
class KeyHandled(Message):
    """Follows a key on its way up, and so comes to the application after it."""

    key: events.Key


class KeysInOrder(App[None]):
    """An application that gives out a key when the one before has done what it does."""

    def __init__(self, *, ansi_color: bool | None = None) -> None:
        super().__init__(ansi_color=ansi_color)
        self._keys: deque[events.Key] = deque()
        """The key that is being handled, and those that wait for it."""
        self._given_on: Screen[Any] | None = None

    async def on_event(self, event: events.Event) -> None:
        # Ctrl+C waits for nothing.
        if not isinstance(event, events.Key) or event.is_forwarded or event.key == "ctrl+c":
            await super().on_event(event)
            return
        self._keys.append(event)
        if len(self._keys) == 1:
            await self._give_key()
        else:
            self.set_timer(LOST, partial(self._go_on, self._keys[0]))

    async def _give_key(self) -> None:
        key, taker, self._given_on = self._keys[0], self.focused or self.screen, self.screen
        await super().on_event(key)
        if not taker.post_message(KeyHandled(key)):
            self.post_message(KeyHandled(key))

    def on_key_handled(self, message: KeyHandled) -> None:
        # What the key asked for by messages, a focus for instance, comes first.
        self.call_later(self._go_on, message.key)

    async def _go_on(self, key: events.Key) -> None:
        if self._keys and self._keys[0] is key:
            self._keys.popleft()
            if self._given_on is not self.screen and self._given_on is not None and self._given_on.is_modal:
                self._keys.clear()  # they were meant for a question that is answered now
            if self._keys:
                await self._give_key()
