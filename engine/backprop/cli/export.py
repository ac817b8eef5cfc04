"""``backprop export``: a trained model in another format, opened again and compared before it is called done."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from backprop.cli import output
from backprop.cli.complete import files_and, presets, run_ids
from backprop.cli.data_options import ProgressLine
from backprop.cli.ollama import run_ollama, show_registered
from backprop.cli.options import json_and_verbose
from backprop.cli.runs import find_run
from backprop.core.errors import EXIT_OK, EXIT_PARTIAL, BackpropError, InputError
from backprop.core.exports import FORMATS, PRECISIONS, TUNING_KEPT_LEAST
from backprop.core.jobs import Exported, ExportRequest, OllamaRequest, Registered
from backprop.core.locate import locate_model
from backprop.core.paths import expand
from backprop.runs.describe import bytes_text
from backprop.runs.directory import is_run
from backprop.runs.engine_jobs import export_model


@click.command
@click.argument("run", metavar="RUN-or-PATH", shell_complete=run_ids())
@click.option(
    "--format", "-f", metavar="|".join(FORMATS), default="gguf", show_default=True, shell_complete=presets(FORMATS)
)
@click.option(
    "--quantization",
    "-q",
    "precision",
    default="",
    metavar="WORD",
    shell_complete=presets(PRECISIONS),
    help="how weights are stored: " + ", ".join(PRECISIONS) + "; open: the format's usual one",
)
@click.option("--step", type=click.IntRange(0), metavar="N", help="a checkpoint of the run; open: its result")
@click.option("--model", "-m", metavar="M", help="where the base model is now, if it was moved")
@click.option("--output", "-o", default="", metavar="PATH", shell_complete=files_and(list), help="what to write")
@click.option("--no-answers", is_flag=True, help="compare weights and files only, not what the result answers")
@click.option("--ollama", is_flag=True, help="register the GGUF file with Ollama afterwards")
@click.option("--ollama-name", default="", metavar="N", help="what it is called there; open: as the file")
@json_and_verbose
def export(
    run: str, *, as_json: bool, verbose: bool, no_answers: bool, ollama: bool, ollama_name: str, **asked: Any
) -> int:
    """Write the model of RUN (an id, its beginning) or of a folder as an adapter, a merged model, or GGUF.

    Nothing is replaced, and nothing is left of an export that is not what was trained. Exit code 3 where it stands, but
    the fine-tune is lost in it or Ollama did not take it.

    Example: backprop export 3fa2 --format gguf --quantization q4_k_m
    """
    if (ollama or ollama_name) and asked["format"] != "gguf":
        raise InputError(f"Ollama takes no {asked['format']}", hint="choose --format gguf")
    request = ExportRequest(
        source=str(find_source(run)),
        answers=not no_answers,
        **{
            **asked,
            "model": asked["model"] and locate_model(asked["model"]),
            "output": str(expand(asked["output"])) if asked["output"] else "",
        },
    )
    done = run_export(request)
    handed = _hand_to_ollama(done, request, ollama_name) if ollama or ollama_name else None
    failed = isinstance(handed, BackpropError)
    if as_json:
        said = {"error": handed.to_dict()} if isinstance(handed, BackpropError) else handed
        output.document({**msgspec.to_builtins(done), **({} if said is None else {"ollama": said})})
    else:
        show_export(done, follows=handed is None or failed, name=ollama_name)
        if isinstance(handed, BackpropError):
            output.show_error(handed, as_json=False)
        elif handed is not None:
            show_registered(handed)
    return EXIT_PARTIAL if is_lost(done) or failed else EXIT_OK


def _hand_to_ollama(done: Exported, request: ExportRequest, name: str) -> Registered | BackpropError:
    """Register the file; whatever is wrong with that, the export stands."""
    run = request.source if is_run(Path(request.source)) else ""
    try:
        name = name or ollama_name_of(done.path)
        return run_ollama(OllamaRequest(path=done.path, name=name, run=run, step=request.step), Registered)
    except BackpropError as error:
        return error


def ollama_name_of(path: str) -> str:
    """A name for Ollama, from the file's."""
    allowed = (c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in Path(path).stem.lower())
    return "".join(allowed).lstrip("-.")[:80] or "model"


def find_source(named: str, *, files: bool = False) -> Path:
    """The directory that is meant: a folder with a model, an adapter or a run, else the run of this id.

    Args:
        files: a GGUF file is taken too.

    Raises:
        RunError: there is none.
        InputError: it is a file.
    """
    folder = Path(named).expanduser()
    if is_run(folder) or any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return folder.absolute()
    if files and folder.suffix == ".gguf" and folder.is_file():
        return folder.absolute()
    if folder.is_file():
        hint = "a GGUF file is an export already" if folder.suffix == ".gguf" else "name the folder that it is in"
        raise InputError(f"{folder} is a file, no run and no folder with a model", hint=hint)
    return find_run(named)


def run_export(request: ExportRequest) -> Exported:
    """Have it written; what goes on is shown where somebody watches."""
    with ProgressLine("exporting", in_bytes=False) as line:
        return export_model(request, line.report)


def is_lost(done: Exported) -> bool:
    """Whether the export stands, and what was learned is gone in it."""
    return done.check.tuning_kept is not None and done.check.tuning_kept < TUNING_KEPT_LEAST


def show_export(
    done: Exported, say: Callable[[str, str], None] = output.line, *, follows: bool = True, name: str = ""
) -> None:
    """What was written, its proof line by line, and, where anything ``follows``, what comes next.

    Args:
        name: what it is to be called in Ollama; open: as the file.
    """
    say(f"{done.path}  {bytes_text(done.bytes)}, {done.format} in {done.quantization}", "head")
    for each in done.check.compared:
        say(f"{'same' if each.passed else 'OTHER':<6}{each.name}: {each.detail}", "info" if each.passed else "error")
    if done.check.skipped:
        say(done.check.skipped, "quiet")
    for note in done.notes:
        say(f"note: {note}", "warning")
    if is_lost(done):
        say(
            f"the fine-tune is lost at {done.quantization}: only {done.check.tuning_kept:.0%} of the answers that "
            "training changed are still the trained ones; choose a wider quantization",
            "error",
        )
    elif done.format == "gguf" and follows:
        name = shlex.quote(name or ollama_name_of(done.path))
        say(f"next: backprop ollama register {shlex.quote(done.path)} --name {name}", "info")
