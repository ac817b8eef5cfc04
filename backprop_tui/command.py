"""The words after ``backprop-tui``: what they mean, and the run they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from backprop.cli.options import run_config, setting_options

from backprop_tui.show import show

if TYPE_CHECKING:
    from backprop.core.settings import RunConfig


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("what", required=False, type=click.Choice(["train", "demo"]))
@click.option("--attach", metavar="RUN", help="watch this run: its id, or the beginning of it")
@click.option("--no-tui", is_flag=True, help="the same work as plain lines (`backprop` has more commands)")
@click.option("--json", "as_json", is_flag=True, help="with --no-tui: events as JSON lines")
@click.option("--config", "file", metavar="FILE", help="settings from a JSON or TOML file; flags win over it")
@setting_options()
def command(what: str | None, attach: str | None, file: str | None, no_tui: bool, as_json: bool, **given: Any) -> int:
    """Fine-tune language models in the terminal.

    Without options: the runs that are there. `backprop-tui demo` runs the demonstration, `--data FILE` starts a run
    with the options of `backprop train`, `--attach RUN` watches one.
    """
    run, config = None, None
    if attach is not None:
        run = find(attach)
    elif what == "demo":
        config = demo(given)
    elif what == "train" or file is not None or any(value not in (None, ()) for value in given.values()):
        config = run_config(given, file)
    return show(config, run)


def find(prefix: str) -> Path:
    """The directory of the run to attach to.

    Raises:
        RunError: none or several fit.
    """
    from backprop.runs.index import RunIndex

    with RunIndex() as index:
        index.scan(Path("output"))
        return index.find(prefix)


def demo(given: dict[str, Any]) -> RunConfig:
    from backprop.demo import demo_config

    return demo_config(given["output_dir"]) if given.get("output_dir") else demo_config()
