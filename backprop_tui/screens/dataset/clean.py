"""Last layer of the Data screen: write a cleaned copy beside the original, and say what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backprop.core.errors import InputError
from textual import on

from backprop_tui.screens.dataset.file import Job
from backprop_tui.screens.dataset.messages import Cleaned
from backprop_tui.screens.dataset.perplexity import DataScoring
from backprop_tui.screens.dataset.row_view import RowView
from backprop_tui.widgets.path_input import Prompt
from backprop_tui.widgets.styled import Line, one_line

if TYPE_CHECKING:
    from backprop.data.clean import CleanResult, Rules

_LISTED = 500


class DataCleaning(DataScoring):
    """Writes nothing before it was asked, and never over a file."""

    def action_clean(self) -> None:
        """Ask, then write a copy without unusable and repeated rows."""
        if self.opened is None:
            return
        from backprop.data.writing import beside

        output = beside(Path(self.opened.path), "clean")
        self.query_one(Prompt).ask(
            "clean",
            f"Write {one_line(output.name)} beside it, without unusable rows and exact duplicates? enter writes",
            help="and without: near (duplicates) · lengths · traces · language:en,de · perplexity:50 · outliers; "
            "in order: curriculum",
        )

    def answer(self, kind: str, text: str) -> None:
        if kind == "clean":
            self._write(text)
        else:
            super().answer(kind, text)

    def _write(self, words: str) -> None:
        opened = self.opened
        if opened is None:
            return
        scores = self.scored.scores if self.scored is not None and self.scored.summary is not None else None

        def write(job: Job) -> None:
            from backprop.data.clean import clean_file

            rules = rules_from(words)
            if rules.need_scores and scores is None:
                raise InputError(
                    "no model has scored the rows yet", hint="press h first, then leave rows out by what it finds"
                )
            done = clean_file(opened.path, rules, scores=scores, progress=job.progress, cancelled=job.stopped)
            self.post_message(Cleaned(done))

        self.begin("clean", "writing the cleaned copy", write)

    @on(Cleaned)
    def _show_result(self, event: Cleaned) -> None:
        self.show_pane("report")
        self.query_one("#report", RowView).show_wrapped(_result_lines(event.result))
        self.say(f"wrote {event.result.kept:,} of {event.result.rows:,} rows to {event.result.output}")


def rules_from(words: str) -> Rules:
    """What a person asked to leave out.

    Raises:
        InputError: a word that is no rule.
    """
    from backprop.data.clean import Rules
    from backprop.data.dedup import THRESHOLD
    from backprop.data.quality import LengthLimits, TraceLimits

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


def _result_lines(result: CleanResult) -> list[Line]:
    lines: list[Line] = [
        ((f"{result.kept:,} of {result.rows:,} rows written", "heading"),),
        (("to      ", "dim"), (one_line(result.output), "")),
        (("report  ", "dim"), (one_line(result.report), "")),
        (),
    ]
    if not result.removed:
        return [*lines, (("Nothing was left out.", ""),)]
    lines.append((("Left out", "heading"),))
    lines += [((f"{count:>9,} ", "warning"), (reason, "")) for reason, count in result.removed.items()]
    lines.append(())
    for row in result.left_out[:_LISTED]:
        detail = one_line(row.detail)
        lines.append(((f"line {row.line:,} ", "dim"), (row.reason, "warning"), (f"  {detail}" if detail else "", "")))
    if len(result.left_out) > _LISTED:
        lines.append(((f"… {len(result.left_out) - _LISTED:,} more: see the report", "dim"),))
    return lines
