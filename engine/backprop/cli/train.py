"""``backprop train``: one run, from flags or a settings file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import msgspec

from backprop.cli import options, output
from backprop.cli.shared_options import json_and_verbose
from backprop.core.presets import default_model
from backprop.core.settings import RunConfig


def setting_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the flags of the named settings, of all where none is named."""
    chosen = [options.flags()[name] for name in names] if names else list(options.flags().values())

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for flag in reversed(chosen):
            function = _option(flag)(function)
        return function

    return decorate


def _option(flag: options.Flag) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    # Which model is taken when none is named depends on the machine.
    open_ended = flag.default in (None, [], {}) or flag.setting == "model"
    shown = "" if open_ended else f"  [default: {flag.default}]"
    if flag.kind == "switch":
        parts = [*(flag.names if flag.on else ()), *([flag.off] if flag.off else ())]
        if flag.on:
            return click.option("/".join(parts), flag.setting, is_flag=True, default=None, help=flag.help)
        return click.option(
            flag.off, flag.setting, flag_value=False, default=None, type=bool, help=f"turn off: {flag.help}"
        )
    return click.option(
        *flag.names,
        flag.setting,
        metavar=flag.metavar,
        multiple=flag.kind in ("repeated", "pairs"),
        help=flag.help + shown,
    )


def choose_model(config: RunConfig, named: bool) -> RunConfig:
    """The model to take when none was named: the default one on a GPU, the embedded one elsewhere; says which."""
    if named:
        return config
    from backprop.hardware.devices import info

    model, why = default_model(config.backend, gpu=info().gpu_problem is None)
    output.narrate(f"no model was named: taking {model} ({why}); --model names another")
    return msgspec.structs.replace(config, model=model)


@click.command
@setting_options()
@click.option("--config", "file", metavar="FILE", help="settings from a JSON or TOML file; flags win over it")
@click.option("--resume", "resumed", metavar="RUN", help="continue this run exactly; no other flag is needed")
@click.option("--dry-run", is_flag=True, help="show the configuration and its command line, start nothing")
@json_and_verbose
def train(file: str | None, resumed: str | None, dry_run: bool, as_json: bool, verbose: bool, **given: Any) -> int:
    """Train a model on a dataset.

    Example: backprop train --data rows.jsonl --model smollm2-135m --steps 100
    """
    if resumed:
        return continue_run(resumed, as_json, verbose)
    values = options.gather(given, file)
    config = choose_model(options.configure(values), named="model" in values)
    if dry_run:
        return show_plan(config, as_json)
    from backprop.cli import follow

    return follow.run(config, "train", as_json, verbose)


def continue_run(run: str, as_json: bool, verbose: bool) -> int:
    """Continue ``run`` (an id, or its beginning) exactly, and follow it to its end."""
    from backprop.cli import follow
    from backprop.cli.runs import find_run
    from backprop.runs import engine_client

    return follow.follow(engine_client.resume(find_run(run)), as_json=as_json, verbose=verbose)


def show_plan(config: RunConfig, as_json: bool) -> int:
    """The answer of ``--dry-run``."""
    values = msgspec.to_builtins(config)
    command = options.command_line(config)
    if as_json:
        output.document({"config": values, "command": command})
        return 0
    for name, value in values.items():
        output.line(f"{name:<24} {'open' if value is None else value}")
    output.line()
    output.line(command)
    return 0
