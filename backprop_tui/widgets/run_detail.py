"""One run of the list in full: how it went, what it was made of, what is left of it."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan

import msgspec
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs.describe import bytes_text, level, moment, number, verdict_words
from backprop.runs.state import RunState

from backprop_tui.hints import hint_here
from backprop_tui.keys import press
from backprop_tui.text import STATUS, Row, clock, count, from_home, safe, short_path, verdict_piece, wrap
from backprop_tui.widgets.cells import fact, heading, labelled
from backprop_tui.widgets.facts import data_rows, facts, model_rows
from backprop_tui.widgets.log import event_words
from backprop_tui.widgets.session import forgetting_rows, run_number, timeline, timeline_head
from backprop_tui.widgets.text_view import StateView

_EVENTS = 30
"""The last of them are shown."""


class RunDetail(StateView):
    files: Mapping[str, int] = {}
    """Bytes of what is in the run's directory, by name."""

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
        runs = [part for _, row in timeline(state, width) for part in wrap(row, width)]
        parts = (
            ("runs", run_number(state), [timeline_head(width), *runs] if runs else []),
            ("forgetting", "loss of each run's held-out rows", forgetting_rows(state, width)),
            ("dataset", "", data_rows(state.dataset, width) if state.dataset else []),
            ("model", "", model_rows(state.model, width) if state.model else []),
            ("checkpoints", "", checkpoints),
            ("settings", "bright: not the default", config_rows(state, width)),
            ("events", "the last ones" if len(state.notable) > _EVENTS else "", event_rows(state, width)),
            ("environment", "", environment),
            ("files", "", [fact(name, bytes_text(size)) for name, size in self.files.items()]),
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
    if (failed := state.last_failure) is not None:
        rows += facts("not continued" if state.refused else "error", f"[{failed.code}] {failed.message}", width, "bad")
        rows += facts("what to do", hint_here(failed.hint), width, "strong") if failed.hint else []
    elif state.status == "crashed":
        rows += facts("error", "the engine went without a word: killed, or the machine went down", width, "bad")
    if name := state.config.get("run_name"):
        rows += facts("name", str(name), width, "strong")
    if state.runs:
        rows += facts("session", f"{state.runs[-1].of} runs in sequence, merged into one adapter", width)
    if state.tags or state.note:
        rows += facts("note", " ".join([*(f"+{tag}" for tag in state.tags), state.note]).strip(), width, "mark")
    if state.parent:
        rows += facts("replays" if state.kind == "replay" else "forked from", from_home(state.parent), width)
    if state.started_at:
        rows.append(fact("started", moment(state.started_at)))
    if len(state.curves):
        first = next((v for v in state.curves.loss if not isnan(v)), None)
        losses = f"{number(first)} → {number(state.smoothed_loss)} smoothed"
        rows.append(fact("loss", f"{losses}, in {count(state.step)} step{'s' * (state.step != 1)}", "strong"))
    if state.evaluations:
        last = state.evaluations[-1]
        rows.append(fact("held-out", f"{number(last.loss)} at step {count(last.step)}"))
    if state.verdict is not None:
        rows += facts("did it help", verdict_words(state.verdict), width, verdict_piece(state.verdict)[1])
    if state.finished is not None and state.finished.energy is not None:
        rows.append(fact("energy", f"{state.finished.energy:.1f} Wh"))
    if again := resume_words(state, press("runs.resume"), press("runs.extend")):
        rows += facts("resume", again, width)
    if state.output_path:
        rows += facts("result", from_home(state.output_path), width)
    rows += facts("directory", from_home(state.path), width)
    return rows


def resume_words(state: RunState, key: str, extends: str = "") -> str:
    """What ``key`` would do to continue the run, or why there is nothing to continue; empty while it runs.

    Args:
        extends: the key that gives it a new end, where there is one.
    """
    if state.alive or state.status == "damaged":
        return ""
    before = f"; resumed {state.resumes} times so far" if state.resumes > 1 else "; resumed once" * state.resumes
    if state.status == "done":
        more = f"; {extends} gives it a new end" if extends and not state.multi else ""
        return f"nothing is left to do{more}{before}"
    if not state.checkpoints:
        return f"no checkpoint was saved: {key} starts again at step 1{before}"
    last = max(saved.step for saved in state.checkpoints)
    number = state.step - last
    again = f", {count(number)} step{' is' if number == 1 else 's are'} taken again" if number > 0 else ""
    return f"{key} goes on exactly after step {count(last)} of {count(state.total_steps)}{again}{before}"


def event_rows(state: RunState, width: int) -> list[Row]:
    """What happened, the last first."""
    inks = {"error": "bad", "warning": "warn", "info": "text"}
    rows: list[Row] = []
    for event in reversed(state.notable[-_EVENTS:]):
        if text := event_words(event):
            at = clock(max(0.0, event.time - state.started_at))
            rows += labelled(f"{at:>9}  ", text, width, inks[level(event)])
    return rows


def config_rows(state: RunState, width: int) -> list[Row]:
    """Every setting with where its value comes from; those that are as by default faintly."""
    defaults = msgspec.to_builtins(RunConfig(data="")) | msgspec.to_builtins(MultiConfig())
    rows: list[Row] = []
    for name, value in (state.multi | state.config).items():
        plain = name in defaults and (value == defaults[name])
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows += labelled(f"{name:<24} ", from_home(text) or "–", width, "muted" if plain else "strong")
        if origin := state.origins.get(name):
            rows += labelled(" " * 25, from_home(origin), width, "muted")
    return rows
