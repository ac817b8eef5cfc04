"""A cleaned copy beside the original: what is left out of it, and what was. Nothing is written over a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backprop.core.errors import InputError

from backprop_tui.keys import press
from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.tasks import Task, Tasks
from backprop_tui.text import Row, safe
from backprop_tui.widgets.cells import fact
from backprop_tui.widgets.path_input import Prompt

if TYPE_CHECKING:
    from backprop.core.methods import Rows
    from backprop.data.clean import CleanResult, Rules
    from backprop.data.quality import Scores

HELP = (
    "and without: near (duplicates) · lengths · traces · language:en,de · perplexity:50 · outliers; "
    "in order: curriculum"
)
_LISTED = 500


def ask_and_write(
    prompt: Prompt,
    opened: OpenFile,
    find_scores: Callable[[], Scores | None],
    tasks: Tasks,
    show: Callable[[list[Row], str], object],
    *,
    rows: Rows,
) -> None:
    """Ask, then write a copy without unusable and repeated rows, and without what is named in the answer.

    Args:
        show: called with the result in full and in short.
        rows: what the method that is configured learns from.
    """
    from backprop.data.clean import clean_file
    from backprop.data.examples import beside

    def write(task: Task[CleanResult], words: str) -> CleanResult:
        rules, scores = rules_from(words), find_scores()
        if rules.need_scores and scores is None:
            hint = f"press {press('data.hardest')} first, then leave rows out by what it finds"
            raise InputError("no model has scored the rows yet", hint=hint)
        watched: dict[str, Any] = {"progress": task.progress, "cancelled": task.stopped}
        return clean_file(opened.path, rules, scores=scores, rows=rows, **watched)

    def take(result: CleanResult) -> None:
        show(
            result_lines(result, opened.source.unit),
            f"wrote {result.kept:,} of {result.rows:,} rows to {result.output}",
        )

    name = safe(beside(Path(opened.path), "clean").name)
    prompt.ask(
        f"Write {name} beside it, without unusable rows and exact duplicates? enter writes",
        lambda words: tasks.begin("clean", "writing the cleaned copy", lambda task: write(task, words), take),
        help=HELP,
    )


def rules_from(words: str) -> Rules:
    """What a person asked to leave out.

    Raises:
        InputError: a word that is no rule.
    """
    from backprop.data.clean import Rules
    from backprop.data.dedup import THRESHOLD
    from backprop.data.quality import LengthLimits
    from backprop.data.traces import TraceLimits

    asked = words.lower().split()
    languages = [word.removeprefix("language:") for word in asked if word.startswith("language:")]
    limits = [word.removeprefix("perplexity:") for word in asked if word.startswith("perplexity:")]
    plain = {word for word in asked if not word.startswith(("language:", "perplexity:"))}
    wrong = sorted(plain - {"near", "lengths", "traces", "outliers", "curriculum"})
    wrong += [f"perplexity:{limit}" for limit in limits if not limit.replace(".", "", 1).isdecimal()]
    if wrong:
        raise InputError(
            f"{wrong[0]!r} is nothing that can be left out",
            hint="near, lengths, traces, language:en,de, perplexity:50, outliers or curriculum; or nothing at all",
        )
    return Rules(
        near=THRESHOLD if "near" in plain else None,
        lengths=LengthLimits() if "lengths" in plain else None,
        traces=TraceLimits() if "traces" in plain else None,
        languages=frozenset(code for codes in languages for code in codes.split(",") if code),
        curriculum="curriculum" in plain,
        max_perplexity=min(map(float, limits)) if limits else None,
        perplexity_outliers="outliers" in plain,
    )


def result_lines(result: CleanResult, unit: str) -> list[Row]:
    lines: list[Row] = [
        [(f"{result.kept:,} of {result.rows:,} rows written", "strong+bold")],
        fact("to", safe(result.output), width=8),
        fact("report", safe(result.report), width=8),
        [],
    ]
    if not result.removed:
        return [*lines, [("Nothing was left out.", "text")]]
    lines.append([("Left out", "strong+bold")])
    lines += [[(f"{count:>9,} ", "warn"), (reason, "text")] for reason, count in result.removed.items()]
    lines.append([])
    for row in result.left_out[:_LISTED]:
        detail = f"  {safe(row.detail)}" if row.detail else ""
        lines.append([(f"{unit} {row.line:,} ", "muted"), (row.reason, "warn"), (detail, "text")])
    if len(result.left_out) > _LISTED:
        lines.append([(f"… {len(result.left_out) - _LISTED:,} more: see the report", "muted")])
    return lines
