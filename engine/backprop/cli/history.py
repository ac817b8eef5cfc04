"""What is done with runs that are over: two beside each other, all in one file, tags and a note, and deleting one."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import msgspec

from backprop.cli import output
from backprop.cli.complete import run_ids
from backprop.cli.options import json_and_verbose, require_effect
from backprop.cli.runs import answer, chosen_runs, find_run, open_index
from backprop.core.errors import InputError
from backprop.core.files import new_output
from backprop.core.paths import expand
from backprop.runs.compare import GROUPS, compare, shown_value
from backprop.runs.deletion import delete_run as delete
from backprop.runs.deletion import dependents, sizes
from backprop.runs.describe import bytes_text
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from backprop.runs.summary import RunSummary


@click.command
@click.argument("a", shell_complete=run_ids())
@click.argument("b", shell_complete=run_ids())
@json_and_verbose
def diff_runs(a: str, b: str, as_json: bool, verbose: bool) -> None:
    """Show what is not the same of the runs A and B: settings, what followed, rows of data, environment, code."""
    runs = [read_run(find_run(each)) for each in (a, b)]
    found = compare(*runs)
    if as_json:
        output.document({"a": runs[0].run_id, "b": runs[1].run_id, "differences": msgspec.to_builtins(found)})
        return
    if not found:
        output.line("nothing differs")
    for group, those in groupby(found, lambda each: each.group):
        rows = [[each.key, shown_value(each.a), shown_value(each.b)] for each in those]
        output.table([GROUPS[group], *(run.run_id for run in runs)], rows)
        output.line()


@click.command
@chosen_runs
@click.option("--format", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--file", metavar="FILE", help="a new file to write; open: standard output")
@json_and_verbose
def export_runs(
    choose: Callable[..., list[RunSummary]], format: str, file: str | None, as_json: bool, verbose: bool
) -> None:
    """Write every run with its settings, the newest first: those that hold every WORD, as `list-runs` finds them.

    In CSV each setting is a column: config.learning_rate and so on.
    """
    require_effect(format=(file or not as_json, "--file"))
    if file is not None and expand(file).exists():
        raise InputError(f"{file} exists", hint="name a new file with --file")
    runs = choose(None)
    records = ({**answer(run), "config": read_run(Path(run.path)).config} for run in runs)
    if as_json and file is None:
        output.document({"runs": list(records)})
        return
    text = "".join(_lines(records, format))
    if file is None:
        sys.stdout.write(text)
        return
    with new_output(expand(file), folder=False) as target:
        target.write_text(text, encoding="utf-8")
    answer_file = {"file": str(expand(file).absolute()), "format": format, "count": len(runs)}
    output.answer(answer_file, as_json, lambda _: output.narrate(f"{len(runs)} runs written to {file}"))


def _lines(records: Iterator[dict[str, Any]], kind: str) -> Iterator[str]:
    """The file's content; secrets in settings are blacked out."""
    plain = [output.without_secrets(record) for record in records]
    if kind == "jsonl":
        yield from (json.dumps(record, ensure_ascii=False) + "\n" for record in plain)
        return
    flat = [record | {f"config.{name}": value for name, value in record.pop("config").items()} for record in plain]
    names = list(dict.fromkeys(name for record in flat for name in record))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(names)
    for record in flat:
        writer.writerow(["" if (value := record.get(name)) is None else _cell(value) for name in names])
    yield table.getvalue()


def _cell(value: Any) -> Any:
    """A value in a cell: lists and objects as JSON, and a text that a spreadsheet would run as a formula after a '."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


@click.command
@click.argument("run", shell_complete=run_ids())
@click.option("--yes", is_flag=True, help="do not ask")
@json_and_verbose
def delete_run(run: str, yes: bool, as_json: bool, verbose: bool) -> None:
    """Delete a run's directory with its checkpoints and result; what that frees and what needs it is shown first."""
    path = find_run(run)
    if RunDirectory(path).is_locked():
        hint = f"stop it first: backprop-tui --attach {path.name}"
        raise InputError(f"run {path.name} is being worked on", code="RUN_ALREADY_ACTIVE", hint=hint)
    size = sum(sizes(path).values())
    with open_index() as index:
        needed = dependents(path, index.each())
    output.narrate(f"{path}: {bytes_text(size)}")
    for each in needed:
        output.narrate(f"needs it: {each}", "warning")
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise InputError("nobody is there to be asked", hint="say --yes to delete it")
        if not click.confirm(f"delete run {path.name} for good?", err=True):
            output.narrate("kept")
            return
    delete(path)
    gone = {"run_id": path.name, "path": str(path), "bytes": size, "needed_by": needed}
    output.answer(gone, as_json, lambda _: output.line(f"deleted run {path.name}, {bytes_text(size)}"))


class TagCommand(click.Command):
    """``-word`` takes a tag away: what begins with one dash is no flag here, apart from ``-v`` and ``-h``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        tags = [word for word in args if word[0:1] in "+-" and word[1:2] not in ("", "-") and word not in ("-v", "-h")]
        rest = [word for word in args if word not in tags]
        return super().parse_args(ctx, [*rest, "--", *tags])


@click.command(cls=TagCommand)
@click.argument("run", shell_complete=run_ids())
@click.argument("tags", metavar="[+TAG|-TAG]...", nargs=-1)
@json_and_verbose
def tag(run: str, tags: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """Give a run tags, or take them away: `backprop tag RUN +good -draft`. Lists find runs by them."""
    for word in tags:
        if word[0] not in "+-" or not word[1:].strip() or any(sign.isspace() for sign in word):
            raise InputError(f"{word!r} is no tag", hint="+TAG gives a tag, -TAG takes it away; a tag is one word")

    def change(before: list[str]) -> list[str]:
        for word in tags:
            before = [each for each in before if each != word[1:]] + [word[1:]] * (word[0] == "+")
        return before

    record = RunDirectory(find_run(run)).rewrite_record(lambda record: {"tags": change(record.tags)})
    _show_marks(record.run_id, record.tags, record.note, as_json)


@click.command
@click.argument("run", shell_complete=run_ids())
@click.argument("text")
@json_and_verbose
def note(run: str, text: str, as_json: bool, verbose: bool) -> None:
    """Write a note on a run, in place of the one before; an empty TEXT takes it away."""
    record = RunDirectory(find_run(run)).rewrite_record(lambda record: {"note": text.strip()})
    _show_marks(record.run_id, record.tags, record.note, as_json)


def _show_marks(run_id: str, tags: list[str], text: str, as_json: bool) -> None:
    shown = output.inline(" ".join([run_id, *(f"+{each}" for each in tags), text]).strip())
    output.answer({"run_id": run_id, "tags": tags, "note": text}, as_json, lambda _: output.line(shown))
