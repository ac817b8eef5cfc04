"""``backprop validate`` and ``backprop data``: check, report, split, clean and score a dataset."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from backprop.cli import output
from backprop.cli.data_options import (
    MODEL_SETTINGS,
    ProgressLine,
    ask,
    dataset_command,
    dataset_file,
    find_scores,
    scores_option,
    show_scores,
)
from backprop.cli.main import CommandGroup
from backprop.cli.options import FiniteRange, usual_model
from backprop.core.errors import EXIT_OK, EXIT_USER, DatasetError, InputError
from backprop.core.events import LEFT_OUT, Problem
from backprop.core.resolve import resolve
from backprop.core.settings import RunConfig
from backprop.runs.describe import findings_by_kind

if TYPE_CHECKING:
    from backprop.data.clean import CleanResult, Rules
    from backprop.data.report import QualityReport
    from backprop.data.split import SplitResult

SHOWN_SCORED = 10
_BY_TOKENS = frozenset(
    {
        *("cut", "answer_lost", "nothing_to_train", "double_bos", "mask_unclear", "template_refused"),
        *("text_changed", "text_dropped", "reasoning_dropped", "system_dropped", "system_moved"),
        *("tools_dropped", "tool_calls_dropped", "label_false", "prompt_differs", "same_sides"),
        "reasoning_trace",
    }
)
"""Findings that only training on rows gives, with a model's tokenizer and chat template."""


@click.command
@dataset_command("model", "method", "max_seq_length", "reasoning_trace")
@click.option("--held-out", metavar="FILE", help="a file that must share no row with this one")
@click.option("--all", "every", is_flag=True, help="a line for each finding, not for each kind")
def validate(config: RunConfig, *, held_out: str | None, every: bool, model: str | None, as_json: bool) -> int:
    """Check every row of a dataset without training. Exit code 1 when training would refuse rows of it.

    With --model, tokens are counted too, by the tokenizer of a model that is on this machine.
    """
    from backprop.core.methods import METHODS
    from backprop.core.models import find_tokenizer
    from backprop.data.validate import validate as check

    if model is None and config.max_seq_length != resolve().values["max_seq_length"]:
        raise InputError(
            "--max-seq-length counts tokens, which only a model's tokenizer makes",
            hint="name the model that is to be trained with --model",
        )
    held_out = dataset_file(held_out) if held_out is not None else None
    path, mapping = config.data, config.mapping or None
    model_dir = find_tokenizer(model) if model else None
    with ProgressLine("checking") as progress:
        rows = METHODS[config.method].rows
        traces = config.reasoning_trace
        found = check(path, mapping=mapping, rows=rows, traces=traces, held_out=held_out, progress=progress)
    answer = msgspec.to_builtins(found)
    if model_dir is not None:
        tokens: dict[str, Any] | None = None
        cuts: list[dict[str, Any]] = []
        counts: dict[str, int] = {}
        try:
            tokens, cuts, counts = _tokens(config, model_dir)
        except DatasetError as error:
            if error.code not in ("DATASET_NOTHING_TO_TRAIN", "DATASET_FORMAT_UNKNOWN"):
                raise
            answer["notes"].append(error.message)
        answer["tokens"] = tokens
        # Training skips what its model cannot take as well, and that is among what it cannot read.
        answer["invalid"] = max(found.invalid, tokens["unusable"] if tokens else found.rows)
        answer["valid"] = found.rows - answer["invalid"]
        by_tokens = {(problem["line"], problem["code"]) for problem in cuts}
        others = [problem for problem in answer["problems"] if (problem["line"], problem["code"]) not in by_tokens]
        answer["problems"] = sorted([*others, *cuts], key=lambda problem: problem["line"])
        counts = {**answer["problem_counts"], **counts}
        answer["problem_counts"] = dict(sorted(counts.items(), key=lambda item: -item[1]))
    output.answer(answer, as_json, functools.partial(_show_validation, every=every))
    return EXIT_USER if answer["invalid"] else EXIT_OK


def _tokens(config: RunConfig, model_dir: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, int]]:
    """The ``tokens`` object of the answer, what only the model's tokens tell of rows (the first of each kind), and how
    often it does.
    """
    from backprop.cli.estimate import card_memory
    from backprop.core.methods import METHODS
    from backprop.data.preprocess import prepare
    from backprop.hardware.fit import longest_rows

    length, most = config.max_seq_length, 0
    if length == "auto":
        most = longest_rows(config, card_memory().bytes or 0)
    with ProgressLine("counting tokens") as progress:
        prepared = prepare(
            config.data,
            model_dir,
            rows=METHODS[config.method].rows,
            max_length=length,
            most=most,
            traces=config.reasoning_trace,
            mapping=config.mapping or None,
            progress=progress,
        )
    summary = prepared.summary
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
        "unusable": summary.unusable,
    }
    found = {code: count for code, count in summary.problem_counts.items() if code in _BY_TOKENS}
    return tokens, [msgspec.to_builtins(problem) for problem in summary.problems if problem.code in found], found


def _show_validation(answer: dict[str, Any], every: bool) -> None:
    output.line(f"{answer['path']}: {answer['format'] or 'no known format'}, {answer['rows']:,} rows", "head")
    left_out = min(answer["valid"], sum(answer["problem_counts"].get(code, 0) for code in LEFT_OUT))
    others = f", {left_out:,} are left out on purpose" * bool(left_out)
    output.line(f"{answer['valid'] - left_out:,} can be used, {answer['invalid']:,} cannot{others}")
    if len(answer["formats"]) > 1:
        output.line("formats: " + ", ".join(f"{count:,} {name}" for name, count in answer["formats"].items()))
    _show_notes(answer["notes"])
    problems = msgspec.convert(answer["problems"], list[Problem])
    told = findings_by_kind(problems, answer["problem_counts"], answer["unit"])
    if every:
        told = [one for each in problems for one in findings_by_kind([each], {}, answer["unit"])]
    for first, words in told:
        output.line(words, first.severity if first.severity in ("error", "warning") else "quiet")
        if first.excerpt:
            output.line(f"    {first.excerpt}", "quiet")
    if len(problems) > len(answer["problem_counts"]) and not every:
        output.line("--all has a line for each finding, --json its row too")
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
            for name, limit in zip(names, tokens["limits"], strict=False)
        ]
        if rows:
            head = ["at a limit of", "", "whole", "cut", "split", "answer lost"]
            output.table(head, rows, frozenset({0, 2, 3, 4, 5}))
        if tokens["answer_lost"]:
            output.line(f"every answer fits with --max-seq-length {tokens['answers_fit']}, if the model reads as many")


@click.group(cls=CommandGroup)
def data() -> None:
    """Quality report of a dataset, train and held-out files, a cleaned copy."""


def _how(config: RunConfig) -> dict[str, Any]:
    """How rows are read, and what a method has to find in them, for the tools that read them."""
    from backprop.core.methods import METHODS

    return {"mapping": config.mapping or None, "rows": METHODS[config.method].rows}


@data.command
@dataset_command("method", *MODEL_SETTINGS)
@click.option("--near", type=FiniteRange(0.1, 1.0), default=0.8, show_default=True, help="overlap of near duplicates")
@scores_option
def report(config: RunConfig, *, near: float, model: str | None, scores_file: Path | None, as_json: bool) -> int:
    """Lengths, duplicates, near duplicates, languages, reasoning traces, problems, difficulty, perplexity."""
    from backprop.data.report import report as make

    scores = find_scores(config, model, scores_file)
    with ProgressLine("reading") as progress:
        found = make(config.data, near=near, scores=scores, progress=progress, **_how(config))
    output.answer(found, as_json, _show_report)
    return EXIT_OK if found.usable else EXIT_USER


def _show_report(report: QualityReport) -> None:
    found = msgspec.to_builtins(report)
    output.line(f"{found['path']}: {found['format'] or 'no known format'}, {found['rows']:,} rows", "head")
    output.line(
        f"{found['usable']:,} can be used; {found['duplicates']:,} repeat an earlier one, "
        f"{found['near_duplicates']:,} nearly"
    )
    _show_notes(report.notes)
    rows = []
    for name in ("prompt_tokens", "answer_tokens", "total_tokens", "difficulty"):
        numbers = found[name]
        if numbers is not None:
            digits = 2 if name == "difficulty" else 0
            columns = ("mean", "min", "p10", "p50", "p90", "p99", "max")
            rows.append([name.replace("_", " "), *(f"{numbers[column]:,.{digits}f}" for column in columns)])
    output.table(["estimated", "mean", "min", "p10", "p50", "p90", "p99", "max"], rows, frozenset(range(1, 8)))
    most = max((count for _, count in found["histogram"]), default=1)
    for bound, count in found["histogram"]:
        output.line(f"  to {bound:>6,} tokens {count:>9,}  {'#' * round(30 * count / most)}")
    for title, key in (
        ("turns", "turns"),
        ("languages", "languages"),
        ("problems", "problems"),
        ("reasoning traces", "traces"),
        ("outside the usual lengths", "too_short_or_long"),
    ):
        if found[key]:
            output.line(f"{title}: " + ", ".join(f"{name} {count:,}" for name, count in found[key].items()))
    for group in found["near_groups"][:5]:
        output.line(f"nearly the same, lines {', '.join(map(str, group['lines'][:8]))}: {group['excerpt']!r}")
    for title, key in (("easiest", "easiest"), ("hardest", "hardest"), ("odd lengths", "length_outliers")):
        if found[key]:
            output.line(f"{title}: lines {', '.join(map(str, found[key][:10]))}")
    if report.perplexity is not None:
        show_scores(report.perplexity)


@data.command
@dataset_command("method", "seed")
@click.option("--ratio", type=float, default=0.1, show_default=True, help="share of the rows to hold out")
@click.option("--near", type=FiniteRange(0.1, 1.0), default=0.8, show_default=True, help="overlap kept on one side")
@click.option("--train-file", "train", type=Path, metavar="FILE", help="where the rows to train go")
@click.option("--held-out-file", "held_out", type=Path, metavar="FILE", help="where the others go")
def split(config: RunConfig, *, as_json: bool, **chosen: Any) -> None:
    """Write a train and a held-out file beside the dataset; duplicates stay on one side."""
    from backprop.data.split import split_file

    with ProgressLine("reading") as progress:
        done = split_file(config.data, seed=config.seed, progress=progress, **_how(config), **chosen)
    output.answer(done, as_json, _show_split)


def _show_notes(notes: list[str]) -> None:
    for note in notes:
        output.line(note)


def _show_split(done: SplitResult) -> None:
    _show_notes(done.notes)
    output.line(f"{done.train_rows:,} rows to train: {done.train}")
    output.line(f"{done.held_out_rows:,} rows held out: {done.held_out}")
    output.line(f"{done.kept_together:,} rows have a duplicate or near duplicate, which is on their side")
    if done.left_out:
        output.line("left out: " + ", ".join(f"{count:,} {code}" for code, count in done.left_out.items()))


@data.command
@dataset_command("method", *MODEL_SETTINGS)
@click.option("--near", type=FiniteRange(0.1, 1.0), metavar="X", help="leave out near duplicates from this overlap on")
@click.option("--keep-duplicates", is_flag=True, help="keep rows that repeat an earlier one")
@click.option(
    "--min-tokens", type=click.IntRange(0), metavar="N", help="leave out shorter rows (four characters a token)"
)
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="leave out longer rows")
@click.option("--language", "languages", multiple=True, metavar="CODE", help="keep rows in this language; repeatable")
@click.option("--traces", is_flag=True, help="keep only rows with a reasoning trace of 8 to 8192 tokens")
@click.option("--curriculum", is_flag=True, help="write the rows from easy to hard (by perplexity, given a model)")
@click.option("--min-perplexity", type=float, metavar="X", help="leave out rows that the model finds easier")
@click.option("--max-perplexity", type=float, metavar="X", help="leave out rows that the model finds harder")
@click.option("--perplexity-outliers", is_flag=True, help="leave out rows far from all others for the model")
@scores_option
@click.option("--output", "-o", "target", type=Path, metavar="FILE", help="where to write")
def clean(
    config: RunConfig, *, model: str | None, scores_file: Path | None, target: Path | None, as_json: bool, **chosen: Any
) -> None:
    """Write a cleaned copy beside the dataset, with a report of what was left out and why."""
    from backprop.data.clean import clean_file

    rules = _rules(chosen)
    scores = find_scores(config, model, scores_file)
    with ProgressLine("reading") as progress:
        done = clean_file(config.data, rules, scores=scores, output=target, progress=progress, **_how(config))
    output.answer(done, as_json, _show_cleaned)


def _show_cleaned(done: CleanResult) -> None:
    _show_notes(done.notes)
    output.line(f"{done.kept:,} of {done.rows:,} rows: {done.output}")
    for reason, count in done.removed.items():
        output.line(f"{count:>9,}  {reason}")
    output.line(f"each row that was left out, with the reason: {done.report}")


def _rules(chosen: dict[str, Any]) -> Rules:
    """The rules that the options choose; those of the same name are taken as they are."""
    from backprop.data.clean import Rules
    from backprop.data.quality import LengthLimits
    from backprop.data.traces import TraceLimits

    shortest, longest, lengths = chosen.pop("min_tokens"), chosen.pop("max_tokens"), None
    if shortest is not None or longest is not None:
        lengths = LengthLimits(min_tokens=shortest or 0, max_tokens=2**62 if longest is None else longest, min_turns=1)
    traces = TraceLimits() if chosen.pop("traces") else None
    languages = frozenset(code.lower() for code in chosen.pop("languages"))
    return Rules(lengths=lengths, traces=traces, languages=languages, **chosen)


@data.command
@dataset_command(*MODEL_SETTINGS)
@click.option("--output", "-o", "target", type=Path, metavar="FILE", help="where the score of each row goes")
def score(config: RunConfig, *, model: str | None, target: Path | None, as_json: bool) -> None:
    """Perplexity of each row by a model: the loss over the tokens that training would train, row by row."""
    from backprop.data.examples import beside, refuse_existing

    target = target or beside(Path(config.data), "scores")
    refuse_existing(target)
    if model is None:
        config = msgspec.structs.replace(config, model=usual_model(config.backend)[0])
    scores, summary = ask(config)
    scores.write(target)
    found = scores.report()
    if as_json:
        answer = {"path": config.data, "model": config.model, "output": str(target), **msgspec.to_builtins(summary)}
        answer.pop("type")
        output.document({**answer, **msgspec.to_builtins(found)})
        return
    output.line(f"{config.data}: {summary.scored:,} of {summary.rows:,} rows scored by {config.model}", "head")
    show_scores(found)
    missing = summary.answer_lost + summary.dropped
    if missing:
        output.line(
            f"{missing:,} rows have no score: {summary.answer_lost:,} whose answer does not fit {summary.max_length:,} "
            f"tokens, {summary.dropped:,} that cannot be used or would train nothing"
        )
    for problem in summary.problems[:SHOWN_SCORED]:
        output.line(f"line {problem.line}: {problem.message} [{problem.code}]", "warning")
    output.line(f"the score of each row: {target}")
