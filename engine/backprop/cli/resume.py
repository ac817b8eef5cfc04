"""``backprop resume``, ``extend`` and ``fork``: three ways to go on, told apart by what stays the same."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from backprop.cli import follow, options
from backprop.cli.runs import find_checkpoint, find_run
from backprop.cli.shared_options import json_and_verbose
from backprop.cli.train import continue_run, setting_options
from backprop.runs import engine_client
from backprop.runs.directory import RunDirectory


@click.command
@click.argument("run")
@json_and_verbose
def resume(run: str, as_json: bool, verbose: bool) -> int:
    """Continue a stopped, interrupted or crashed run exactly, under the same run id.

    Every loss is what it would have been without the stop. Another model, dataset or setting is refused, with the
    list of differences.
    """
    return continue_run(run, as_json, verbose)


@click.command
@click.argument("run")
@click.option("--steps", required=True, type=click.IntRange(1), metavar="N", help="the new end")
@json_and_verbose
def extend(run: str, steps: int, as_json: bool, verbose: bool) -> int:
    """Continue a run to a new end, under the same run id. The learning-rate curve is computed anew."""
    return follow.follow(engine_client.extend(find_run(run), steps), as_json=as_json, verbose=verbose)


@click.command
@click.argument("run")
@click.option("--step", type=click.IntRange(0), metavar="N", help="the checkpoint to start from; open: the newest")
@setting_options()
@json_and_verbose
def fork(run: str, step: int | None, as_json: bool, verbose: bool, **given: Any) -> int:
    """Start a new run from the weights of another one's checkpoint, with a fresh optimizer and schedule.

    Settings are those of RUN where no flag says otherwise.
    """
    directory = RunDirectory(find_run(run))
    checkpoint = find_checkpoint(directory, step)
    values = {**msgspec.to_builtins(directory.read_record().config), **options.gather(given)}
    if "steps" in options.gather(given):
        values["epochs"] = None
    config = options.configure(values)
    return follow.run(config, "train", as_json, verbose, forked_from=str(checkpoint.path))
