"""``backprop push``: upload a model to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from backprop.cli import output
from backprop.cli.complete import run_ids
from backprop.cli.options import json_and_verbose
from backprop.cli.runs import find_run
from backprop.core.jobs import Pushed, PushRequest
from backprop.runs import shipping
from backprop.runs.describe import bytes_text


@click.command
@click.argument("path", metavar="PATH-or-RUN", shell_complete=run_ids())
@click.option("--repo", required=True, metavar="OWNER/NAME", help="the repository; made where there is none")
@click.option("--public", is_flag=True, help="everybody may see it; open: only you")
@json_and_verbose
def push(path: str, repo: str, public: bool, as_json: bool, verbose: bool) -> None:
    """Upload a run's adapter, a folder with an adapter or a model, or a GGUF file, with a card made from the run.

    The token is that of HF_TOKEN or of `hf auth login`.

    Example: backprop push 3fa2 --repo me/captain
    """
    place = Path(path).expanduser()
    source = place.absolute() if place.exists() else find_run(path)
    request = PushRequest(path=str(source), repo=repo, public=public)
    done = shipping.push(request, lambda message: output.narrate(message.doing))
    output.answer(done, as_json, _show)


def _show(done: Pushed) -> None:
    output.line(f"{done.url}  {len(done.files)} files, {bytes_text(done.bytes)}, commit {done.commit[:8]}", "head")
    seen = "private" if done.private else "public"
    output.line(f"{seen}; {'it existed before' if done.existed else 'made now'}")
    for note in done.notes:
        output.line(f"note: {note}", "warning")
