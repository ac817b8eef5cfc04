"""One run of the list in full: how it went, what it was made of, what is left of it."""

from __future__ import annotations

from math import isnan
from typing import Any

import msgspec
from backprop.core.settings import RunConfig
from backprop.runs.describe import bytes_text, moment, number, verdict_words
from backprop.runs.state import RunState

from backprop_tui.text import STATUS, Row, clock, count, from_home, safe, short_path, verdict_piece
from backprop_tui.widgets.cells import fact, heading, labelled
from backprop_tui.widgets.facts import data_rows, facts, model_rows
from backprop_tui.widgets.text_view import StateView


class RunDetail(StateView):
    def show(self, state: RunState | None) -> None:
        if state is None or self.state is None or state.path != self.state.path:
            self.top = 0
        super().show(state)

    def content(self, width: int) -> list[Row]:
        state = self.state
        if state is None:
            return []
        checkpoints = [
            fact(f"step {count(saved.step)}", f"{bytes_text(saved.bytes)}  {safe(short_path(saved.path))}")
            for saved in state.checkpoints
        ]
        environment = [row for name, value in state.environment.items() for row in facts(name[:10], str(value), width)]
        parts = (
            ("dataset", "", data_rows(state.dataset, width) if state.dataset else []),
            ("model", "", model_rows(state.model, width) if state.model else []),
            ("checkpoints", "", checkpoints),
            ("settings", "bright: not the default", config_rows(state.config, width)),
            ("environment", "", environment),
        )
        rows = outcome_rows(state, width)
        for title, note, part in parts:
            rows += [[], heading(title, width, note), *part] if part else []
        return rows


def outcome_rows(state: RunState, width: int) -> list[Row]:
    """Status, damage and error first: what a person looks for."""
    glyph, ink = STATUS[state.status]
    took = f" after {clock(state.duration_seconds)}" if state.duration_seconds else ""
    rows: list[Row] = [[(f"{glyph} {state.status}", f"{ink}+bold"), (f"{took}  ", "text"), (state.run_id, "strong")]]
    for words in state.damage:
        rows += facts("damage", from_home(words), width, "warn")
    if state.failed is not None:
        rows += facts("error", f"[{state.failed.code}] {state.failed.message}", width, "bad")
        rows += facts("what to do", state.failed.hint, width, "strong") if state.failed.hint else []
    elif state.status == "crashed":
        rows += facts("error", "the engine went without a word: killed, or the machine went down", width, "bad")
    if state.started_at:
        rows.append(fact("started", moment(state.started_at)))
    if len(state.curves):
        first = next((v for v in state.curves.loss if not isnan(v)), None)
        losses = f"{number(first)} → {number(state.smoothed_loss)} smoothed"
        rows.append(fact("loss", f"{losses}, in {count(state.step)} steps", "strong"))
    if state.evaluations:
        last = state.evaluations[-1]
        rows.append(fact("held-out", f"{number(last.loss)} at step {count(last.step)}"))
    if state.verdict is not None:
        rows += facts("did it help", verdict_words(state.verdict), width, verdict_piece(state.verdict)[1])
    if state.finished is not None and state.finished.energy is not None:
        rows.append(fact("energy", f"{state.finished.energy:.1f} Wh"))
    if again := resume_words(state):
        rows += facts("resume", again, width)
    if state.output_path:
        rows += facts("result", from_home(state.output_path), width)
    rows += facts("directory", from_home(state.path), width)
    return rows


def resume_words(state: RunState) -> str:
    """What continuing the run would do, or why there is nothing to continue; empty while it runs."""
    if state.alive or state.status == "damaged":
        return ""
    before = f"; resumed {state.resumes} times so far" if state.resumes > 1 else "; resumed once" * state.resumes
    if state.status == "done":
        return f"nothing is left to do; `backprop extend {state.run_id} --steps N` gives it a new end{before}"
    if not state.checkpoints:
        return f"no checkpoint was saved: c starts again at step 1{before}"
    last = max(saved.step for saved in state.checkpoints)
    again = f", {count(state.step - last)} steps are taken again" if state.step > last else ""
    return f"c goes on exactly after step {count(last)} of {count(state.total_steps)}{again}{before}"


def config_rows(config: dict[str, Any], width: int) -> list[Row]:
    """The settings that differ from their defaults, then the rest faintly."""
    defaults = msgspec.to_builtins(RunConfig(data=""))
    rows: list[Row] = []
    for name, value in config.items():
        plain = name in defaults and (value == defaults[name])
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows += labelled(f"{name:<24} ", text or "–", width, "muted" if plain else "strong")
    return rows
