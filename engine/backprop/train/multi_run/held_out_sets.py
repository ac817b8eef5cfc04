"""What a session's adapter scores on the held-out rows of every run: the cells of its forgetting table.

Each set is tokenised at its own length, whatever its run trains at, so that a column of the table is of one and the
same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from backprop.core.errors import DatasetError
from backprop.core.events import HeldOutScored
from backprop.core.jobs import EvaluatedRow, RowScore
from backprop.data import slices
from backprop.runs.metrics import exact_match
from backprop.runs.record import RunRecord
from backprop.runs.verdict import interval
from backprop.train.dataset import Subset, tokenise
from backprop.train.jobs import perplexity
from backprop.train.jobs.eval import answers_to, parts
from backprop.train.model import Loaded

SCORED = 128
"""Rows of a set that are scored at most: each is scored after every run."""
ANSWERED = 24
"""Rows of a set that are answered at most."""
SHORT = 16
"""Tokens of the longest expected answer with which answers are compared: longer ones are right in many ways."""


class HeldOutSets:
    """The held-out rows of each run of a session that has some, by its number."""

    def __init__(self, record: RunRecord, folder: Path, model: Path, look: Callable[[], bool]) -> None:
        """Tokenise those in ``folder`` (``data.slices``) for ``model``; what ``look`` raises ends the work."""
        self._look = look
        self._sets: dict[int, Subset] = {}
        found, now = slices.read(folder), datetime.fromtimestamp(record.created)
        read = partial(tokenise, model_path=model, emit=lambda event: None, look=look, now=now)
        for number, part in enumerate(found.runs if found else [], 1):
            with suppress(DatasetError):  # its own run says why, and fails
                if part.held_out:
                    rows = read(record.config, str(folder / part.held_out))
                    self._sets[number] = Subset(rows, range(min(len(rows), SCORED)))

    def score(
        self, loaded: Loaded, after: int, answered: int = 0, only: int | None = None
    ) -> tuple[list[HeldOutScored], list[EvaluatedRow]]:
        """Score the model as it is: a row of the table, and the scores of all rows in it, each once: parts of one
        dataset may have held-out rows in common, and a row counted twice would look like two that agree.

        Args:
            after: the row.
            answered: the first so many sets are answered too, where their answers are short.
            only: one set instead of all.
        """
        cells, rows, seen = [], list[EvaluatedRow](), set[int]()
        for number, of in self._sets.items():
            if only in (None, number):
                found = self._losses(loaded, of)
                cells.append(_cell(after, number, found))
                if number <= answered:
                    self._answer(loaded, of, cells[-1])
                rows += [row for row in found if row.content not in seen]
                seen |= {row.content for row in found}
        return cells, rows

    def _between(self, done: int, total: int) -> None:
        self._look()

    def _losses(self, loaded: Loaded, of: Subset) -> list[EvaluatedRow]:
        scored: dict[int, RowScore] = {}
        with torch.no_grad():
            for some in perplexity.scores(loaded.model, of, loaded.device, loaded.dtype, self._between):
                scored |= {each.line: each for each in some}
        contents = dict(of.names())
        return [
            EvaluatedRow(
                line=line, content=content, loss=each.loss if each else None, tokens=each.tokens if each else 1
            )
            for line, content in contents.items()
            for each in (scored.get(line),)
        ]

    def _answer(self, loaded: Loaded, of: Subset, cell: HeldOutScored) -> None:
        """Compare greedy answers with the expected ones, where these are short."""
        if of.rows.summary.format == "text":
            return
        asked = [of.row(i) for i in range(min(len(of), ANSWERED))]
        split = [parts(row, loaded.chat, on_texts=False) for row in asked]
        longest = max(len(row[0]) - len(before) for row, (before, _, _) in zip(asked, split, strict=True))
        if longest > SHORT:
            return
        prompts = [before for before, _, _ in split]
        said = answers_to(loaded, prompts, SHORT + 8, self._between)
        cell.exact = fmean(exact_match(answer, row[1]) for answer, row in zip(said, split, strict=True))
        cell.answers = len(said)


def _cell(after: int, number: int, rows: list[EvaluatedRow]) -> HeldOutScored:
    losses = [row.loss for row in rows]
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses):
        return HeldOutScored(after=after, held_out=number, loss=None, rows=len(rows))
    found = interval(np.array(known), np.array([row.tokens for row in rows], dtype=np.float64))
    low, high = (bound if math.isfinite(bound) else None for bound in (found.low, found.high))
    return HeldOutScored(after=after, held_out=number, loss=found.mean, rows=len(rows), low=low, high=high)
