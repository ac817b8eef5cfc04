"""The Data screen's scores: how hard each row is for the model, computed in an engine process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backprop.core import jobs
from backprop.core.events import ModelLoading
from backprop.runs.describe import describe
from textual import on
from textual.app import ComposeResult

from backprop_tui.screens.dataset.file import Job, OpenFile
from backprop_tui.screens.dataset.findings import DataCheck
from backprop_tui.screens.dataset.messages import Opened, RowsScored
from backprop_tui.screens.dataset.score_list import ScoreList
from backprop_tui.widgets.styled import Line, one_line

if TYPE_CHECKING:
    from backprop.data.scores import PerplexityReport

ENGINE = "backprop.train.perplexity"
_EVERY = 1.0
"""Seconds between two looks at the rows scored so far."""


class DataScoring(DataCheck):
    """Asks the chosen model, at the chosen limit."""

    def __init__(self, path: str = "") -> None:
        super().__init__(path)
        self.scored: RowsScored | None = None
        self._scoring: Job | None = None
        self._asked = ("", 0)
        """Model and limit of the scores on screen."""

    def compose_side(self) -> ComposeResult:
        yield from super().compose_side()
        yield ScoreList(id="scores")

    @on(Opened)
    def _forget_scores(self) -> None:
        self.scored = self._scoring = None
        self.query_one(ScoreList).show([], [], (), "line")

    def action_scores(self) -> None:
        """The rows by how hard the model finds them; they are scored where they were not, or for another model."""
        opened = self.opened
        if opened is None:
            return
        wanted = (self.model, self.limit)
        whole = self.scored is not None and self.scored.summary is not None
        if self._asked != wanted or not (whole or "score" in self.jobs):
            self._score(opened)
        self.show_pane("scores")

    def _score(self, opened: OpenFile) -> None:
        self._asked = (self.model, self.limit)
        request = jobs.ScoreRequest(
            data=opened.path, model=self.model, max_length=self.limit, mapping=opened.file.mapping
        )
        self.scored = None
        self.begin("score", f"starting {one_line(self.model)}", lambda job: self._listen(job, request))
        self._scoring = self.jobs["score"]
        self.query_one(ScoreList).show([(("scoring every row … (x stops it)", "dim"),)], [], (), "line")

    def _listen(self, job: Job, request: jobs.ScoreRequest) -> None:
        """Follow the engine, in a thread."""
        from backprop.runs.engine_jobs import engine_job

        rows: list[jobs.RowScore] = []
        shown = time.monotonic()
        with engine_job(ENGINE, request) as engine:
            job.when_stopped(engine.stop)
            for message in engine.messages():
                match message:
                    case ModelLoading():
                        job.name = describe(message)
                        job.progress(message.done, message.total)
                    case jobs.Progress():
                        job.name = message.doing
                        job.progress(message.done, message.total)
                    case jobs.RowScores():
                        rows += message.rows
                        if time.monotonic() - shown > _EVERY:
                            self.post_message(RowsScored(job, list(rows), None))
                            shown = time.monotonic()
                    case jobs.Scored():
                        self.post_message(RowsScored(job, rows, message))

    @on(RowsScored)
    def _take_scores(self, event: RowsScored) -> None:
        if event.job is not self._scoring or self.opened is None:
            return
        self.scored = event
        scores = event.scores
        found = scores.report() if event.summary is not None else None
        words = [*_summary_lines(event.summary, found), *_head(self._asked, len(scores), event.summary)]
        far = frozenset(found.outliers) if found is not None else frozenset[int]()
        self.query_one(ScoreList).show(words, scores.hardest_first(), far, self.opened.source.unit)
        if event.summary is not None:
            self.hardness = found
            self.notice = f"scored {len(scores):,} rows"
            self._draw_statistics()
            self.flush()

    @on(ScoreList.Picked)
    def _go_to_scored(self, event: ScoreList.Picked) -> None:
        self.side.current = "detail"
        self.go_to_line(str(event.line))
        self.go_inside()


def _head(asked: tuple[str, int], rows: int, summary: jobs.Scored | None) -> list[Line]:
    part = "" if summary is not None else " so far"
    return [
        (("by      ", "dim"), (one_line(asked[0]), ""), (f", rows to {asked[1]:,} tokens", "dim")),
        ((f"{rows:,} rows scored{part}, the hardest first", "heading"),),
    ]


def _summary_lines(summary: jobs.Scored | None, found: PerplexityReport | None) -> list[Line]:
    """What the scores say as a whole."""
    if summary is None or found is None or found.per_row is None:
        return []
    spread = found.per_row
    lines: list[Line] = [
        (("whole   ", "dim"), (f"perplexity {found.perplexity:,.2f} over {found.tokens:,} trained tokens", "")),
        (("per row ", "dim"), (f"p10 {spread.p10:,.2f} · p50 {spread.p50:,.2f} · p90 {spread.p90:,.2f}", "")),
    ]
    missing = summary.answer_lost + summary.dropped
    if missing:
        words = f"! {missing:,} rows have no score: {summary.answer_lost:,} answers do not fit, "
        lines.append(((words + f"{summary.dropped:,} cannot be used (c lists why)", "warning"),))
    return lines
