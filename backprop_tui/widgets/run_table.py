"""Every run, one a row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from backprop.core.multi_run import KIND as MULTI_RUN
from backprop.runs.describe import number
from backprop.runs.summary import SORTS, RunSummary, arranged
from textual.events import Click
from textual.message import Message

from backprop_tui.text import STATUS, Row, ago, clock, count, safe, short_number, short_path, verdict_piece
from backprop_tui.widgets.cells import cut, row_width
from backprop_tui.widgets.list_view import ListView

_BARS = "▁▂▃▄▅▆▇█"


class Column(NamedTuple):
    title: str
    width: int
    cell: Callable[[RunSummary, int], Row]
    narrow: int
    """Its width where there is no room for that; 0: not shown there."""
    right: bool = False


def bars(values: list[float | None], width: int) -> str:
    """A few values as a row of bars; a missing one is a gap."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / max(1, width - 1))] for i in range(width)]
    finite = [v for v in values if v is not None]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if v is None else _BARS[round((v - low) * scale)] for v in values)


def _status(run: RunSummary, width: int) -> Row:
    glyph, ink = STATUS.get(run.status, ("?", "warn"))
    return [(f"{glyph} {run.status}", ink), (" !" if run.damage else "", "warn")]


def _dataset(run: RunSummary, width: int) -> Row:
    session: Row = [("session ", "info")] if run.kind == MULTI_RUN else []
    return [*session, (safe(short_path(run.dataset)), "text")]


def _loss(run: RunSummary, width: int) -> Row:
    return [(number(run.smoothed_loss, 3) if run.smoothed_loss is not None else "–", "strong")]


def _steps(run: RunSummary, width: int) -> Row:
    if not run.total_steps:
        return [(count(run.steps), "text")]
    whole = f"{run.steps:,}/{run.total_steps:,}"
    taken, total = whole.split("/") if len(whole) <= width - 2 else map(short_number, (run.steps, run.total_steps))
    return [(taken, "text"), (f"/{total}", "muted")]


def _started(run: RunSummary, width: int) -> Row:
    return [(ago(max(0.0, time.time() - run.started_at)) if run.started_at else "–", "muted")]


def _helped(run: RunSummary, width: int) -> Row:
    return [verdict_piece(run.verdict, short=True)] if run.verdict else [("–", "muted")]


COLUMNS = (
    Column("status", 13, _status, 13),
    Column("run", 13, lambda run, width: [(run.run_id[: max(8, width - 1)], "strong")], 9),
    Column("name", 14, lambda run, width: [(safe(run.name), "text")], 0),
    Column("model", 17, lambda run, width: [(safe(short_path(run.model)), "text")], 13),
    Column("dataset", 20, _dataset, 0),
    Column("steps", 12, _steps, 11, right=True),
    Column("loss", 8, _loss, 8, right=True),
    Column("helped", 19, _helped, 0),
    Column("curve", 18, lambda run, width: [(bars(run.losses, width - 2), "info")], 10),
    Column("started", 11, _started, 11),
    Column("took", 8, lambda run, width: [(clock(run.duration_seconds), "muted")], 0),
)
"""Those whose titles are in ``SORTS`` can be sorted by."""
_WIDENED = ("dataset", "helped", "name", "steps", "took", "run", "model", "curve", "status", "loss", "started")
"""The order in which columns get their full width where there is room; names, where a run has one."""
_DROPPED = ("curve", "started", "model")
"""Those that are left out, in this order, where not even their narrow width has room."""


class RunTable(ListView):
    """``runs`` in the order in which they are shown; the cursor stays on its run when they change."""

    @dataclass
    class Titled(Message):
        """The title of a column was clicked."""

        title: str

    runs: Sequence[RunSummary] = ()
    empty: Sequence[Row] = ()
    sort = "started"
    backwards = False

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.marked: set[str] = set()
        """Directories of the marked runs."""

    @property
    def chosen(self) -> RunSummary | None:
        return self.runs[self.cursor] if self.cursor < len(self.runs) else None

    def seen(self) -> Sequence[RunSummary]:
        """The runs whose rows are on the screen."""
        return [self.runs[index] for index in self.in_view()]

    @property
    def targets(self) -> list[RunSummary]:
        """The marked runs that are shown, else the one under the cursor."""
        chosen = [self.chosen] if self.chosen else []
        return [run for run in self.runs if run.path in self.marked] or chosen

    def mark(self) -> None:
        """Mark the run under the cursor, or not any more, and go to the next."""
        if self.chosen:
            self.marked ^= {self.chosen.path}
            self.cursor += 1
            self.redraw()

    def show(self, runs: list[RunSummary], sort: str, empty: list[Row], *, backwards: bool = False) -> None:
        """Show ``runs``; ``empty`` where there are none."""
        before = self.chosen.path if self.chosen else None
        self.runs = arranged(runs, sort, backwards=backwards)
        self.sort, self.backwards, self.empty = sort, backwards, empty
        self.marked &= {run.path for run in runs}
        paths = [run.path for run in self.runs]
        self.resize_list(len(paths))
        self.cursor = paths.index(before) if before in paths else self.cursor
        self.bring_into_view(self.cursor)
        if (self.chosen.path if self.chosen else None) != before:
            self.post_message(self.Moved(self))

    def rows(self, width: int, height: int) -> list[Row]:
        return super().rows(width, height) if self.runs else list(self.empty)

    def columns(self, width: int) -> list[tuple[Column, int]]:
        """Those that have room, each with its width; what is left goes to the curve."""
        sizes = {column.title: column.narrow for column in COLUMNS}
        for title in _DROPPED:
            if width - 2 < sum(sizes.values()):
                sizes[title] = 0
        spare = width - 2 - sum(sizes.values())
        for column in sorted(COLUMNS, key=lambda column: _WIDENED.index(column.title)):
            dropped = column.narrow and not sizes[column.title]
            if dropped or (column.title == "name" and not any(run.name for run in self.runs)):
                continue
            if spare >= column.width - column.narrow:
                spare -= column.width - column.narrow
                sizes[column.title] = column.width
        sizes["curve"] += max(0, spare) if sizes["curve"] else 0
        return [(column, sizes[column.title]) for column in COLUMNS if sizes[column.title]]

    def head(self) -> list[Row]:
        row: Row = [("  ", "text")]
        for column, size in self.columns(self.size.width):
            arrow = "▴" if self.backwards else "▾"
            title = column.title + (arrow if column.title == self.sort else "")
            text = f"{title:>{size - 2}}  " if column.right else f"{title:<{size}}"
            row.append((text, "info" if column.title == self.sort else "muted"))
        return [cut(row, self.size.width)]

    def on_click(self, event: Click) -> None:
        x = 2
        for column, size in self.columns(self.size.width) if event.y == 0 else ():
            x += size
            if event.x < x:
                if column.title in SORTS:
                    self.post_message(self.Titled(column.title))
                return

    def row_at(self, index: int, width: int) -> Row:
        row: Row = [("◆ " if self.runs[index].path in self.marked else "  ", "mark")]
        for column, size in self.columns(width):
            room = size - (2 if column.right else 1)
            cell = cut(column.cell(self.runs[index], size), room)
            gap = " " * (size - row_width(cell))
            row += [(gap[2:], "text"), *cell, ("  ", "text")] if column.right else [*cell, (gap, "text")]
        return row

    def under_cursor(self, row: Row, width: int) -> Row:
        marked = row[0][0].strip() or " "
        return super().under_cursor([("▸", "info+bold"), (marked, "mark"), *row[1:]], width)
