"""What is said of rows that train nothing: before there is a run, while they are made ready, and of held-out ones."""

from __future__ import annotations

from collections import Counter

from backprop.core.errors import DatasetError, DatasetFormatError, DatasetValidationError
from backprop.core.events import DatasetPrepared
from backprop.core.methods import METHODS, Rows
from backprop.data.formats import other_method

_LEARNS_FROM = {"pairs": "pairs of a chosen and a rejected answer", "feedback": "answers with a label, good or bad"}


def none_usable(summary: DatasetPrepared, counts: Counter[str], rows: Rows) -> DatasetError:
    """The error where no row is left; ``counts``: what is wrong with them, by code."""
    path, first = summary.path, min(summary.problems, key=lambda problem: problem.line)
    why = f"{summary.unit} {first.line}: {first.message}"
    if set(counts) == {"unknown_format"}:
        return DatasetFormatError(
            f"{path}: no row has a known format ({why})",
            hint="say which field is what, for instance: --map instruction=question --map output=answer",
            details={"path": path, "line": first.line},
        )
    most = ", ".join(f"{count} {code}" for code, count in counts.most_common(4))
    hint = "`backprop validate` lists every problem"
    if counts["answer_lost"]:
        hint += "; a larger --max-seq-length keeps longer answers"
    if counts["trace_too_short"] + counts["trace_too_long"] + counts["trace_unbalanced"] == summary.rows:
        hint = "no row has a reasoning trace that --reasoning-trace could use: leave it out to train the answers alone"
    return DatasetError(
        f"{path}: none of {summary.rows} rows can be trained ({most}); {why}",
        code="DATASET_NOTHING_TO_TRAIN",
        hint=other_method(summary.format, rows) or hint,
        details={"path": path, "problems": dict(counts)},
    )


def some_unusable(summary: DatasetPrepared, method: str) -> DatasetValidationError:
    """The error where the others are trained only with ``skip_bad``; it names the first of them."""
    shown = [problem for problem in summary.problems if problem.severity == "error"][:3]
    rows = METHODS[method].rows
    learns = _LEARNS_FROM.get(rows, "") if {"no_pair", "no_label"} & {*summary.problem_counts} else ""
    return DatasetValidationError(
        f"{summary.path}: {summary.unusable} of {summary.rows} rows would train nothing; "
        + "; ".join(f"{summary.unit} {problem.line}: {problem.message}" for problem in shown)
        + (f"; {method} learns from {learns}" if learns else ""),
        hint="; or ".join(filter(None, [other_method(summary.format, rows), _way_out(summary)])),
        details={
            **{"path": summary.path, "rows": summary.unusable, "lines": [problem.line for problem in shown]},
            "remedy": {"max_seq_length": summary.answers_fit} if summary.answer_lost else {"skip_bad": True},
        },
    )


def _way_out(summary: DatasetPrepared) -> str:
    others = "train on the others with --skip-bad"
    if not summary.answer_lost:
        return f"{others}, or repair them: `backprop validate` lists them all"
    hint = (
        f"every answer fits with --max-seq-length {summary.answers_fit} (more memory, and a model that reads as many)"
    )
    hint += f"; or {others}"
    return hint + "; `backprop validate` lists them all" if summary.dropped else hint
