"""A run in one line: what lists show of it, find it by, and sort it by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf, isnan
from typing import Any

from msgspec import Struct

from backprop.core.events import Verdict
from backprop.core.multi_run import KIND as MULTI_RUN
from backprop.runs.state import RunState


class RunSummary(Struct, kw_only=True):
    """One line of ``list-runs`` (SPEC section 13). Times are seconds since the epoch."""

    run_id: str
    status: str
    kind: str
    model: str
    dataset: str
    method: str
    mode: str
    steps: int
    total_steps: int
    final_loss: float | None
    smoothed_loss: float | None
    started_at: float
    duration_seconds: float
    output_path: str
    path: str
    """The run's directory."""
    name: str = ""
    losses: list[float | None] = []
    """At most 60 values for a sparkline."""
    verdict: Verdict | None = None
    """Whether it helped."""
    damage: list[str] = []
    tags: list[str] = []
    note: str = ""
    parent: str = ""
    """The directory of the run that it was forked from, or that it replays."""


def summarise(state: RunState) -> RunSummary:
    """The line of ``list-runs`` for a run."""
    config = state.config
    return RunSummary(
        run_id=state.run_id,
        status=state.status,
        kind=state.kind,
        model=str(config.get("model", "")),
        dataset=str(config.get("data", "")),
        method=str(config.get("method", "sft")),
        mode=state.model.mode if state.model else str(config.get("mode", "")),
        steps=state.step,
        total_steps=state.total_steps,
        final_loss=state.final_loss,
        smoothed_loss=state.smoothed_loss,
        started_at=state.started_at,
        duration_seconds=state.duration_seconds,
        output_path=state.output_path,
        path=state.path,
        name=str(config.get("run_name") or ""),
        losses=thin(list(state.curves.loss), 60),
        verdict=state.verdict,
        damage=state.damage,
        tags=state.tags,
        note=state.note,
        parent=state.parent,
    )


def thin(values: list[float], most: int) -> list[float | None]:
    """At most ``most`` values spread evenly, the last always among them; NaN becomes ``None``."""
    if len(values) > most:
        values = [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
    return [None if isnan(v) else v for v in values]


def matches(run: RunSummary, words: str) -> bool:
    """Whether every word is somewhere in what lists show of the run."""
    shown = (run.run_id, run.name, run.model, run.dataset, run.status, run.kind, run.method, run.mode)
    session = ("session",) if run.kind == MULTI_RUN else ()
    text = " ".join((*shown, *session, *run.tags, run.note)).lower()
    return all(word in text for word in words.lower().split())


SORTS: dict[str, Callable[[RunSummary], Any]] = {
    "started": lambda run: -run.started_at,
    "status": lambda run: run.status,
    "run": lambda run: run.run_id,
    "name": lambda run: run.name,
    "model": lambda run: run.model,
    "dataset": lambda run: run.dataset,
    "steps": lambda run: -run.steps,
    "loss": lambda run: (run.smoothed_loss is None, run.smoothed_loss or 0.0),
    "helped": lambda run: run.verdict.difference if run.verdict else inf,
    "took": lambda run: -run.duration_seconds,
}
"""What runs are sorted by, the first where nobody chose; runs that are alike stay as they were."""


def arranged(runs: Iterable[RunSummary], sort: str, *, backwards: bool = False) -> list[RunSummary]:
    """``runs`` in the order ``sort``, a word of ``SORTS``."""
    return sorted(runs, key=SORTS[sort], reverse=backwards)
