"""``backprop data score``, and asking a model for scores in other commands about data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from backprop.cli import output
from backprop.cli.data_options import Progress, dataset_argument, read_mapping
from backprop.core.errors import EXIT_OK, InputError
from backprop.core.jobs import Scored, ScoreRequest

if TYPE_CHECKING:
    from backprop.data.scores import PerplexityReport, Scores

JOB = "backprop.train.perplexity"
_SHOWN = 10


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--model``, ``--max-seq-length`` and ``--backend``: which model, how long rows may be, and where it runs."""
    for option in (
        click.option(
            "--backend", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", help="where the model runs"
        ),
        click.option(
            "--max-seq-length", type=click.IntRange(8), metavar="N", default=2048, show_default=True, help="in tokens"
        ),
        click.option("--model", "-m", metavar="MODEL", help="the model whose perplexity is meant"),
    ):
        function = option(function)
    return function


def scores_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--scores FILE``, what ``backprop data score`` wrote, in place of asking the model again."""
    return click.option(
        "--scores", "scores_file", type=Path, metavar="FILE", help="scores that `data score` wrote, instead of --model"
    )(model_options(function))


def find_scores(
    path: str,
    mapping: dict[str, str] | None,
    *,
    scores_file: Path | None,
    model: str | None,
    max_seq_length: int,
    backend: str,
) -> Scores | None:
    """The scores that the options ask for: from a file, from a model, or none."""
    if scores_file is not None and model is not None:
        raise InputError("--scores and --model exclude each other", hint="name one of the two")
    if scores_file is not None:
        from backprop.data.scores import read_scores

        return read_scores(scores_file)
    if model is None:
        return None
    return ask(ScoreRequest(data=path, model=model, max_length=max_seq_length, mapping=mapping or {}, backend=backend))[
        0
    ]


def ask(request: ScoreRequest) -> tuple[Scores, Scored]:
    """Have an engine process score the rows; its progress is shown where somebody watches."""
    from backprop.core import jobs
    from backprop.core.events import ModelLoading
    from backprop.data.scores import Scores
    from backprop.runs.describe import describe
    from backprop.runs.engine_jobs import engine_job

    progress = Progress("scoring", in_bytes=False)
    rows: list[jobs.RowScore] = []
    summary: Scored | None = None
    try:
        with engine_job(JOB, request) as job:
            for message in job.messages():
                match message:
                    case ModelLoading():
                        output.narrate(describe(message))
                    case jobs.Progress():
                        progress.doing = message.doing
                        progress(message.done, message.total)
                    case jobs.RowScores():
                        rows += message.rows
                    case Scored():
                        summary = message
    finally:
        progress.close()
    assert summary is not None  # a job that ends without its last message has raised
    return Scores(rows), summary


@click.command
@dataset_argument
@model_options
@click.option("--output", "-o", "target", type=Path, metavar="FILE", help="where the score of each row goes")
def score(
    *,
    path: str,
    pairs: tuple[str, ...],
    model: str | None,
    max_seq_length: int,
    backend: str,
    target: Path | None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Perplexity of each row by a model: the loss over the tokens that training would train, row by row."""
    from backprop.data.writing import beside, refuse_existing

    target = target or beside(Path(path), "scores")
    refuse_existing(target)
    request = ScoreRequest(
        data=path,
        model=model or _usual_model(backend),
        max_length=max_seq_length,
        mapping=read_mapping(pairs) or {},
        backend=backend,
    )
    scores, summary = ask(request)
    scores.write(target)
    found = scores.report()
    if as_json:
        answer = {"path": path, "model": request.model, "output": str(target), **msgspec.to_builtins(summary)}
        answer.pop("type")
        output.document({**answer, **msgspec.to_builtins(found)})
        return EXIT_OK
    output.line(f"{path}: {summary.scored:,} of {summary.rows:,} rows scored by {request.model}", "head")
    show_scores(found)
    missing = summary.answer_lost + summary.dropped
    if missing:
        output.line(
            f"{missing:,} rows have no score: {summary.answer_lost:,} whose answer does not fit {summary.max_length:,} "
            f"tokens, {summary.dropped:,} that cannot be used or would train nothing"
        )
    for problem in summary.problems[:_SHOWN]:
        output.line(f"line {problem.line}: {problem.message} [{problem.code}]", "warning")
    output.line(f"the score of each row: {target}")
    return EXIT_OK


def _usual_model(backend: str) -> str:
    from backprop.core.presets import default_model
    from backprop.hardware.devices import info

    model, why = default_model(backend, gpu=info().gpu_problem is None)
    output.narrate(f"no model was named: taking {model} ({why}); --model names another")
    return model


def show_scores(found: PerplexityReport) -> None:
    """The scores for people."""
    spread = found.per_row
    if spread is None:
        return
    output.line(
        f"perplexity {found.perplexity:,.2f} over {found.tokens:,} trained tokens (loss {found.loss:.4f}); per row "
        f"p10 {spread.p10:,.2f}, p50 {spread.p50:,.2f}, p90 {spread.p90:,.2f}, p99 {spread.p99:,.2f}"
    )
    for title, rows in (("hardest", found.hardest), ("easiest", found.easiest)):
        some = ", ".join(f"{row.line} ({row.perplexity:,.2f})" for row in rows[:_SHOWN])
        output.line(f"{title} for the model: lines {some}")
    if found.outliers:
        output.line(f"far from all others: lines {', '.join(map(str, found.outliers[:_SHOWN]))}")
