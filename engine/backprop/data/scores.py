"""Scores of a dataset's rows by a model: kept in a file, summed up, and asked which rows stand out.

The file is JSON Lines, one object a row in the order of the dataset: ``line``, ``loss`` (mean over the trained tokens,
in nats), ``perplexity`` (e to that) and ``tokens`` (the trained ones).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from backprop.core.errors import DatasetNotFoundError, DatasetParseError
from backprop.core.jobs import RowScore
from backprop.data.quality import Statistics, outliers, statistics
from backprop.data.writing import refuse_existing, whole_file

SHOWN = 20


class _Line(Struct):
    line: int
    loss: float
    perplexity: float
    tokens: int


class PerplexityReport(Struct, kw_only=True):
    """What the scores say of a dataset."""

    scored: int
    tokens: int
    """Trained tokens of all scored rows."""
    loss: float
    """Mean over these tokens."""
    perplexity: float
    """e to ``loss``: of the dataset as a whole."""
    per_row: Statistics | None
    """Perplexities of the rows."""
    hardest: list[_Line]
    easiest: list[_Line]
    outliers: list[int]
    """Lines whose loss is far from all others (modified z-score above 3.5), the farthest first."""


class Scores:
    """Scores by line.

    Attributes:
        rows: in the order of the dataset.
    """

    def __init__(self, rows: Iterable[RowScore]) -> None:
        self.rows = sorted(rows, key=lambda row: row.line)
        self._by_line = {row.line: row for row in self.rows}

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, line: int) -> RowScore | None:
        """The score of the row in ``line``; ``None`` for one that has none."""
        return self._by_line.get(line)

    def hardest_first(self) -> list[RowScore]:
        """All rows, the highest loss first; equal ones in the order of the dataset."""
        return sorted(self.rows, key=lambda row: -row.loss)

    def outliers(self) -> list[int]:
        """Lines whose loss is far from the rest, the farthest first."""
        return [self.rows[i].line for i in outliers([row.loss for row in self.rows])]

    def report(self) -> PerplexityReport:
        """The scores in one answer."""
        order = self.hardest_first()
        tokens = sum(row.tokens for row in self.rows)
        loss = sum(row.loss * row.tokens for row in self.rows) / tokens if tokens else 0.0
        return PerplexityReport(
            scored=len(self.rows),
            tokens=tokens,
            loss=loss,
            perplexity=RowScore(0, loss, tokens).perplexity,
            per_row=statistics([row.perplexity for row in self.rows]),
            hardest=[_line(row) for row in order[:SHOWN]],
            easiest=[_line(row) for row in order[: -SHOWN - 1 : -1]],
            outliers=self.outliers(),
        )

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            InputError: it exists.
            BackpropError: it cannot be written.
        """
        refuse_existing(path)
        with whole_file(path) as file:
            for row in self.rows:
                file.write(msgspec.json.encode(_line(row)) + b"\n")


def _line(row: RowScore) -> _Line:
    return _Line(row.line, row.loss, row.perplexity, row.tokens)


def read_scores(path: Path) -> Scores:
    """Read what ``write`` wrote.

    Raises:
        DatasetNotFoundError: no such file.
        DatasetParseError: a line is no score.
    """
    decoder = msgspec.json.Decoder(RowScore)
    rows: list[RowScore] = []
    number = 0
    try:
        with path.open("rb") as file:
            for line in file:
                number += 1
                if line.strip():
                    rows.append(decoder.decode(line))
    except OSError as error:
        raise DatasetNotFoundError(
            f"the scores in {path} cannot be read: {error.strerror or error}",
            hint="`backprop data score` writes such a file",
            details={"path": str(path)},
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DatasetParseError(
            f"{path}: line {number}: this is no score: {error}",
            hint="`backprop data score` writes one object a line, with line, loss and tokens",
            details={"path": str(path), "line": number},
        ) from error
    return Scores(rows)
