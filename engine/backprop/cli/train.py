"""``backprop train``, ``demo``, ``resume``, ``extend``, ``fork``, ``replay``: how a run starts, and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from backprop.cli import options, output
from backprop.cli.complete import run_ids
from backprop.cli.options import json_and_verbose
from backprop.core.definition import all_settings
from backprop.core.errors import EXIT_OK, EXIT_PARTIAL, InputError, ModelLoadError
from backprop.core.jobs import RunPlan
from backprop.core.locate import locate_model
from backprop.core.presets import terms_of
from backprop.core.settings import RunConfig
from backprop.demo import SHIPPED, demo_config


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
        require_alone({**given, "config": file, "dry-run": dry_run or None})
        return continue_run(resumed, given["model"], as_json, verbose)
    config, origins = options.run_config(given, file)
    if dry_run:
        plan = {"config": msgspec.to_builtins(config), "origins": origins, "command": options.command_line(config)}
        plan |= _preflight(config)
        counted = msgspec.convert(plan["plan"]["config"], RunConfig) if plan["plan"] else config
        plan |= {"duration": _duration(config.model, plan["plan"]), "memory": _memory(counted)}
        plan["terms"] = terms_of(config.model)
        output.answer(plan, as_json, _show_plan)
        return EXIT_OK
    from backprop.cli import follow  # a quarter of what `train --help` costs, if it were imported above

    return follow.run(config, "train", as_json, verbose, origins=origins)


_moved = click.option("--model", "-m", metavar="M", help="where the same model is now, if it was moved")


_OTHERWISE = "`backprop extend RUN --steps N` gives it a new end, `backprop fork RUN` other settings in a new run"


def require_alone(given: dict[str, Any], hint: str = _OTHERWISE) -> None:
    """Refuse flags beside ``--resume``, but for where the model is now: a run goes on with its own settings.

    Args:
        hint: how else to come by them.

    Raises:
        InputError: some are given.
    """
    known = all_settings()
    others = [name for name, value in given.items() if name != "model" and value not in (None, (), [])]
    if others:
        flags = ", ".join(known[name].flag if name in known else f"--{name}" for name in others)
        raise InputError(
            f"{flags}: without effect, for a resumed run goes on with its own settings",
            hint=hint,
        )


def continue_run(run: str, model: str | None, as_json: bool, verbose: bool) -> int:
    """Continue ``run`` (an id, or its beginning) exactly, and follow it to its end."""
    from backprop.cli import follow
    from backprop.cli.runs import find_run
    from backprop.runs import engine_client

    engine = engine_client.resume(find_run(run), locate_model(model) if model else "")
    return follow.follow(engine, as_json=as_json, verbose=verbose)


def _show_plan(plan: dict[str, Any]) -> None:
    from backprop.cli.estimate import gib
    from backprop.cli.views import dataset_lines

    found = msgspec.convert(plan["plan"], RunPlan | None)
    values, origins = plan["config"], plan["origins"]
    if found is not None:
        values, origins = found.config, {**origins, **found.origins}
    options.show_settings(values, origins)
    if found is None:
        output.line(f"the rows were not counted: {plan['why']}")
    else:
        first, *others = dataset_lines(msgspec.structs.replace(found.data, notes=[]))
        output.line(f"data      {first}")
        for words in others:
            output.line(f"found     {words}")
        output.line(f"rows      {found.rows:,} trained, {found.held_out:,} held out")
        epochs = found.steps / max(1, found.steps_per_epoch)
        output.line(
            f"steps     {found.steps:,} of {found.rows_per_step} rows ({epochs:.3g} epochs), "
            f"{found.warmup_steps} of them warm-up"
        )
        if takes := plan["duration"]:
            output.line(f"takes     {takes['words']}")
        for note in found.notes:
            output.line(f"note      {note}")
    if plan["terms"]:
        output.line(f"licence   {plan['terms']}")
    if memory := plan["memory"]:
        fits = "" if memory["fits"] else "; it does not fit: `backprop estimate-vram` says what would save memory"
        output.line(f"memory    {gib(memory['bytes'])} needed, {gib(memory['limit'])} {memory['source']}{fits}")
    output.line()
    output.line(plan["command"])


def _preflight(config: RunConfig) -> dict[str, Any]:
    """What an engine says that the run would be; why not, where tokenizer or rows are not on this machine yet."""
    from backprop.cli.data_options import ProgressLine
    from backprop.core.datasets import find_fetched, is_hub_name
    from backprop.core.models import find_tokenizer
    from backprop.hardware.fit import require_size
    from backprop.runs.engine_jobs import ask_engine

    require_size(config)
    try:
        find_tokenizer(config.model)
    except ModelLoadError as error:
        return {"plan": None, "why": error.message}
    if is_hub_name(config.data) and find_fetched(config.data) is None:
        return {"plan": None, "why": f"{config.data} is not on this machine yet"}
    with ProgressLine("counting", in_bytes=False) as progress:
        found = ask_engine("backprop.train.jobs.preflight", config, RunPlan, progress.report)
    return {"plan": msgspec.to_builtins(found), "why": ""}


def _duration(model: str, plan: dict[str, Any] | None) -> dict[str, Any] | None:
    """How long the run would take, as fast as this machine trained the model before; ``None`` where it never did."""
    from backprop.runs.pace import pace

    known = pace(model) if plan is not None else None
    if plan is None or known is None:
        return None
    words = f"{known.takes(plan['tokens'])}, {known.source}"
    return {"seconds": plan["tokens"] / known.tokens_per_second, "run_id": known.run_id, "words": words}


def _memory(config: RunConfig) -> dict[str, Any] | None:
    """What the run needs of this machine's card; ``None`` where it would not use one, or the model is not known yet."""
    from backprop.cli.estimate import card_memory, find_answer

    memory = card_memory() if config.backend != "cpu" else None
    if memory is None or memory.bytes is None:
        return None
    try:
        answer = find_answer(config.model, config, memory)
    except ModelLoadError:
        return None
    needed = answer["parts"].total
    return {"bytes": needed, "limit": memory.bytes, "source": memory.source, "fits": needed <= memory.bytes}


@click.command
@options.setting_options("output_dir")
@json_and_verbose
def demo(output_dir: str | None, as_json: bool, verbose: bool) -> int:
    """Teach the small model to answer like an old sea captain, see the difference, and export it as a GGUF file.

    A minute or two on two CPU cores. The model is fetched once; from then on nothing needs a network.
    """
    from backprop.cli import follow

    config = demo_config(*([output_dir] if output_dir else []))
    return follow.run(config, "demo", as_json, verbose, then=_ship)


def _ship(run: Path, as_json: bool) -> int:
    """The demonstration's last part: its run as a GGUF file. With ``--json`` the run's events stay alone on stdout."""
    from backprop.cli.export import is_lost, run_export, show_export
    from backprop.core.jobs import ExportRequest

    output.narrate("exporting the result as one GGUF file")
    done = run_export(ExportRequest(source=str(run), format="gguf", precision=SHIPPED))
    show_export(done, output.narrate if as_json else output.line)
    return EXIT_PARTIAL if is_lost(done) else EXIT_OK


@click.command
@click.argument("run", shell_complete=run_ids())
@_moved
@json_and_verbose
def resume(run: str, model: str | None, as_json: bool, verbose: bool) -> int:
    """Continue a stopped, interrupted or crashed run exactly, under the same run id.

    Every loss is what it would have been without the stop. Another model, dataset or setting is refused, with the
    list of differences.
    """
    return continue_run(run, model, as_json, verbose)


@click.command
@click.argument("run", shell_complete=run_ids())
@_moved
@click.option("--steps", required=True, type=click.IntRange(1), metavar="N", help="the new end")
@json_and_verbose
def extend(run: str, model: str | None, steps: int, as_json: bool, verbose: bool) -> int:
    """Continue a run to a new end, under the same run id. The learning-rate curve is computed anew."""
    from backprop.cli import follow
    from backprop.cli.runs import find_run
    from backprop.runs import engine_client

    engine = engine_client.extend(find_run(run), steps, locate_model(model) if model else "")
    return follow.follow(engine, as_json=as_json, verbose=verbose)


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


@click.command(cls=options.SettingCommand)
@click.argument("run", shell_complete=run_ids())
@options.setting_options()
@json_and_verbose
def replay(run: str, as_json: bool, verbose: bool, **given: Any) -> int:
    """Repeat a run: the same settings and data as a new run, whose curve is compared with the first one's at the end.

    What no flag names must be as it was: another base model or other rows are refused, with the list; other versions
    are warned about.
    """
    from backprop.cli import follow
    from backprop.cli.data_options import ProgressLine
    from backprop.cli.runs import find_run
    from backprop.runs.directory import RunDirectory
    from backprop.runs.engine_jobs import require_repeatable
    from backprop.runs.state import read_run

    state = read_run(find_run(run))
    (config, origins), replays = options.replayed_config(state, given)
    forked_from = RunDirectory(Path(state.path)).find_record().forked_from
    with ProgressLine("comparing with the run", in_bytes=False) as line:
        require_repeatable(config, replays, forked_from, line.report)
    return follow.run(config, "replay", as_json, verbose, forked_from=forked_from, origins=origins, replays=replays)
