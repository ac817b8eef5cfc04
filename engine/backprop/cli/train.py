"""``backprop train``, ``demo``, ``resume``, ``extend`` and ``fork``: the ways to start a run, and to go on with one."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from backprop.cli import options, output
from backprop.cli.complete import run_ids
from backprop.cli.options import json_and_verbose
from backprop.core.definition import settings
from backprop.core.errors import EXIT_OK
from backprop.demo import demo_config


@click.command(cls=options.SettingCommand)
@options.setting_options()
@options.configuration_options
@click.option(
    "--resume",
    "resumed",
    metavar="RUN",
    shell_complete=run_ids(),
    help="continue this run exactly; no other flag is needed",
)
@click.option("--dry-run", is_flag=True, help="show the configuration and its command line, start nothing")
@json_and_verbose
def train(file: str | None, resumed: str | None, dry_run: bool, as_json: bool, verbose: bool, **given: Any) -> int:
    """Train a model on a dataset.

    Example: backprop train --data rows.jsonl --model smollm2-135m --steps 100
    """
    if resumed:
        return continue_run(resumed, as_json, verbose)
    config, origins = options.run_config(given, file)
    if dry_run:
        plan = {"config": msgspec.to_builtins(config), "origins": origins, "command": options.command_line(config)}
        output.answer(plan, as_json, _show_plan)
        return EXIT_OK
    from backprop.cli import follow  # a quarter of what `train --help` costs, if it were imported above

    return follow.run(config, "train", as_json, verbose, origins=origins)


def continue_run(run: str, as_json: bool, verbose: bool) -> int:
    """Continue ``run`` (an id, or its beginning) exactly, and follow it to its end."""
    from backprop.cli import follow
    from backprop.cli.runs import find_run
    from backprop.runs import engine_client

    return follow.follow(engine_client.resume(find_run(run)), as_json=as_json, verbose=verbose)


def _show_plan(plan: dict[str, Any]) -> None:
    for name, value in plan["config"].items():
        setting = settings()[name]
        origin = plan["origins"].get(name) or (f"default, by rule: {setting.rule}" if setting.rule else "default")
        output.line(f"{name:<24} {options.shown_value(value):<24}  {origin}".rstrip())
    output.line()
    output.line(plan["command"])


@click.command
@options.setting_options("output_dir")
@json_and_verbose
def demo(output_dir: str | None, as_json: bool, verbose: bool) -> int:
    """Teach the small model to answer like an old sea captain, and see the difference.

    A minute or two on two CPU cores. The model is fetched once; from then on nothing needs a network.
    """
    from backprop.cli import follow

    config = demo_config(*([output_dir] if output_dir else []))
    return follow.run(config, "demo", as_json, verbose)


@click.command
@click.argument("run", shell_complete=run_ids())
@json_and_verbose
def resume(run: str, as_json: bool, verbose: bool) -> int:
    """Continue a stopped, interrupted or crashed run exactly, under the same run id.

    Every loss is what it would have been without the stop. Another model, dataset or setting is refused, with the
    list of differences.
    """
    return continue_run(run, as_json, verbose)


@click.command
@click.argument("run", shell_complete=run_ids())
@click.option("--steps", required=True, type=click.IntRange(1), metavar="N", help="the new end")
@json_and_verbose
def extend(run: str, steps: int, as_json: bool, verbose: bool) -> int:
    """Continue a run to a new end, under the same run id. The learning-rate curve is computed anew."""
    from backprop.cli import follow
    from backprop.cli.runs import find_run
    from backprop.runs import engine_client

    return follow.follow(engine_client.extend(find_run(run), steps), as_json=as_json, verbose=verbose)


@click.command(cls=options.SettingCommand)
@click.argument("run", shell_complete=run_ids())
@click.option("--step", type=click.IntRange(0), metavar="N", help="the checkpoint to start from; open: the newest")
@options.setting_options()
@json_and_verbose
def fork(run: str, step: int | None, as_json: bool, verbose: bool, **given: Any) -> int:
    """Start a new run from the weights of another one's checkpoint, with a fresh optimizer and schedule.

    Settings are those of RUN where no flag says otherwise.
    """
    from backprop.cli import follow
    from backprop.cli.runs import find_checkpoint, find_run
    from backprop.runs.directory import RunDirectory

    directory = RunDirectory(find_run(run))
    checkpoint = find_checkpoint(directory, step)
    config, origins = options.forked_config(directory.find_record().config, directory.run_id, given)
    return follow.run(config, "train", as_json, verbose, forked_from=str(checkpoint.path), origins=origins)
