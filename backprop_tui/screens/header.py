"""The first row of every screen: the screens by their numbers, who and where this is, and the run that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import events
from textual.message import Message

from backprop_tui.keys import press
from backprop_tui.screens import SCREENS
from backprop_tui.text import STATUS, Row, clock, count, safe
from backprop_tui.watch import Watch
from backprop_tui.widgets.cells import Cells, row_width


class Header(Cells):
    """Tabs at the left and the run at the right are clicked; what has no room is left out, the run last."""

    @dataclass
    class Opened(Message):
        """The run at the right was clicked."""

        watch: Watch

    DEFAULT_CSS = "Header { height: 1; background: $boost; }"

    _living: Sequence[Watch] = ()
    _queued = 0
    _place = ""
    _tab_ends: Sequence[int] = ()
    _chip_width = 0

    def __init__(self, here: str) -> None:
        super().__init__()
        self._here = here
        """The screen that it is on, as in ``SCREENS``."""

    def show(self, living: Sequence[Watch], queued: int, place: str) -> None:
        """
        Args:
            living: runs that are being trained, the one to name first.
            queued: runs that wait for their turn.
            place: user, machine and card, in words.
        """
        self._living, self._queued, self._place = living, queued, place
        self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        tabs = self._tabs(named=False)
        chips = (self._chip(least) for least in range(3))
        chip = next((chip for chip in chips if row_width(tabs) + row_width(chip) <= width), [])
        self._chip_width = row_width(chip) if self._living else 0
        if row_width(self._tabs(named=True)) + row_width(chip) < width:
            tabs = self._tabs(named=True)
        else:
            tabs = self._tabs(named=False)  # again: it remembers where each ends
        room = width - row_width(tabs) - row_width(chip)
        place: Row = [(f"{safe(self._place)}  ", "muted")]
        if not self._place or row_width(place) >= room:
            place = []
        return [[*tabs, (" " * (room - row_width(place)), "text"), *place, *chip]]

    def _tabs(self, *, named: bool) -> Row:
        row: Row = []
        ends = []
        for entry in SCREENS:
            here = entry.name == self._here
            title = f" {entry.title}" if named or here else ""
            row.append((f" {press(f'everywhere.{entry.name}')}{title} ", "strong+bold+here" if here else "text"))
            ends.append(row_width(row))
        self._tab_ends = ends
        return row

    def _chip(self, least: int) -> Row:
        """The run that is trained; with ``least`` 1 without the time that is left, with 2 its id alone."""
        queued: Row = [(f"{self._queued} queued ", "info")] if self._queued else []
        if not self._living:
            return queued
        state = self._living[0].state
        glyph, ink = STATUS[state.status]
        far = f" {count(state.step)}/{count(state.total_steps)}" if state.step and least < 2 else ""
        left = "" if state.eta_seconds is None or least else f" {clock(state.eta_seconds)}"
        more = f" +{len(self._living) - 1}" if len(self._living) > 1 else ""
        return [(f"{glyph} ", ink), (state.run_id[:8], "strong"), (f"{far}{left}{more} ", "text"), *queued]

    async def on_click(self, event: events.Click) -> None:
        for end, entry in zip(self._tab_ends, SCREENS, strict=False):
            if event.x < end:
                await self.app.run_action(f"app.go('{entry.name}')")
                return
        if self._chip_width and event.x >= self.size.width - self._chip_width:
            self.post_message(self.Opened(self._living[0]))
