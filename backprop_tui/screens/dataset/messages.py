"""What the Data screen's threads tell it. Threads touch no widget: they post these."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from backprop.core.errors import BackpropError, ModelLoadError
from backprop.core.events import Problem
from backprop.core.jobs import RowScore, Scored
from textual.message import Message

from backprop_tui.screens.dataset.file import Job, OpenFile
from backprop_tui.screens.dataset.rows import RowSummary
from backprop_tui.widgets.styled import Line

if TYPE_CHECKING:
    from backprop.data.clean import CleanResult
    from backprop.data.scores import Scores
    from backprop.data.tokenizer import ChatTokenizer
    from backprop.data.validate import Validation

    from backprop_tui.screens.dataset.lengths import CountedLengths


class Opened(Message):
    """A file is open and its first rows are known."""

    def __init__(self, opened: OpenFile) -> None:
        super().__init__()
        self.opened = opened


class Failed(Message):
    """A piece of work ended with an error that is meant for a person."""

    def __init__(self, work: str, error: BackpropError) -> None:
        super().__init__()
        self.work = work
        self.error = error


class RowsRead(Message):
    """Summaries of rows that the table asked for."""

    def __init__(self, opened: OpenFile, rows: list[tuple[int, RowSummary]]) -> None:
        super().__init__()
        self.opened = opened
        self.rows = rows


class DetailMade(Message):
    """One row as lines, wrapped to ``width``."""

    def __init__(self, row: int, lines: list[Line], width: int) -> None:
        super().__init__()
        self.row = row
        self.lines = lines
        self.width = width


class LineFound(Message):
    """The row (index from 0) of a line that was asked for."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.row = row


class ScanEnded(Message):
    """A search or a filter has looked at the file: all of it, or until it was stopped."""

    def __init__(self, kind: str, hits: array[int], *, whole: bool) -> None:
        super().__init__()
        self.kind = kind
        self.hits = hits
        self.whole = whole


class FoundSoFar(Message):
    """What a check that goes on has found until now."""

    def __init__(self, path: str, problems: Sequence[Problem], counts: Mapping[str, int]) -> None:
        super().__init__()
        self.path = path
        self.problems = problems
        self.counts = counts


class Checked(Message):
    """A check ended, or was stopped."""

    def __init__(self, path: str, found: Validation) -> None:
        super().__init__()
        self.path = path
        self.found = found


class Counted(Message):
    """Lengths counted so far."""

    def __init__(self, job: Job, lengths: CountedLengths) -> None:
        super().__init__()
        self.job = job
        self.lengths = lengths


class ModelChosen(Message):
    """A tokenizer was loaded, or why not."""

    def __init__(self, name: str, tokenizer: ChatTokenizer | None, why: ModelLoadError | None) -> None:
        super().__init__()
        self.name = name
        self.tokenizer = tokenizer
        self.why = why


class RowsScored(Message):
    """Rows scored so far; with ``summary``, all of them."""

    def __init__(self, job: Job, rows: list[RowScore], summary: Scored | None) -> None:
        from backprop.data.scores import Scores

        super().__init__()
        self.job = job
        self.scores: Scores = Scores(rows)
        self.summary = summary


class Cleaned(Message):
    """A cleaned copy was written."""

    def __init__(self, result: CleanResult) -> None:
        super().__init__()
        self.result = result
