"""``backprop multi-run`` and ``rewind``: several runs in sequence, merged into one adapter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec

from backprop.cli import options, output
from backprop.cli.complete import run_ids
from backprop.cli.options import json_and_verbose
from backprop.core.definition import multi_settings, settings
from backprop.core.errors import EXIT_OK
from backprop.core.multi_run import KIND, advice, require_mergeable, runs_of
from backprop.core.settings import MultiConfig, RunConfig


@click.command(cls=options.SettingCommand)
@options.setting_options(*multi_settings(), *(name for name in settings() if name != "data"))
@options.configuration_options
@click.option("--resume", "resumed", metavar="RUN", shell_complete=run_ids(), help="continue this session exactly")
@click.option("--dry-run", is_flag=True, help="show the configuration, each run's rows and the command, start nothing")
@json_and_verbose
def multi_run(file: str | None, resumed: str | None, dry_run: bool, as_json: bool, verbose: bool, **given: Any) -> int:
    """Learn several datasets one after another, or parts of one, and merge the runs into one adapter (SLAO).

    What is forgotten on the way is measured on rows that no run trains. Steps, samples and epochs are those of each
    run. A session that is not finished in the same --output is continued.

    Example: backprop multi-run --data letters.jsonl --data sums.jsonl --steps 100 --replay 0.125
    """
    from backprop.cli import follow
    from backprop.cli.train import continue_run, require_alone
    from backprop.runs import engine_client
    from backprop.runs.sessions import unfinished

    if resumed:
        hint = "a session with other settings is a new one, in another --output"
        require_alone({**given, "config": file, "dry-run": dry_run or None}, hint)
        return continue_run(resumed, given["model"], as_json, verbose)
    config, multi, origins = session_config(given, file)
    for line in advice(multi):
        output.narrate(line, "warning")
    found = unfinished(config, multi)
    if dry_run:
        values = {"config": msgspec.to_builtins(config), "multi_run": msgspec.to_builtins(multi), "origins": origins}
        plan = {**values, "command": options.command_line(config, multi), **_rows(config, multi)}
        output.answer({**plan, "continues": found.name if found else ""}, as_json, _show_plan)
        return EXIT_OK
    if found is not None:
        output.narrate(f"going on with session {found.name}, which is not finished")
        return follow.follow(engine_client.resume(found), as_json=as_json, verbose=verbose)
    return follow.run(config, KIND, as_json, verbose, origins=origins, multi=multi)


def _rows(config: RunConfig, multi: MultiConfig) -> dict[str, Any]:
    """The rows of each run, dealt out as the session does it; why not, where a dataset is not on this machine yet."""
    from backprop.core.datasets import find_fetched, is_hub_name
    from backprop.data.slices import write

    files = []
    for each in multi.tasks:
        fetched = find_fetched(each) if is_hub_name(each) else None
        if is_hub_name(each) and fetched is None:
            return {"runs": None, "why": f"{each} is not on this machine yet"}
        files.append(fetched.path if fetched else each)
    with tempfile.TemporaryDirectory() as folder:
        found = write(Path(folder) / "data", files, runs_of(multi), config, replay=multi.replay, look=lambda: False)
    return {"runs": msgspec.to_builtins(found.runs), "why": ""}


def _show_plan(plan: dict[str, Any]) -> None:
    options.show_settings({**plan["multi_run"], **plan["config"]}, plan["origins"])
    if plan["runs"] is None:
        output.line(f"the rows were not counted: {plan['why']}")
    for index, part in enumerate(plan["runs"] or [], 1):
        earlier = f", {part['replayed']:,} of them of earlier runs" if part["replayed"] else ""
        held_out = f"{part['held_out_rows']:,} held out"
        output.line(f"run {index:<5} {part['rows']:,} rows{earlier}; {held_out}; of {part['data']}")
    if plan["continues"]:
        output.line(f"goes on with session {plan['continues']}, which is not finished")
    output.line()
    output.line(plan["command"])


def session_config(given: dict[str, Any], file: str | None) -> tuple[RunConfig, MultiConfig, dict[str, str]]:
    """The configuration of a session from every source, its paths absolute, and where its values come from.

    Raises:
        InputError, InvalidSettingError, DatasetNotFoundError: as ``options.run_config``; and what cannot be merged.
    """
    from backprop.core.locate import locate
    from backprop.core.resolve import resolve
    from backprop.data.startable import require_rows

    multi = resolve(given, file=file).multi()
    config, origins = options.run_config({**given, "data": multi.tasks[0] if multi.tasks else None}, file)
    named = [msgspec.structs.replace(config, data=each) for each in multi.tasks]
    multi.tasks = [require_rows(locate(each)).data for each in named] or [config.data]
    require_mergeable(config, multi)
    return config, multi, origins


@click.command
@click.argument("run", shell_complete=run_ids())
@click.option(
    "--to", "index", required=True, type=click.IntRange(0), metavar="I", help="the run to stand after; 0: none"
)
@json_and_verbose
def rewind(run: str, index: int, as_json: bool, verbose: bool) -> int:
    """Take a session back to where it stood after run I, bit for bit; `backprop resume` goes on from there.

    What was merged since is undone. The runs stay in its directory, and are taken anew.
    """
    from backprop.cli import follow
    from backprop.cli.runs import find_run
    from backprop.runs import engine_client

    return follow.follow(engine_client.rewind(find_run(run), index), as_json=as_json, verbose=verbose)
