"""The two lines at the top of the Live screen: which run, and how far."""

from __future__ import annotations

import time

from backprop.runs.describe import PHASES, bytes_text
from backprop.runs.state import RunState
from rich.cells import cell_len

from backprop_tui.text import STATUS, Row, clock, count, fit, safe, short_path, verdict_piece
from backprop_tui.widgets.cells import Cells, StateCells, bar, cut, row_width, spread
from backprop_tui.widgets.session import run_number

_LEAST = 8
"""Cells below which a run's name is left out."""
_VERBS = {"download": "fetching", "convert": "converting", "load": "loading"}


class RunHeader(Cells):
    """Status, run, model, dataset; at the right what it is doing."""

    _shown: tuple[RunState | None, str] = (None, "")

    def show(self, state: RunState | None, asked: str) -> None:
        """``asked`` is a command not yet answered, in words."""
        self._shown = state, asked
        self.redraw()

    def rows(self, width: int, height: int) -> list[Row]:
        state, asked = self._shown
        if state is None:
            return [[(" no run is open", "muted")]]
        glyph, ink = STATUS[state.status]
        left: Row = [(f" {glyph} {state.status}", f"{ink}+bold"), ("  " + state.run_id, "strong")]
        model, data = (safe(short_path(str(state.config.get(part) or ""))) for part in ("model", "data"))
        others = len(state.multi.get("tasks") or ()) - 1
        data += f" and {others} more" if others > 0 else ""
        made: Row = [("  " + model, "text"), (" ← ", "muted"), (data, "text")]
        silent = state.silence(time.time())
        doing = (f"{silent or asked or self._doing(state)} ", "warn" if silent or asked else "muted")
        room = width - row_width(left) - row_width(made) - row_width([doing]) - 3
        name = safe(str(state.config.get("run_name") or ""))
        if name and room >= _LEAST:
            left.append(("  " + fit(name, min(room, cell_len(name))), "text"))
        return [spread([*left, *made], [doing], width)]

    def _doing(self, state: RunState) -> str:
        if state.status == "paused":
            return "paused" if state.paused_for in ("", "requested") else f"paused: {state.paused_for}"
        if state.ended:
            return f"took {clock(state.duration_seconds)}" if state.duration_seconds else ""
        # Before the first step the line below says it.
        return PHASES.get(state.phase, state.phase) if state.total_steps else ""


class Progress(StateCells):
    """Steps with a bar and the remaining time; before the first step, the progress of loading."""

    def rows(self, width: int, height: int) -> list[Row]:
        if self.state is None:
            return [[]]
        left, share, right = self._parts(self.state)
        room = width - row_width(left) - row_width(right) - 6
        if room < 6:
            return [cut([(" ", "text"), *left], width)]
        ink = {"paused": "warn", "failed": "bad", "crashed": "bad", "done": "good"}.get(self.state.status, "info")
        return [[(" ", "text"), *left, ("  ", "text"), *bar(share, room, ink), ("  ", "text"), *right]]

    def _parts(self, state: RunState) -> tuple[Row, float, Row]:
        if state.total_steps:
            share = state.step / state.total_steps
            left: Row = [("step ", "muted"), (count(state.step), "strong"), (f"/{count(state.total_steps)}", "text")]
            if run := run_number(state):
                left += [("  run ", "muted"), (run, "strong")]
            if state.last_step:
                left += [("  epoch ", "muted"), (f"{state.last_step.epoch:.2f}", "text")]
            right: Row = [(f"{share:4.0%}", "strong")]
            if not state.ended:
                right += [("  elapsed ", "muted"), (clock(state.duration_seconds), "text")]
                right += [("  left ", "muted"), (clock(state.eta_seconds), "strong")]
            if state.verdict is not None:
                right += [("  ", "text"), verdict_piece(state.verdict)]
            return left, share, right
        if state.phase == "loading_model" and state.loading is not None:
            loading = state.loading
            share = loading.done / loading.total if loading.total else 0.0
            left = [(f"{_VERBS[loading.stage]} ", "muted"), (safe(short_path(loading.model)), "strong")]
            amount = bytes_text(loading.done) + (f" of {bytes_text(loading.total)}" if loading.total else "")
            return left, share, [(amount if loading.done else "", "text")]
        prompts = len(state.config.get("sample_prompts") or [])
        if state.phase == "sampling" and prompts:
            answered = len(state.samples)
            left = [("answering the sample prompts", "muted")]
            return left, answered / prompts, [(f"{answered} of {prompts}", "text")]
        wanted = state.config.get("steps")
        right = [(f"{count(wanted)} steps planned", "muted")] if wanted else []
        return [(PHASES.get(state.phase, "no step taken") if not state.ended else "no step taken", "muted")], 0.0, right
