"""The application from its first screen to the last words about the run."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from backprop_tui import terminal

if TYPE_CHECKING:
    from backprop.core.settings import RunConfig

    from backprop_tui.app import BackpropApp


def show(config: RunConfig | None, run: Path | None) -> int:
    """Run the application until a person leaves it, then say how the run stands."""
    # What is loaded to begin with stays: searching it for garbage again and again would delay the first screen.
    gc.disable()
    from backprop_tui.app import BackpropApp

    app = BackpropApp(config, run)
    terminal.watch_terminal()
    terminal.leave_on_signals(app.leave_for)
    app.run()
    if app.error is not None:
        raise app.error
    farewell(app)
    return app.return_code or 0


def farewell(app: BackpropApp) -> None:
    """What a person wants to keep from the screen that is gone."""
    from backprop.runs.describe import number

    watch = app.watched
    if watch is None:
        return
    state = watch.state
    loss = f", loss {number(state.final_loss)}" if state.step else ""
    steps = f"step {state.step}/{state.total_steps}" if state.total_steps else "no step yet"
    print(f"run {state.run_id}: {state.status}, {steps}{loss}")
    print(f"directory: {watch.path}")
    verb = "watch it again" if watch.live else "look at it again"
    print(f"{verb}: backprop-tui --attach {state.run_id}")
