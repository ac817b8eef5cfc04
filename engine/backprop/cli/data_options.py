"""What the commands about data share: the dataset, its field mapping, progress on long work."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from backprop.cli import options, output
from backprop.core.errors import InputError
from backprop.core.events import ModelLoading, Warning  # noqa: A004
from backprop.core.jobs import JobProgress, Message, RowScore, RowScores, Scored
from backprop.core.resolve import resolve
from backprop.core.settings import RunConfig
from backprop.runs.describe import bytes_text, describe, duration

if TYPE_CHECKING:
    from backprop.data.quality import PerplexityReport, Scores

JOB = "backprop.train.jobs.perplexity"
_SHOWN = 10
_EVERY, _LINE_EVERY = 0.2, 10.0
"""Seconds between two updates of the progress line, and between two lines where none can be written over."""


class ProgressLine:
    """How far long work is, on standard error: one line that is rewritten, or a line now and then."""

    def __init__(self, doing: str, *, in_bytes: bool = True) -> None:
        self.doing = doing
        self._in_bytes = in_bytes
        self._rewrites = output.can_rewrite(sys.stderr)
        self._began = time.monotonic()
        self._last = 0.0 if self._rewrites else self._began
        self._shown = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if total and now - self._last >= (_EVERY if self._rewrites else _LINE_EVERY):
            self._last, self._shown = now, self._rewrites
            size = f" of {bytes_text(total)}" if self._in_bytes else ""
            left = f", {duration((now - self._began) / done * (total - done))} left" if done else ""
            text = f"{self.doing} {done / total:4.0%}{size}{left}"
            sys.stderr.write(f"\r\x1b[K{text}" if self._rewrites else f"{text}\n")
            sys.stderr.flush()

    def report(self, message: Message) -> None:
        """Show a message of a job: how far it is; what has to be said is said beside."""
        match message:
            case JobProgress():
                if message.doing != self.doing:
                    self.doing, self._began = message.doing, time.monotonic()
                self(message.done, message.total)
            case ModelLoading():
                output.narrate(describe(message))
            case Warning():
                output.narrate(describe(message), "warning")

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def dataset_file(path: str) -> str:
    """The file that ``DATASET`` means: itself, or the copy of a dataset on the Hugging Face Hub, fetched if need be."""
    from backprop.core.datasets import is_hub_name

    if not is_hub_name(path):
        return path
    from backprop.runs.engine_jobs import fetch_dataset

    with ProgressLine("fetching") as progress:
        found = fetch_dataset(
            path, progress.report, lambda job: output.narrate(f"fetching {path} from the Hugging Face Hub")
        )
    files = f", {found.files} files" if found.files > 1 else ""
    output.narrate(f"{path}: split {found.split}{files}, commit {found.revision[:8]}, in {found.path}")
    return found.path


def dataset_command(*settings: str) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """``DATASET`` (a file, or a Hugging Face name that is fetched), ``--map``, ``--json``, and flags of settings.

    The function is called with a ``RunConfig`` of these, ``as_json``, and ``model`` where that is among the settings:
    ``None`` where none was named.
    """
    names = ("mapping", *settings)

    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(function)
        def command(path: str, verbose: bool, **given: Any) -> int | None:
            named = {name: given.pop(name) for name in names}
            if "model" in named:
                given["model"] = named["model"]
            return function(_dataset_config(path, named), **given)

        argument = click.argument("path", metavar="DATASET")
        return argument(options.setting_options(*names)(options.json_and_verbose(command)))

    return decorate


def _dataset_config(path: str, named: dict[str, Any]) -> RunConfig:
    from backprop.data.example import require_parts

    config = resolve({**named, "data": path}).config()
    require_parts(config.mapping)
    return msgspec.structs.replace(config, data=dataset_file(path))


MODEL_SETTINGS = ("model", "max_seq_length", "backend")
"""Which model is asked, how long rows may be for it, and where it runs."""

scores_option = click.option(
    "--scores", "scores_file", type=Path, metavar="FILE", help="scores that `data score` wrote, instead of --model"
)
"""What ``backprop data score`` wrote, in place of asking the model again."""


def find_scores(config: RunConfig, model: str | None, scores_file: Path | None) -> Scores | None:
    """The scores that the options ask for: from a file, from a model, or none."""
    options.require_effect(max_seq_length=(model, "--model"), backend=(model, "--model"))
    if scores_file is not None and model is not None:
        raise InputError("--scores and --model exclude each other", hint="name one of the two")
    if scores_file is not None:
        from backprop.data.quality import read_scores

        return read_scores(scores_file)
    return None if model is None else ask(config)[0]


def ask(config: RunConfig) -> tuple[Scores, Scored]:
    """Have an engine process score the rows by the model; its progress is shown where somebody watches."""
    from backprop.data.quality import Scores
    from backprop.runs.engine_jobs import ask_engine

    rows: list[RowScore] = []
    with ProgressLine("scoring", in_bytes=False) as progress:

        def report(message: Message) -> None:
            if isinstance(message, RowScores):
                rows.extend(message.rows)
            else:
                progress.report(message)

        summary = ask_engine(JOB, config, Scored, report)
    return Scores(rows), summary


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
