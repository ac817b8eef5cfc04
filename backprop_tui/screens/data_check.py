"""Third layer of the Data screen: what is wrong, what will be trained, how long the rows are."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from backprop.core.errors import ModelLoadError
from backprop.core.events import Problem
from backprop.core.models import find_tokenizer
from backprop.core.presets import EMBEDDED_MODEL
from backprop.core.settings import RunConfig
from backprop.data.reader import Row
from msgspec.structs import fields
from textual import on
from textual.app import ComposeResult

from backprop_tui.screens.data_lengths import CountedLengths, count_lengths, histogram_lines
from backprop_tui.screens.data_messages import Checked, Counted, FoundSoFar, ModelChosen, Opened
from backprop_tui.screens.data_rows import problem_text
from backprop_tui.screens.data_search import DataSearch
from backprop_tui.screens.data_statistics import statistics_lines
from backprop_tui.screens.data_tokens import token_lines
from backprop_tui.screens.data_work import Job
from backprop_tui.widgets.histogram import Histogram
from backprop_tui.widgets.line_list import LineList
from backprop_tui.widgets.path_input import Prompt
from backprop_tui.widgets.problem_list import ProblemList
from backprop_tui.widgets.row_view import RowView
from backprop_tui.widgets.styled import Line, one_line

if TYPE_CHECKING:
    from backprop.data.scores import PerplexityReport
    from backprop.data.tokenizer import ChatTokenizer
    from backprop.data.validate import Validation

DEFAULT_LIMIT: int = {field.name: field.default for field in fields(RunConfig)}["max_seq_length"]
_OF_THE_FILE = ("duplicate_row", "held_out_overlap", "special_token", "nul_byte", "mixed_format")
"""Findings that reading the row alone does not give."""
_EVERY = 0.5
"""Seconds between two looks at what a check has found so far."""
_LIMITS = [2**power for power in range(4, 21)]


class DataCheck(DataSearch):
    """Checks, counts, and shows rows as tokens."""

    VIEWS = ("chat", "JSON", "tokens")

    def __init__(self, path: str = "") -> None:
        super().__init__(path)
        self.model = EMBEDDED_MODEL
        self.tokenizer: ChatTokenizer | None = None
        self.no_tokenizer: ModelLoadError | None = None
        """Why there is no tokenizer, once it was looked for."""
        self.limit = DEFAULT_LIMIT
        self.found: Validation | None = None
        self.lengths: CountedLengths | None = None
        self.hardness: PerplexityReport | None = None
        self._bad_lines: array[int] = array("Q")
        self._stepped_to = 0
        self._counting: Job | None = None

    def compose_side(self) -> ComposeResult:
        yield ProblemList(id="problems")
        yield Histogram(self._draw_lengths, id="lengths")
        yield RowView(id="statistics")

    @on(Opened)
    def _forget_findings(self) -> None:
        self.found = self.hardness = None
        self._stop_counting()
        self._bad_lines = array("Q")
        self._stepped_to = 0
        self.query_one(ProblemList).say("not checked")

    # The model whose tokens are shown

    def action_model(self) -> None:
        """Ask for the model whose tokenizer is used."""
        self.query_one(Prompt).ask(
            "model",
            "Tokens of the model",
            self.model,
            endings=("tokenizer.json",),
            help=f"{EMBEDDED_MODEL}, a preset, a Hugging Face name fetched before, or a directory",
        )

    def needs_model(self) -> bool:
        """Whether the tokenizer is still to be looked for: reading it takes a moment, so it is done when it is used."""
        return self.tokenizer is None and self.no_tokenizer is None and "model" not in self.jobs

    def action_next_view(self) -> None:
        super().action_next_view()
        if self.VIEWS[self.view] == "tokens" and self.needs_model():
            self.find_model(self.model)

    def find_model(self, name: str) -> None:
        """Load a tokenizer in a thread."""

        def load(job: Job) -> None:
            from backprop.data.tokenizer import ChatTokenizer

            try:
                made = ModelChosen(name, ChatTokenizer.load(find_tokenizer(name)), None)
            except ModelLoadError as error:
                made = ModelChosen(name, None, error)
            if not job.stopped():
                self.post_message(made)

        self.begin("model", f"reading the tokenizer of {name}", load)

    @on(ModelChosen)
    def _take_model(self, event: ModelChosen) -> None:
        self.model, self.tokenizer, self.no_tokenizer = event.name, event.tokenizer, event.why
        self._stop_counting()
        if event.tokenizer is not None and event.tokenizer.notes:
            self.say(event.tokenizer.notes[0])
        self.show_detail(again=True)
        if self.opened is not None and self.side.current == "lengths":
            self._count()

    def row_lines(self, row: Row, view: str) -> list[Line]:
        if view != "tokens":
            return [*self._findings_of(row.line), *super().row_lines(row, view)]
        if self.tokenizer is None:
            return problem_text(self.no_tokenizer) if self.no_tokenizer else [(("reading the tokenizer …", "dim"),)]
        assert self.opened is not None
        brackets = self.app.no_color
        head: Line = (("model   ", "dim"), (one_line(self.model), ""), ("  (m: another one)", "dim"))
        return [head, *token_lines(row, self.opened.file, self.tokenizer, self.limit, brackets=brackets)]

    # What is wrong

    def action_check(self) -> None:
        """Check every row, in a thread."""
        opened = self.opened
        if opened is None:
            return

        def check(job: Job) -> None:
            from backprop.data.validate import validate

            told, known = time.monotonic(), 0

            def so_far(problems: Sequence[Problem], counts: Mapping[str, int]) -> None:
                nonlocal told, known
                if len(problems) > known and (not known or time.monotonic() - told > _EVERY):
                    told, known = time.monotonic(), len(problems)
                    self.post_message(FoundSoFar(opened.path, list(problems), dict(counts)))

            found = validate(opened.path, progress=job.progress, cancelled=job.stopped, so_far=so_far)
            self.post_message(Checked(opened.path, found))

        self.begin("check", "checking", check)
        self.query_one(ProblemList).say("checking every row …")

    @on(FoundSoFar)
    def _list_findings(self, event: FoundSoFar) -> None:
        opened = self.opened
        if opened is not None and event.path == opened.path and "check" in self.jobs:
            self.query_one(ProblemList).show(event.problems, event.counts, opened.source.unit)

    @on(Checked)
    def _take_findings(self, event: Checked) -> None:
        if self.opened is None or event.path != self.opened.path:
            return
        found = self.found = event.found
        lines = {problem.line for problem in found.problems if problem.line and problem.severity != "info"}
        self._bad_lines = array("Q", sorted(lines))
        part = "" if found.complete else ", stopped before the end"
        listed = self.query_one(ProblemList)
        if found.problems:
            listed.show(found.problems, found.problem_counts, found.unit)
        else:
            listed.say(f"nothing to say about {found.rows:,} rows{part}")
        self.notice = f"checked {found.rows:,} rows: {found.invalid:,} unusable, {len(lines):,} to look at{part}"
        self.table.forget()
        self._draw_statistics()
        if self.side.current == "detail" and found.problem_counts:
            self.notice += " (p lists them, n goes to the next)"
        self.flush()

    def _findings_of(self, line: int) -> list[Line]:
        """What the check said of one line, beyond what reading the row alone tells."""
        found = self.found
        at = bisect_left(self._bad_lines, line)
        if found is None or at == len(self._bad_lines) or self._bad_lines[at] != line:
            return []
        first = bisect_left(found.problems, line, key=lambda problem: problem.line)
        last = bisect_right(found.problems, line, key=lambda problem: problem.line)
        return [
            ((f"! {problem.code}: {one_line(problem.message)}", "warning"),)
            for problem in found.problems[first:last]
            if problem.code in _OF_THE_FILE
        ]

    def action_problems(self) -> None:
        """The list of findings; a check is started where there was none."""
        if self.opened is None:
            return
        if self.found is None and "check" not in self.jobs:
            self.action_check()
        self.show_pane("problems")

    @on(ProblemList.Picked)
    def _go_to_problem(self, event: ProblemList.Picked) -> None:
        if event.problem.line:
            self.side.current = "detail"
            self.go_to_line(str(event.problem.line))
            self.go_inside()
        else:
            self.say(event.problem.message)

    def action_step(self, by: int) -> None:
        """The next or previous hit of a search; without a search, the next or previous row with a finding."""
        if "search" in self.words or self.opened is None:
            super().action_step(by)
        elif self.found is None:
            self.say("c checks the file, then n and N go to the next and the previous finding")
        elif not len(self._bad_lines):
            self.say("the check found nothing to look at")
        else:
            here = self._stepped_to or self.table.line_of_cursor()
            at = bisect_right(self._bad_lines, here) if by > 0 else bisect_left(self._bad_lines, here) - 1
            self._stepped_to = self._bad_lines[at % len(self._bad_lines)]
            self.go_to_line(str(self._stepped_to))

    @on(LineList.Moved, "#rows")
    def _forget_step(self) -> None:
        self._stepped_to = 0

    # How long the rows are

    def action_lengths(self) -> None:
        """The lengths of the rows; they are counted where they were not."""
        if self.opened is None:
            return
        self.show_pane("lengths")
        if self.needs_model():
            self.find_model(self.model)
        elif self.lengths is None and "lengths" not in self.jobs:
            self._count()

    def _count(self) -> None:
        opened, tokenizer = self.opened, self.tokenizer
        assert opened is not None

        def count(job: Job) -> None:
            count_lengths(opened, tokenizer, job, lambda lengths: self.post_message(Counted(job, lengths)))

        self.begin("lengths", "counting tokens" if tokenizer is not None else "counting characters", count)
        self._counting = self.jobs["lengths"]

    def _stop_counting(self) -> None:
        if self._counting is not None:
            self._counting.stop()
        self._counting = self.lengths = None

    @on(Counted)
    def _take_lengths(self, event: Counted) -> None:
        if event.job is self._counting:
            self.lengths = event.lengths
            self._draw_statistics()
            if self.side.current == "lengths":
                self.query_one(Histogram).redraw()

    def _draw_lengths(self, width: int, height: int) -> list[Line]:
        if self.lengths is None:
            return [(("counting …", "dim"),)]
        keys: Line = ((f"limit {self.limit:,}", "heading"), ("  (+ and - change it, = asks)", "dim"))
        return [keys, *histogram_lines(self.lengths, self.limit, width, height - 1)]

    def action_limit(self, by: int) -> None:
        """The next longer or shorter power of two as the limit."""
        higher = [limit for limit in _LIMITS if limit > self.limit]
        lower = [limit for limit in _LIMITS if limit < self.limit]
        self._set_limit(higher[0] if by > 0 and higher else lower[-1] if by < 0 and lower else self.limit)

    def action_ask_limit(self) -> None:
        self.query_one(Prompt).ask("limit", "Longest row in tokens", str(self.limit))

    def _set_limit(self, limit: int) -> None:
        self.limit = limit
        self.query_one(Histogram).redraw()
        if self.VIEWS[self.view] == "tokens":
            self.show_detail(again=True)

    # Statistics

    def action_statistics(self) -> None:
        """What is known of the file."""
        if self.opened is not None:
            self.show_pane("statistics")
            self._draw_statistics()

    def _draw_statistics(self) -> None:
        if self.opened is not None and self.side.current == "statistics":
            lines = statistics_lines(self.opened, self.found, self.lengths, self.model, self.hardness)
            self.query_one("#statistics", RowView).show_wrapped(lines)

    def answer(self, kind: str, text: str) -> None:
        if kind == "model" and text:
            self.tokenizer = self.no_tokenizer = None
            self.find_model(text.rstrip("/").removesuffix("/tokenizer.json"))
        elif kind == "limit":
            if text.replace(",", "").isdecimal() and int(text.replace(",", "")) >= _LIMITS[0]:
                self._set_limit(int(text.replace(",", "")))
            else:
                self.say(f"{text!r}: a whole number of tokens from {_LIMITS[0]} is needed")
        else:
            super().answer(kind, text)
