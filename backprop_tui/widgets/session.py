"""A session of several runs: what became of each of them, and what was forgotten on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from backprop.core.events import HeldOutScored, MergeDone, RunBegun
from backprop.core.multi_run import FORGOTTEN
from backprop.runs.describe import describe, describe_averages, number, signed
from backprop.runs.forgetting import Forgetting
from backprop.runs.state import RunState
from textual.binding import Binding, BindingType

from backprop_tui.text import STATUS, Piece, Row, count, fit, from_home, safe, short_path
from backprop_tui.widgets.cells import StateCells, labelled, paragraph
from backprop_tui.widgets.list_view import ListView

_CELL, _NAME = 8, 11
"""Cells of a loss with its mark, and of what a row of the table is called."""
_NUMBERS = ("steps", 7), ("B moved", 9), ("merged", 9), ("tuned", 9)
LEGEND = (
    "▲ above, ▼ below the loss when that run was learned (until then: the base's); AA is the mean of the runs learned, "
    "BWT how far they have risen since"
)


def run_number(state: RunState) -> str:
    """``2 of 5``: which run of a session is the present one; empty before the first, and of what is no session."""
    return f"{state.runs[-1].index} of {state.runs[-1].of}" if state.runs else ""


def timeline(state: RunState, width: int) -> list[tuple[int, Row]]:
    """The runs of a session in order, those to come too: each row with the number of its run."""
    begun = {each.index: each for each in state.runs}
    merges = {each.index: each for each in state.merges}
    tasks = state.multi.get("tasks") or [""]
    found: list[tuple[int, Row]] = []
    for index in range(1, (state.runs[-1].of if state.runs else 0) + 1):
        run, merge = begun.get(index), merges.get(index)
        glyph, ink, word = outcome(state, index)
        data = run.data if run else tasks[min(index, len(tasks)) - 1]
        end = begun[index + 1].step if index + 1 in begun else state.step
        moved, *losses = (merge.moved, merge.loss, merge.tuned_loss) if merge else [None] * 3
        numbers = [count(end - run.step) if run else "–", "–" if moved is None else f"{moved:.0%}"]
        numbers += ["–" if loss is None else number(loss) for loss in losses]
        text = fit(safe(short_path(data)), _data_width(width))
        cells = "".join(f"{cell:>{size}}" for cell, (_, size) in zip(numbers, _NUMBERS, strict=True))
        row: Row = [("  ", "text"), (f"{glyph} {index:<3}", ink), (f"{text} ", "text"), (f"{word:<11}", ink)]
        found.append((index, [*row, (cells, "text")]))
        if merge is not None and merge.reason:
            found.append((index, [(" " * 7, "text"), (safe(merge.reason), ink)]))
    return found


def timeline_head(width: int) -> Row:
    titles = "".join(f"{title:>{size}}" for title, size in _NUMBERS)
    return [(fit("   run data", _data_width(width) + 7), "muted"), (f" {'status':<11}{titles}", "muted")]


def _data_width(width: int) -> int:
    return max(6, width - 19 - sum(size for _, size in _NUMBERS))


def outcome(state: RunState, index: int) -> tuple[str, str, str]:
    """Glyph, ink and word for what became of a run of a session."""
    merge = next((each for each in state.merges if each.index == index), None)
    if merge is not None and merge.merged:
        return "✓", "good", "merged"
    if merge is not None:
        return (*STATUS["failed"], "failed") if merge.failed else ("–", "warn", "kept out")
    if state.runs and state.runs[-1].index == index:
        return *STATUS[state.status], state.status
    return " ", "muted", "not taken" if state.status == "done" else "to come"


def change(table: Forgetting, cell: HeldOutScored) -> float | None:
    """How far a loss is above that of the same rows when their run was learned, before that above the base model's."""
    learned = cell.held_out in table.learned and cell.after > cell.held_out
    before = table.cell(cell.held_out if learned else 0, cell.held_out) if cell.after else None
    if before is None or before.loss is None or cell.loss is None:
        return None
    return round(cell.loss - before.loss, 3)


def piece(table: Forgetting, after: int, held_out: int, ground: str = "") -> Piece:
    """A cell as number, mark and colour: the mark tells the direction, the ground how far."""
    cell, here = table.cell(after, held_out), "▸" if ground else " "
    if cell is None:
        return f"{here:<{_CELL}}", f"text{ground}"
    text = "nan" if cell.loss is None else number(cell.loss, 3 if cell.loss < 100 else 0)
    by = change(table, cell)
    mark, ink = (" ", "text" if cell.after else "muted") if not by else ("▲", "bad") if by > 0 else ("▼", "good")
    if by and not ground:
        ink += ("+light", "+lighter", "+warm", "+hot")[2 * (by > 0) + (abs(by) >= FORGOTTEN)]
    return f"{here}{text:>{_CELL - 2}}{mark}", ink + "+bold" * (after == held_out) + ground


def table_head(columns: list[int], more: tuple[bool, bool] = (False, False)) -> Row:
    before, behind = ("‹" if more[0] else " "), (" ›" if more[1] else "")
    names = "".join(f"{f'run {each}':>{_CELL - 1}} " for each in columns)
    return [(f"  {'rows of':<{_NAME - 3}}{before}{names}{behind}", "muted")]


def table_row(state: RunState, after: int, columns: list[int], at: int = 0) -> Row:
    """One row of the table: what the adapter scores after a run. The cursor is in column ``at``, 0 is nowhere."""
    glyph, ink, _ = outcome(state, after)
    name = [(f"{glyph} ", ink), (f"{f'after {after}' if after else 'base':<{_NAME - 2}}", "text")]
    return [*name, *(piece(state.forgetting, after, each, "+cursor" * (each == at)) for each in columns)]


def averages_rows(table: Forgetting, after: int, width: int) -> list[Row]:
    """AA and BWT after a run."""
    found = table.averages(after)
    risen = found.backward is not None and found.backward > 0
    ink = "bad" if risen else "text"
    return labelled("▲ " if risen else "  ", describe_averages(found), width, ink, label_ink=ink)


def forgetting_rows(state: RunState, width: int) -> list[Row]:
    """The whole table, in as many parts as its columns need, with AA and BWT."""
    table, fits = state.forgetting, max(1, (width - _NAME) // _CELL)
    rows: list[Row] = []
    for first in range(0, len(table.columns), fits):
        columns = table.columns[first : first + fits]
        rows.append(table_head(columns))
        shown = [after for after in table.rows if any(table.cell(after, each) for each in columns)]
        rows += [table_row(state, after, columns) for after in shown]
    return [*rows, *averages_rows(table, max(table.rows), width), *paragraph(LEGEND, width, "muted")] if rows else []


class _SessionList(ListView, StateCells):
    """A list with a head, and with words below it about what the cursor is on."""

    def foot(self) -> list[Row]:
        raise NotImplementedError

    @property
    def text_width(self) -> int:
        return max(1, self.size.width - 1)

    @property
    def body_height(self) -> int:
        return max(1, super().body_height - len(self.foot()))

    def rows(self, width: int, height: int) -> list[Row]:
        foot = self.foot()
        return [*super().rows(width, height - len(foot)), *foot]


class RunsPane(_SessionList):
    """The runs of a session; enter opens the one under the cursor, which stays on the present one until it is moved."""

    _lines: Sequence[tuple[int, Row]] = ()
    _present = 0

    def show(self, state: RunState | None) -> None:
        follows = self._at == self._present
        self.state = state
        self._present = state.runs[-1].index if state and state.runs else 0
        self._lines = timeline(state, self.text_width) if state else []
        self.resize_list(len(self._lines))
        if follows:
            self.cursor = next((i for i, (index, _) in enumerate(self._lines) if index == self._present), 0)

    @property
    def _at(self) -> int:
        """The number of the run under the cursor, 0 where there is none."""
        return self._lines[self.cursor][0] if self._lines else 0

    def head(self) -> list[Row]:
        return [timeline_head(self.text_width)] if self._lines else [[("no run has begun yet", "muted")]]

    def window(self, first: int, number: int) -> list[Row]:
        self._lines = timeline(self.state, self.text_width) if self.state else []
        return super().window(first, number)

    def row_at(self, index: int, width: int) -> Row:
        return self._lines[index][1]

    def under_cursor(self, row: Row, width: int) -> Row:
        return super().under_cursor([("▸ ", "info+bold"), (row[0][0][2:], row[0][1]), *row[1:]], width)

    def foot(self) -> list[Row]:
        """The whole of what is known of the run under the cursor."""
        events: list[RunBegun | MergeDone] = [*self.state.runs, *self.state.merges] if self.state else []
        words = [describe(each) for each in events if each.index == self._at]
        return [row for text in ["", *words] for row in paragraph(from_home(text), self.text_width)] if words else []

    @property
    def chosen(self) -> str:
        """The id of the run under the cursor; empty where it has none yet."""
        return next((each.run for each in self.state.runs if each.index == self._at), "") if self.state else ""


class ForgettingPane(_SessionList):
    """The table with a cursor: below it AA and BWT after that run, and all of that cell."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "across(-1)", "left", show=False),
        Binding("right", "across(1)", "right", show=False),
    ]
    _column = _first = 0
    """Which of the columns the cursor is in, and which is the first that is seen."""

    def show(self, state: RunState | None) -> None:
        seen = state and (state.path, state.forgetting.cells, len(state.merges), state.status)
        if seen == self._seen:
            return
        at_end, self._seen = self.cursor >= self.count - 1, seen
        self.state = state
        self.resize_list(len(state.forgetting.rows) if state else 0)
        self.cursor = self.count - 1 if at_end else self.cursor

    def action_across(self, columns: int) -> None:
        most = len(self.state.forgetting.columns) - 1 if self.state else 0
        self._column = max(0, min(most, self._column + columns))
        self.redraw()

    def _columns(self) -> list[int]:
        """Those that are seen: the cursor's is among them."""
        every = self.state.forgetting.columns if self.state else []
        fits = max(1, (self.text_width - _NAME - 2) // _CELL)
        self._column = max(0, min(self._column, len(every) - 1))
        self._first = max(self._column - fits + 1, min(self._first, self._column, max(0, len(every) - fits)))
        return every[self._first : self._first + fits]

    def head(self) -> list[Row]:
        if not self.count or self.state is None:
            return paragraph("no held-out rows are scored yet: the base model comes first", self.size.width, "muted")
        seen = self._columns()
        more = self._first > 0, self._first + len(seen) < len(self.state.forgetting.columns)
        return [table_head(seen, more)]

    def row_at(self, index: int, width: int) -> Row:
        assert self.state is not None
        at = self.state.forgetting.columns[self._column] if index == self.cursor else 0
        return table_row(self.state, self.state.forgetting.rows[index], self._columns(), at)

    def under_cursor(self, row: Row, width: int) -> Row:
        return row

    def foot(self) -> list[Row]:
        """AA, BWT and the cell under the cursor."""
        if not self.count or self.state is None:
            return []
        table, width = self.state.forgetting, self.size.width
        after, held_out = table.rows[self.cursor], table.columns[self._column]
        words = paragraph(cell_words(table, after, held_out), width)
        return [[], *averages_rows(table, after, width), [], *words, *paragraph(LEGEND, width, "muted")]


def cell_words(table: Forgetting, after: int, held_out: int) -> str:
    """Everything that is known of a cell, with n and its interval."""
    cell = table.cell(after, held_out)
    where = f"{f'after run {after}' if after else 'base model'}, rows of run {held_out}: "
    if cell is None:
        return f"{where}not scored, for it comes later"
    sure = "" if cell.low is None or cell.high is None else f"95 % {number(cell.low, 3)} to {number(cell.high, 3)}, "
    words = f"{where}{number(cell.loss, 3)} ({sure}n {count(cell.rows)})"
    by = change(table, cell)
    words += f", {'▲' if by > 0 else '▼'} {signed(by)}" if by else ""
    return words if cell.exact is None else f"{words}; {cell.exact:.0%} of {count(cell.answers)} answers exact"
