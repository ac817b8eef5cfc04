"""``backprop data``: quality report, train and held-out files, a cleaned copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from backprop.cli import output
from backprop.cli.data_options import Progress, dataset_argument, read_mapping
from backprop.cli.main import Commands
from backprop.cli.scoring import find_scores, score, scores_option, show_scores
from backprop.cli.validation import validate
from backprop.core.errors import EXIT_OK

__all__ = ["data", "validate"]


@click.group(cls=Commands)
def data() -> None:
    """Quality report of a dataset, train and held-out files, a cleaned copy."""


data.add_command(score)


@data.command
@dataset_argument
@click.option(
    "--near", type=click.FloatRange(0.1, 1.0), default=0.8, show_default=True, help="overlap of near duplicates"
)
@scores_option
def report(path: str, pairs: tuple[str, ...], near: float, as_json: bool, verbose: bool, **asked: Any) -> int:
    """Lengths, duplicates, near duplicates, languages, reasoning traces, problems, difficulty, perplexity."""
    from backprop.data.report import report as make

    mapping = read_mapping(pairs)
    scores = find_scores(path, mapping, **asked)
    progress = Progress("reading")
    try:
        found = make(path, mapping=mapping, near=near, scores=scores, progress=progress)
    finally:
        progress.close()
    if as_json:
        output.document(msgspec.to_builtins(found))
        return EXIT_OK
    _show_report(msgspec.to_builtins(found))
    if found.perplexity is not None:
        show_scores(found.perplexity)
    return EXIT_OK


def _show_report(found: dict[str, Any]) -> None:
    output.line(f"{found['path']}: {found['format'] or 'no known format'}, {found['rows']:,} rows", "head")
    output.line(
        f"{found['usable']:,} can be used; {found['duplicates']:,} repeat an earlier one, "
        f"{found['near_duplicates']:,} nearly"
    )
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


@data.command
@dataset_argument
@click.option("--ratio", type=float, default=0.1, show_default=True, help="share of the rows to hold out")
@click.option("--seed", type=int, default=42, show_default=True)
@click.option(
    "--near", type=click.FloatRange(0.1, 1.0), default=0.8, show_default=True, help="overlap kept on one side"
)
@click.option("--train-file", type=Path, metavar="FILE", help="where the rows to train go")
@click.option("--held-out-file", type=Path, metavar="FILE", help="where the others go")
def split(
    *,
    path: str,
    pairs: tuple[str, ...],
    ratio: float,
    seed: int,
    near: float,
    train_file: Path | None,
    held_out_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Write a train and a held-out file beside the dataset; duplicates stay on one side."""
    from backprop.data.split import split_file

    progress = Progress("reading")
    try:
        done = split_file(
            path,
            ratio=ratio,
            seed=seed,
            mapping=read_mapping(pairs),
            near=near,
            train=train_file,
            held_out=held_out_file,
            progress=progress,
        )
    finally:
        progress.close()
    if as_json:
        output.document(msgspec.to_builtins(done))
        return EXIT_OK
    output.line(f"{done.train_rows:,} rows to train: {done.train}")
    output.line(f"{done.held_out_rows:,} rows held out: {done.held_out}")
    output.line(f"{done.kept_together:,} rows have a duplicate or near duplicate, which is on their side")
    if done.left_out:
        output.line("left out: " + ", ".join(f"{count:,} {code}" for code, count in done.left_out.items()))
    return EXIT_OK


@data.command
@dataset_argument
@click.option(
    "--near", type=click.FloatRange(0.1, 1.0), metavar="X", help="leave out near duplicates from this overlap on"
)
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
def clean(path: str, pairs: tuple[str, ...], as_json: bool, verbose: bool, target: Path | None, **chosen: Any) -> int:
    """Write a cleaned copy beside the dataset, with a report of what was left out and why."""
    from backprop.data.clean import clean_file

    asked = {name: chosen.pop(name) for name in ("scores_file", "model", "max_seq_length", "backend")}
    rules, mapping = _rules(**chosen), read_mapping(pairs)
    scores = find_scores(path, mapping, **asked)
    progress = Progress("reading")
    try:
        done = clean_file(path, rules, mapping=mapping, scores=scores, output=target, progress=progress)
    finally:
        progress.close()
    if as_json:
        output.document(msgspec.to_builtins(done))
        return EXIT_OK
    output.line(f"{done.kept:,} of {done.rows:,} rows: {done.output}")
    for reason, count in done.removed.items():
        output.line(f"{count:>9,}  {reason}")
    output.line(f"each row that was left out, with the reason: {done.report}")
    return EXIT_OK


def _rules(
    *,
    near: float | None,
    keep_duplicates: bool,
    min_tokens: int | None,
    max_tokens: int | None,
    languages: tuple[str, ...],
    traces: bool,
    **others: Any,
) -> Any:
    from backprop.data.clean import Rules
    from backprop.data.quality import LengthLimits, TraceLimits

    lengths = None
    if min_tokens is not None or max_tokens is not None:
        lengths = LengthLimits(
            min_tokens=min_tokens or 0, max_tokens=max_tokens if max_tokens is not None else 2**62, min_turns=1
        )
    return Rules(
        near=near,
        lengths=lengths,
        traces=TraceLimits() if traces else None,
        languages=frozenset(code.lower() for code in languages),
        keep_duplicates=keep_duplicates,
        **others,
    )
