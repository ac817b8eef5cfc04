"""``backprop queue``: runs that are trained one after another; the queue stays when everybody leaves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from backprop.cli import options, output
from backprop.cli.complete import run_ids
from backprop.cli.main import CommandGroup
from backprop.cli.options import json_and_verbose
from backprop.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PARTIAL, EXIT_RUNTIME, EngineCrashedError, InputError
from backprop.core.extras import TRAINING, require_modules
from backprop.core.multi_run import KIND
from backprop.core.settings import RunConfig
from backprop.runs.queue import FAILURES, AfterFailure, Entry, Queue, Standing

_LOOK = 1.0
"""Seconds between two looks at what is trained next."""


@click.group(cls=CommandGroup)
def queue() -> None:
    """Runs that are trained one after another, each once, whoever leaves or is killed.

    A process in the background starts them; it waits while the card is hot or taken, or another run is trained.
    """


@queue.command(cls=options.SettingCommand)
@options.setting_options()
@options.configuration_options
@click.option(
    "--from", "parent", metavar="RUN", shell_complete=run_ids(), help="with the settings of this run, or of an entry"
)
@json_and_verbose
def add(file: str | None, parent: str | None, as_json: bool, verbose: bool, **given: Any) -> None:
    """Queue a run, with the flags of `backprop train`.

    Example: backprop queue add --data rows.jsonl --model smollm2-135m --steps 100
    """
    if parent and (file or given.pop("preset")):
        raise InputError("--from takes every setting from a run", hint="leave --config and --preset away")
    planned = options.forked_config(_settings_of(parent), parent, given) if parent else options.run_config(given, file)
    waiting = Queue()
    entry = waiting.add(planned.config, planned.origins)
    now = waiting.ensure_runner()
    place = 1 + next((n for n, each in enumerate(now.waiting) if each.run_id == entry.run_id), 0)
    if as_json:
        output.document(_plain(entry))
    else:
        output.line(f"run {entry.run_id} is queued: number {place}")
        _say_state(now)


def _settings_of(run: str) -> RunConfig:
    from backprop.cli.runs import find_run, open_index
    from backprop.runs.directory import RunDirectory

    queued = {entry.run_id: entry for entry in Queue().read().entries if entry.run_id.startswith(run)}
    if queued:
        with open_index() as index:
            fitting = {*queued, *(each.run_id for each in index.each() if each.run_id.startswith(run))}
        if len(fitting) > 1 and run not in fitting:
            hint = "give more of the run id"
            raise InputError(f"{run!r} fits {len(fitting)} runs: {', '.join(sorted(fitting)[:5])}", hint=hint)
        if len(fitting) == 1 or run in queued:
            return queued[run if run in queued else fitting.pop()].config
    record = RunDirectory(find_run(run)).find_record()
    if record.kind == KIND:
        hint = "the queue trains single runs; `backprop multi-run` trains a session"
        raise InputError(f"{record.run_id} is a session of several runs", hint=hint)
    return record.config


@queue.command(name="list")
@json_and_verbose
def list_entries(as_json: bool, verbose: bool) -> None:
    """What is trained, what waits in which order, and how the others ended."""
    now = Queue().read()
    if as_json:
        facts = {name: getattr(now, name) for name in ("stopped", "runner", "unreadable")}
        entries = [_plain(entry) for entry in now.entries]
        output.document({"after_failure": now.rules.after_failure, **facts, "entries": entries})
        return
    places = {entry.run_id: str(number) for number, entry in enumerate(now.waiting, 1)}
    rows = [
        [places.get(entry.run_id, ""), entry.status, entry.run_id, *_words(entry.config), entry.length, entry.message]
        for entry in now.entries
    ]
    if rows:
        output.table(["", "status", "run", "model", "data", "length", ""], rows)
    else:
        output.narrate("the queue is empty; `backprop queue add` takes the flags of `backprop train`")
    _say_state(now)


def _plain(entry: Entry) -> dict[str, Any]:
    return {**msgspec.to_builtins(entry), "path": str(entry.directory)}


def _words(config: RunConfig) -> list[str]:
    return [Path(config.model).name, config.run_name or Path(config.data).name]


def _say_state(now: Standing) -> None:
    """Why nothing is begun, where that is so; on standard error."""
    for each in now.unreadable:
        output.narrate(f"not read: {each}", "warning")
    if now.stopped and now.waiting:
        output.narrate(f"nothing more is begun: {now.stopped}; `backprop queue run` goes on", "warning")
    elif now.runner:
        output.narrate(f"the next one waits: {now.runner}")
    elif now.runner is None and not now.idle:
        output.narrate("nobody works on it; `backprop queue run` does")


@queue.command
@click.argument("entry")
@click.argument("place", type=click.IntRange(1))
@json_and_verbose
def move(entry: str, place: int, as_json: bool, verbose: bool) -> None:
    """Make ENTRY the PLACEth of those that wait: 1 is begun next."""
    waiting = Queue()
    run_id = waiting.find(entry).run_id
    waiting.move(run_id, place)
    order = [each.run_id for each in waiting.read().waiting]
    output.answer({"order": order}, as_json, lambda found: output.line(" ".join(found["order"])))


@queue.command(name="rm")
@click.argument("entries", metavar="ENTRY...", nargs=-1, required=True)
@json_and_verbose
def remove(entries: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """Take entries out of the queue. The directory of a run that was begun stays."""
    waiting = Queue()
    gone = [waiting.find(entry).run_id for entry in entries]
    for run_id in gone:
        waiting.remove(run_id)
    output.answer({"removed": gone}, as_json, lambda found: output.line(f"removed {' '.join(found['removed'])}"))


@queue.command
@click.option(
    "--after-failure", type=click.Choice(get_args(AfterFailure)), help="what the queue does from now on, also later"
)
@json_and_verbose
def run(after_failure: AfterFailure | None, as_json: bool, verbose: bool) -> int:
    """Go on with the queue, and show its runs as `backprop train` does until it is empty.

    Ctrl+C leaves: the runs go on in the background.
    """
    require_modules("training", "train", *TRAINING)
    waiting = Queue()
    before = {entry.run_id for entry in waiting.read().over}
    waiting.rule(resumed=time.time(), **({"after_failure": after_failure} if after_failure else {}))
    said, shown = "", set[str]()
    while not (now := waiting.ensure_runner()).idle:
        for entry in now.running:
            if entry.run_id not in shown and entry.directory.is_dir():
                shown.add(entry.run_id)
                output.narrate(f"run {entry.run_id} of the queue; {len(now.waiting)} wait")
                if not _show(entry, as_json, verbose):
                    return EXIT_INTERRUPTED
        if now.runner and now.runner != said:
            output.narrate(f"waiting: {now.runner}")
        said = now.runner or ""
        time.sleep(_LOOK)
    _say_state(now)
    ended = [entry for entry in now.over if entry.run_id not in before]
    failed = [entry for entry in ended if entry.status in FAILURES]
    output.narrate(f"runs ended: {len(ended)}" + "".join(f"; {each.run_id} {each.status}" for each in failed))
    return EXIT_OK if not failed else EXIT_RUNTIME if len(failed) == len(ended) else EXIT_PARTIAL


def _show(entry: Entry, as_json: bool, verbose: bool) -> bool:
    """Show a run to its end; whether it came to one, rather than the person leaving."""
    from backprop.cli.follow import follow
    from backprop.runs import engine_client

    engine = engine_client.attach(entry.directory)
    try:
        follow(engine, as_json, verbose, leave=True)
    except EngineCrashedError as error:
        output.narrate(f"error [{error.code}] {error.message}", "error")
    return not engine.alive()
