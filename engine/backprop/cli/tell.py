"""``backprop tell``: what the keys of the Live screen ask of a run that is going on, wherever it was started."""

from __future__ import annotations

import click

from backprop.cli import output
from backprop.cli.complete import run_ids
from backprop.cli.options import json_and_verbose
from backprop.cli.runs import find_run
from backprop.core import events as ev
from backprop.core.errors import InputError
from backprop.runs import engine_client
from backprop.runs.sessions import session_of

WORDS: dict[str, ev.Command] = {
    "pause": ev.Pause(),
    "go-on": ev.Resume(),
    "checkpoint": ev.CheckpointNow(),
    "sample": ev.SampleNow(),
    "stop": ev.Stop(),
    "abort": ev.Abort(),
}


@click.command
@click.argument("run", shell_complete=run_ids())
@click.argument("what", type=click.Choice(list(WORDS)))
@json_and_verbose
def tell(run: str, what: str, as_json: bool, verbose: bool) -> None:
    """Ask a living run to pause or go on, to save or to answer its prompts now, to stop after the step, or to abort.

    What came of it is among its events: `backprop-tui --no-tui --attach RUN` shows them. Stop saves, abort does not.
    """
    path = find_run(run)
    engine = engine_client.attach(session_of(path) or path)
    if what == "sample" and not engine.directory.read_record().config.sample_prompts:
        raise InputError("this run has no sample prompts", hint="--sample-prompt gives them when a run is begun")
    engine.send(WORDS[what])
    output.answer({"run_id": engine.run_id, "asked": what}, as_json, lambda _: output.line(f"asked: {what}"))
