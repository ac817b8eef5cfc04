"""``backprop push``: upload a model to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from backprop.cli import output
from backprop.cli.complete import run_ids
from backprop.cli.options import json_and_verbose
from backprop.cli.runs import find_run
from backprop.core.jobs import JobProgress, Message, Pushed, PushRequest
from backprop.runs.describe import bytes_text
from backprop.runs.engine_jobs import PUSH, ask_engine


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

    def report(message: Message) -> None:
        if isinstance(message, JobProgress):
            output.narrate(message.doing)

    done = ask_engine(PUSH, request, Pushed, report)
    output.answer(done, as_json, show_pushed)


def show_pushed(done: Pushed, say: Callable[[str, str], None] = output.line) -> None:
    """What the hub has now, and what has to be said of it."""
    say(f"{done.url}  {len(done.files)} files, {bytes_text(done.bytes)}, commit {done.commit[:8]}", "head")
    seen = "private" if done.private else "public"
    say(f"{seen}; {'it existed before' if done.existed else 'made now'}", "info")
    for note in done.notes:
        say(f"note: {note}", "warning")
