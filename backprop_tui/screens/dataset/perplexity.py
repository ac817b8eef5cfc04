"""How hard each row is for the model, computed in an engine process; the hardest rows come first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING

from backprop.core import jobs
from backprop.core.settings import RunConfig
from backprop.runs.engine_jobs import ask_engine

from backprop_tui.keys import press
from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.screens.dataset.run_scores import run_scores
from backprop_tui.screens.dataset.tokens import Chosen
from backprop_tui.screens.tasks import GoToLine, Notice, Task, Tasks
from backprop_tui.text import Row, rows_of, safe
from backprop_tui.widgets.cells import fact
from backprop_tui.widgets.list_view import ListView

if TYPE_CHECKING:
    from backprop.data.quality import PerplexityReport, Scores

ENGINE = "backprop.train.jobs.perplexity"
_Scores = tuple[list[jobs.RowScore], jobs.Scored | None]
"""Rows scored so far; with a summary, all of them."""
_HEAD = f"{'':>14}{'perplexity':>14}{'loss':>9}{'trained':>10}"
_RUN_HEAD = f"{'':>14}{'loss':>9}   text (! before it: far from the others)"


class ScoresPane(ListView):
    """A few words about the scores, then a row for each row that was scored; choosing one goes there."""

    def __init__(self, chosen: Chosen, tasks: Tasks, *, id: str) -> None:
        super().__init__(id=id)
        self._chosen, self._tasks = chosen, tasks
        self._asked = ("", 0)
        """Model and limit of the scores on screen."""
        self.scores: Scores | None = None
        """Those of every row, once they are known."""
        self.report: PerplexityReport | None = None
        self._words: list[Row] = []
        self._rows: Sequence[jobs.RowScore] = ()
        self._far: frozenset[int] = frozenset()
        self._texts: Mapping[int, str] = {}
        self._unit = "line"

    def forget(self) -> None:
        """Another file."""
        self._begin("", ("", 0))

    def _begin(self, words: str, asked: tuple[str, int]) -> None:
        self.scores = self.report = None
        self._far, self._texts, self._asked = frozenset(), {}, asked
        self._list([[(words, "muted")]] if words else [], ())

    def show_run(self, opened: OpenFile, path: str) -> None:
        """Show what the run in ``path`` scored, or the newest on this file where it is empty."""
        self._begin("reading the scores …", ("", 0))
        self._unit = opened.source.unit
        self._tasks.begin("score", "reading the scores", lambda _: run_scores(opened, path), self._take_run)

    def _take_run(self, news: tuple[jobs.Evaluation, dict[int, str]]) -> None:
        from backprop.data.quality import outliers

        found, self._texts = news
        rows = [jobs.RowScore(row.line, inf if row.loss is None else row.loss, row.tokens) for row in found.rows]
        finite = [row for row in rows if row.loss < inf]
        self._far = frozenset(finite[place].line for place in outliers([row.loss for row in finite]))
        by = fact("by", f"run {found.source} at step {found.step}, {rows_of(len(rows))}", width=8)
        self._list([by, [("held out by it, the hardest first", "strong+bold")], [(_RUN_HEAD, "muted")]], rows)

    def need_scores(self, opened: OpenFile) -> None:
        """Score the rows where they were not, or for another model or limit."""
        wanted = (self._chosen.model, self._chosen.limit)
        if self._asked == wanted and (self.scores is not None or self._tasks.goes_on("score")):
            return
        self._begin(f"scoring every row … ({press('data.stop')} stops it)", wanted)
        self._unit = opened.source.unit
        model, limit = wanted
        request = RunConfig(data=opened.path, model=model, max_seq_length=limit, mapping=opened.file.mapping)
        self._tasks.begin("score", f"starting {safe(model)}", lambda task: _listen(task, request), self._take)

    def _take(self, news: _Scores) -> None:
        from backprop.data.quality import Scores

        rows, summary = news
        scores, whole = Scores(rows), summary is not None
        if whole:
            self.scores, self.report = scores, scores.report()
            self._far = frozenset(self.report.outliers)
        words: list[Row] = [
            *_summary_lines(summary, self.report),
            [*fact("by", safe(self._asked[0]), width=8), (f", rows to {self._asked[1]:,} tokens", "muted")],
            [(f"{len(scores):,} rows scored{'' if whole else ' so far'}, the hardest first", "strong+bold")],
            [(_HEAD, "muted")],
        ]
        self._list(words, scores.hardest_first())
        if whole:
            self.post_message(Notice(f"scored {len(scores):,} rows"))

    def _list(self, words: list[Row], rows: Sequence[jobs.RowScore]) -> None:
        place = max(self.cursor - len(self._words), 0)
        self._words, self._rows = words, rows
        self.resize_list(len(words) + len(rows))
        self.cursor = len(words) + place
        self.top = self.top if place else 0

    def row_at(self, index: int, width: int) -> Row:
        if index < len(self._words):
            return self._words[index]
        row = self._rows[index - len(self._words)]
        numbers = f"{row.perplexity:>14,.2f}{row.loss:>9.3f}{row.tokens:>10,}  "
        mark = "! far from the others" if row.line in self._far else ""
        if (text := self._texts.get(row.line)) is not None:
            numbers, mark = f"{row.loss:>9.3f} {'!' if mark else ' '} ", text
        return [
            (f"{self._unit} {row.line:,}".rjust(14), "muted"),
            (numbers, "text"),
            (mark, "warn" if "!" in mark[:1] else "text"),
        ]

    def action_choose(self) -> None:
        if self._rows and self.cursor >= len(self._words):
            self.post_message(GoToLine(self._rows[self.cursor - len(self._words)].line))


def _listen(task: Task[_Scores], request: RunConfig) -> None:
    """Follow the engine, in a thread."""
    rows: list[jobs.RowScore] = []

    def report(message: jobs.Message) -> None:
        if isinstance(message, jobs.RowScores):
            rows.extend(message.rows)
            task.so_far(lambda: (list(rows), None))
        else:
            task.report(message)

    task.deliver((rows, ask_engine(ENGINE, request, jobs.Scored, report, task.when_started)))


def percentiles(report: PerplexityReport) -> str:
    """Of the rows' perplexities."""
    spread = report.per_row
    return "" if spread is None else f"p10 {spread.p10:,.2f} · p50 {spread.p50:,.2f} · p90 {spread.p90:,.2f}"


def _summary_lines(summary: jobs.Scored | None, found: PerplexityReport | None) -> list[Row]:
    """What the scores say as a whole."""
    if summary is None or found is None or found.per_row is None:
        return []
    whole = f"perplexity {found.perplexity:,.2f} over {found.tokens:,} trained tokens"
    lines = [fact("whole", whole, width=8), fact("per row", percentiles(found), width=8)]
    missing = summary.answer_lost + summary.dropped
    if missing:
        words = f"! {missing:,} rows have no score: {summary.answer_lost:,} answers do not fit, "
        lines.append([(words + f"{summary.dropped:,} cannot be used ({press('data.check')} lists why)", "warn")])
    return lines
