"""``backprop ollama``: hand a GGUF file to Ollama, see what it has, remove a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from backprop.cli import output
from backprop.cli.complete import files_and
from backprop.cli.data_options import ProgressLine
from backprop.cli.main import CommandGroup
from backprop.cli.options import json_and_verbose
from backprop.core.jobs import OllamaModels, OllamaRequest, Registered
from backprop.core.paths import expand
from backprop.runs.describe import bytes_text
from backprop.runs.engine_jobs import OLLAMA, ask_engine

T = TypeVar("T")


@click.group(cls=CommandGroup)
def ollama() -> None:
    """Models of the Ollama server that OLLAMA_HOST names; 127.0.0.1:11434 where it is not set."""


@ollama.command
@click.argument("path", shell_complete=files_and(list))
@click.option("--name", required=True, metavar="N", help="what it is called there, with or without :tag")
@click.option("--replace", is_flag=True, help="replace a model of that name")
@click.option(
    "--prompt", default="", metavar="TEXT", help="ask it this afterwards; open: the run's first sample prompt"
)
@json_and_verbose
def register(path: str, as_json: bool, verbose: bool, **asked: Any) -> None:
    """Register the GGUF file PATH, see that Ollama has it as it was trained, and ask it once.

    Example: backprop ollama register model-q4_k_m.gguf --name captain
    """
    done = run_ollama(OllamaRequest(path=str(expand(path).absolute()), **asked), Registered)
    output.answer(done, as_json, show_registered)


@ollama.command(name="list")
@json_and_verbose
def list_models(as_json: bool, verbose: bool) -> None:
    """What Ollama has."""
    done = run_ollama(OllamaRequest(action="list"), OllamaModels)
    if as_json:
        output.document(done)
        return
    output.table(
        ["name", "size", "modified"],
        [[each.name, bytes_text(each.bytes), each.modified[:16].replace("T", " ")] for each in done.models],
        right=frozenset({1}),
    )


@ollama.command(name="rm")
@click.argument("name")
@json_and_verbose
def remove(name: str, as_json: bool, verbose: bool) -> None:
    """Delete the model NAME from Ollama; the file it was registered from stays."""
    done = run_ollama(OllamaRequest(action="remove", name=name), OllamaModels)
    output.answer(done, as_json, lambda gone: output.line(f"removed {gone.models[0].name}"))


def run_ollama(request: OllamaRequest, answer: type[T]) -> T:
    """Have it done; what goes on is shown where somebody watches."""
    with ProgressLine("") as line:
        return ask_engine(OLLAMA, request, answer, line.report)


def show_registered(done: Registered, say: Callable[[str, str], None] = output.line) -> None:
    """What Ollama has now, what it said, and what comes next."""
    say(f"{done.name}  in Ollama {done.version} at {done.url}", "head")
    sent = ", ".join(f"{name} {value}" for name, value in done.parameters.items())
    say(f"same  template, system text ({done.system!r}), {sent}", "info")
    for note in done.notes:
        say(f"note: {note}", "warning")
    if done.prompt:
        say(f"> {done.prompt}", "head")
        say(done.answer, "info")
    if done.same is not None:
        words = "same  the trained model's answer" if done.same else f"OTHER the trained model said: {done.expected}"
        say(words, "info" if done.same else "warning")
    say(f"next: ollama run {done.name}", "info")
