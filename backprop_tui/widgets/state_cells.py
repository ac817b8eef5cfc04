"""Cells that show something of one run's state."""

from __future__ import annotations

from backprop.runs.state import RunState

from backprop_tui.widgets.cells import Cells


class StateCells(Cells):
    """``show`` gives the state, ``None`` where no run is open; it is the same object while the run goes on."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.state: RunState | None = None

    def show(self, state: RunState | None) -> None:
        self.state = state
        self.redraw()
