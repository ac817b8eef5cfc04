"""``backprop list-runs`` and ``show-run``: what ran, how it went, and where the result is."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from math import isnan
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from backprop.cli import output, views
from backprop.cli.options import json_and_verbose
from backprop.core.errors import InputError
from backprop.core.events import RunFailed
from backprop.core.paths import expand
from backprop.runs.checkpoints import Checkpoint, CheckpointStore
from backprop.runs.describe import bytes_text, describe, duration, level, moment, number
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from backprop.runs.state import RunState, Status, read_run
from backprop.runs.summary import SORTS, RunSummary, arranged, matches, summarise

_STATUSES = get_args(Status)
_USUAL = ("sft", "lora", "auto", "")
"""Methods and modes that a list does not name."""


def chosen_runs(function: Callable[..., Any]) -> Callable[..., Any]:
    """The words and options that choose among all runs, passed on as one ``choose``, which does it."""

    @functools.wraps(function)
    def choosing(*, words: tuple[str, ...], status: str | None, output_dir: str | None, **rest: Any) -> Any:
        if status is not None and status not in _STATUSES:
            raise InputError(f"no run has the status {status!r}", hint="one of " + ", ".join(_STATUSES))

        if output_dir is not None and not expand(output_dir).is_dir():
            raise InputError(f"there is no directory {output_dir}", hint="check the path and the spelling")

        def choose(limit: int | None, sort: str = next(iter(SORTS)), reverse: bool = False) -> list[RunSummary]:
            with open_index() as index:
                index.scan(expand(output_dir or "./output"))
                found: Iterator[RunSummary] = (
                    r for r in index.each() if status in (None, r.status) and matches(r, " ".join(words))
                )
                if sort == next(iter(SORTS)) and not reverse:  # as they come: no more are read than are shown
                    found = itertools.islice(found, limit)
                return arranged(found, sort, backwards=reverse)[:limit]

        return function(choose=choose, **rest)

    for option in (
        click.option("--output", "-o", "output_dir", metavar="DIR", help="also look for runs in this output directory"),
        click.option("--status", metavar="STATUS", help="only runs with this status: " + ", ".join(_STATUSES)),
        click.argument("words", metavar="[WORD]...", nargs=-1),
    ):
        choosing = option(choosing)
    return choosing


@click.command
@chosen_runs
@click.option("--sort", type=click.Choice(list(SORTS)), default=next(iter(SORTS)), show_default=True, help="by what")
@click.option("--reverse", is_flag=True, help="the other way round")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="at most so many")
@json_and_verbose
def list_runs(
    choose: Callable[..., list[RunSummary]], *, sort: str, reverse: bool, limit: int, as_json: bool, verbose: bool
) -> None:
    """List the runs so far, the newest first: those with every WORD in what is shown of them, tags and note too."""
    runs = choose(limit, sort, reverse)
    if as_json:
        output.document([answer(run) for run in runs])
    elif runs:
        _show_table(runs)
    else:
        output.narrate("no run fits; `backprop list-runs` shows all, `backprop demo` makes one")


def answer(run: RunSummary) -> dict[str, Any]:
    """One run as ``list-runs --json`` says it (SPEC section 13)."""
    plain: dict[str, Any] = msgspec.to_builtins(run)
    del plain["losses"]
    return plain


def _show_table(runs: list[RunSummary]) -> None:
    rows = [
        [
            run.run_id,
            run.status + (" !" if run.damage else ""),
            moment(run.started_at),
            " ".join(
                [Path(run.model).name or "unknown", *(each for each in (run.method, run.mode) if each not in _USUAL)]
            ),
            f"{run.steps}/{run.total_steps}" if run.total_steps else str(run.steps),
            "-" if run.final_loss is None else number(run.final_loss),
            duration(run.duration_seconds),
            " ".join([run.name or Path(run.dataset).name, *(f"+{tag}" for tag in run.tags)]),
        ]
        for run in runs
    ]
    output.table(["run", "status", "started", "model", "steps", "loss", "time", "name"], rows, frozenset({4, 5, 6}))
    if any(run.damage for run in runs):
        output.narrate("! something of the run's directory is damaged: `backprop show-run RUN` says what")


@click.command
@click.argument("run")
@json_and_verbose
def show_run(run: str, as_json: bool, verbose: bool) -> None:
    """Show one run: RUN is its id, the beginning of its id, or its directory."""
    path = find_run(run)
    state = read_run(path)
    state.damage += RunDirectory(path).changed_result()
    if as_json:
        output.document(details(state))
    else:
        _show_run(state)


def find_run(run: str) -> Path:
    """The directory of a run, by id, beginning of an id, or path.

    Raises:
        RunError: none or several fit.
    """
    with open_index() as index:
        return index.find_here(run)


@contextlib.contextmanager
def open_index() -> Iterator[RunIndex]:
    """The index over all runs; what is wrong with it is said once."""
    with RunIndex() as index:
        try:
            yield index
        finally:
            if index.trouble:
                _warn(index.trouble)


@functools.cache
def _warn(trouble: str) -> None:
    output.narrate(trouble, "warning")


def find_checkpoint(directory: RunDirectory, step: int | None) -> Checkpoint:
    """The checkpoint of step ``step``, or the newest where none is named; read whole and verified.

    Raises:
        InputError: there is none of that step, or it is broken; those that there are, are named.
        CheckpointError: none is named, and there is none that verifies.
    """
    store = CheckpointStore.of_run(directory)
    return store.require_valid()[0] if step is None else store.require_step(step)


def details(state: RunState) -> dict[str, Any]:
    """One run as ``show-run --json`` says it (SPEC section 13)."""

    def answered(failed: RunFailed | None) -> dict[str, Any] | None:
        names = ("code", "message", "hint", "retryable")
        return None if failed is None else {name: getattr(failed, name) for name in names}

    return {
        **answer(summarise(state)),
        "config": state.config,
        "origins": state.origins,
        "environment": state.environment,
        "loss_history": [None if isnan(loss) else loss for loss in state.curves.loss],
        "checkpoints": msgspec.to_builtins(state.checkpoints),
        "merges": msgspec.to_builtins(state.merges),
        "multi_run": state.multi,
        "runs": msgspec.to_builtins(state.runs),
        "forgetting": {
            "cells": msgspec.to_builtins(state.forgetting.cells),
            **msgspec.to_builtins(state.forgetting.averages()),
        },
        "error": answered(state.failed),
        "refused": answered(state.refused),
        "samples": msgspec.to_builtins(state.samples),
        "evaluations": msgspec.to_builtins(state.evaluations),
        "dataset_prepared": msgspec.to_builtins(state.dataset),
    }


def _show_run(state: RunState) -> None:
    """A run's page: head, what is damaged, what happened, how it ended."""
    name = state.config.get("run_name")
    output.line(output.inline(f"run {state.run_id} ({state.kind}){f' {name}' if name else ''}: {state.status}"), "head")
    output.line(output.inline(f"directory: {state.path}"))
    for what in state.damage:
        output.line(f"damaged: {what}", "warning")
    if silent := state.silence(time.time()):
        output.line(silent, "warning")
    if state.status == "crashed":
        output.line("the engine ended without an end event; the last lines of its engine.log may say why", "error")
    if state.parent:
        output.line(output.inline(f"from run: {state.parent}"))
    if state.tags or state.note:
        output.line(output.inline(" ".join([*(f"+{tag}" for tag in state.tags), state.note]).strip()))
    for setting in ("model", "data"):
        if state.config.get(setting):
            output.line(output.inline(f"{setting}: {state.config[setting]}"))
    for event in state.notable:
        text = describe(event)
        if text and event.type not in ("sample", "run_started", "phase_changed"):
            output.line(text, level(event))
    if state.checkpoints:
        size = sum(checkpoint.bytes for checkpoint in state.checkpoints)
        output.line(f"{len(state.checkpoints)} checkpoints, {bytes_text(size)}")
    views.show_ending(state)
