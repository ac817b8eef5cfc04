"""``backprop-tui --no-tui``: the same work as plain lines, by the same code as ``backprop``."""

from __future__ import annotations

from pathlib import Path

import click
from backprop.cli import main as cli
from backprop.cli.options import json_and_verbose
from backprop.cli.runs import find_run


def run(arguments: list[str]) -> int:
    """Do what the application would be asked to do by these arguments; the exit code.

    ``--attach RUN`` watches a run, ``demo`` or any other command of ``backprop`` is that command, nothing at all is the
    list of the runs, and settings alone are a training run.
    """
    if any(word == "--attach" or word.startswith("--attach=") for word in arguments):
        return cli.main(arguments, command=attach)
    words = [word for word in arguments if not word.startswith("-")]
    if words and words[0] == arguments[0] and words[0] in cli.COMMANDS:
        return cli.main(arguments)
    if set(arguments) <= {"--json", "--verbose", "-v"}:
        return cli.main(["list-runs", *arguments])
    if set(arguments) & {"--help", "-h", "--version"}:
        return cli.main(arguments)
    return cli.main(["train", *arguments])


@click.command
@click.option("--attach", "prefix", required=True, metavar="RUN", help="the run to watch")
@json_and_verbose
def attach(prefix: str, as_json: bool, verbose: bool) -> int:
    """Watch a run that is going on, from its first event; Ctrl+C leaves it running."""
    from backprop.cli.follow import follow
    from backprop.runs import engine_client

    path: Path = find_run(prefix)
    return follow(engine_client.attach(path), as_json=as_json, verbose=verbose, leave=True)
