"""``backprop validate``: check a dataset, before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from backprop.cli import output
from backprop.cli.data_options import Progress, dataset_argument, dataset_file, read_mapping
from backprop.core.errors import EXIT_OK, EXIT_USER

SHOWN = 20
"""Findings that are shown to people; ``--json`` lists all."""
_BY_TOKENS = frozenset(
    {
        *("cut", "answer_lost", "nothing_to_train", "double_bos", "mask_unclear", "template_refused"),
        *("text_changed", "text_dropped", "reasoning_dropped", "system_dropped", "system_moved"),
        *("tools_dropped", "tool_calls_dropped"),
    }
)
"""Findings that only a model's tokenizer and chat template give."""


@click.command
@dataset_argument
@click.option("--held-out", metavar="FILE", help="a file that must share no row with this one")
@click.option("--model", "-m", metavar="DIR", help="count tokens with this model's tokenizer (a directory, or cached)")
@click.option("--max-seq-length", type=click.IntRange(8), metavar="N", default=2048, show_default=True)
def validate(
    *,
    path: str,
    pairs: tuple[str, ...],
    held_out: str | None,
    model: str | None,
    max_seq_length: int,
    as_json: bool,
    verbose: bool,
) -> int:
    """Check every row of a dataset without training. Exit code 1 when rows cannot be used."""
    from backprop.core.models import find_tokenizer
    from backprop.data.validate import validate as check

    held_out = dataset_file(held_out) if held_out is not None else None
    mapping = read_mapping(pairs)
    model_dir = find_tokenizer(model) if model else None
    progress = Progress("checking")
    try:
        found = check(path, mapping=mapping, held_out=held_out, progress=progress)
    finally:
        progress.close()
    answer = msgspec.to_builtins(found)
    if model_dir is not None:
        answer["tokens"], cuts, counts = _tokens(path, model_dir, mapping, max_seq_length)
        answer["problems"] = sorted([*answer["problems"], *cuts], key=lambda problem: problem["line"])
        counts = {**answer["problem_counts"], **counts}
        answer["problem_counts"] = dict(sorted(counts.items(), key=lambda item: -item[1]))
    if as_json:
        output.document(answer)
    else:
        _show_validation(answer)
    return EXIT_USER if found.invalid else EXIT_OK


def _tokens(
    path: str, model_dir: Path, mapping: dict[str, str] | None, length: int
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, int]]:
    """The ``tokens`` object of the answer, what only the model's tokens tell of rows (the first of each kind), and how
    often it does.
    """
    from backprop.data.preprocess import prepare

    progress = Progress("counting tokens")
    try:
        summary = prepare(path, model_dir, max_length=length, mapping=mapping, progress=progress).summary
    finally:
        progress.close()
    tokens = {
        "total": summary.tokens,
        "trained": summary.trained_tokens,
        "p50": summary.p50,
        "p90": summary.p90,
        "p99": summary.p99,
        "max": summary.longest,
        "max_length": summary.max_length,
        "kept": summary.kept,
        "cut": summary.cut,
        "answer_lost": summary.answer_lost,
        "answers_fit": summary.answers_fit,
        "limits": msgspec.to_builtins(summary.limits),
        "dropped": summary.dropped,
    }
    found = {code: count for code, count in summary.problem_counts.items() if code in _BY_TOKENS}
    return tokens, [msgspec.to_builtins(problem) for problem in summary.problems if problem.code in found], found


def _show_validation(answer: dict[str, Any]) -> None:
    output.line(f"{answer['path']}: {answer['format'] or 'no known format'}, {answer['rows']:,} rows", "head")
    output.line(f"{answer['valid']:,} can be used, {answer['invalid']:,} cannot")
    if len(answer["formats"]) > 1:
        output.line("formats: " + ", ".join(f"{count:,} {name}" for name, count in answer["formats"].items()))
    for note in answer["notes"]:
        output.line(note)
    for code, count in answer["problem_counts"].items():
        output.line(f"{count:>9,}  {code}")
    for problem in answer["problems"][:SHOWN]:
        _show_problem(problem, answer["unit"])
    more = sum(answer["problem_counts"].values()) - min(SHOWN, len(answer["problems"]))
    if more > 0:
        output.line(f"… and {more:,} more findings; --json lists more")
    tokens = answer.get("tokens")
    if tokens:
        output.line(
            f"tokens: {tokens['total']:,}, of them trained {tokens['trained']:,}; per row p50 {tokens['p50']}, "
            f"p90 {tokens['p90']}, p99 {tokens['p99']}, longest {tokens['max']}"
        )
        columns = ("whole", "cut", "split", "answer_lost")
        names = ("chosen", "p50", "p90", "p99", "longest")
        rows = [
            [f"{limit['max_length']:,}", name, *(f"{limit[column]:,}" for column in columns)]
            for name, limit in zip(names, tokens["limits"], strict=True)
        ]
        output.table(["at a limit of", "", "whole", "cut", "split", "answer lost"], rows, frozenset({0, 2, 3, 4, 5}))
        if tokens["answer_lost"]:
            output.line(f"every answer fits with --max-seq-length {tokens['answers_fit']}")


def _show_problem(problem: dict[str, Any], unit: str) -> None:
    place = f"{unit} {problem['line']}" if problem["line"] else "file"
    field = f" {problem['field']}" if problem["field"] else ""
    kind = problem["severity"] if problem["severity"] in ("error", "warning") else "quiet"
    output.line(f"{place}{field}: {problem['message']} [{problem['code']}]", kind)
    if problem["excerpt"]:
        output.line(f"    {problem['excerpt']}", "quiet")
