"""What is measured of rows: reasons to leave one out, how hard it looks, its language, its perplexity to a model; and
statistics over many.

Scores by a model are kept in a file of JSON Lines, one object a row in the order of the dataset: ``line``, ``loss``
(mean over the trained tokens, in nats), ``perplexity`` (e to that) and ``tokens`` (the trained ones).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from backprop.core.errors import DatasetNotFoundError, DatasetParseError
from backprop.core.jobs import RowScore
from backprop.data.example import Example
from backprop.data.examples import refuse_existing, whole_file, whole_text
from backprop.data.traces import estimate_tokens

UNKNOWN = "unknown"
"""The language of texts with too few letters to tell."""
_LONG_TEXT = 5000
_LONG_WORD = 10
_SEEN = 1000
_LEAST_LETTERS = 12
_OUTLIER = 3.5
_MAD_TO_SIGMA = 1.4826
_MEAN_TO_SIGMA = 1.2533


class LengthLimits(Struct, frozen=True):
    """Bounds of a useful conversation, lengths in estimated tokens."""

    min_tokens: int = 50
    max_tokens: int = 4096
    min_turns: int = 2

    def reason(self, example: Example) -> str:
        """``empty``, ``few_turns``, ``no_assistant``, ``short``, ``long``, or nothing for a row that stays."""
        text = whole_text(example)
        if not text.strip():
            return "empty"
        if example.text is None:
            turns = [*example.turns, *example.chosen, *example.completion]
            spoken = [turn for turn in turns if turn.role != "system"]
            if len(spoken) < self.min_turns:
                return "few_turns"
            if not any(turn.role == "assistant" for turn in turns):
                return "no_assistant"
        tokens = estimate_tokens(text)
        if tokens < self.min_tokens:
            return "short"
        return "long" if tokens > self.max_tokens else ""


def difficulty(text: str) -> float:
    """From 0 to 1: half for length, a quarter each for varied words and long words.

    Length counts to 5,000 characters, variety is the share of different words (case aside), word length counts to a
    mean of 10 characters. Text without words is as hard as it is long.
    """
    length = min(1.0, len(text) / _LONG_TEXT)
    words = text.lower().split()
    if not words:
        return length
    variety = len(set(words)) / len(words)
    word_length = min(1.0, sum(map(len, words)) / len(words) / _LONG_WORD)
    return 0.5 * length + 0.25 * variety + 0.25 * word_length


def language(text: str) -> str:
    """ISO 639-1 code of the most likely language, by ``py3langid`` (Lui & Baldwin 2012, 97 languages), or
    ``UNKNOWN``."""
    import py3langid

    text = text[:_SEEN]
    if sum(map(str.isalpha, text)) < _LEAST_LETTERS:
        return UNKNOWN
    return str(py3langid.classify(text)[0])


class Statistics(Struct):
    """Summary statistics."""

    mean: float
    min: float
    p10: float
    p50: float
    p90: float
    p99: float
    max: float


def statistics(values: Sequence[float]) -> Statistics | None:
    """Mean, extremes and percentiles; ``None`` of nothing."""
    if not values:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    p10, p50, p90, p99 = np.percentile(numbers, (10, 50, 90, 99)).tolist()
    return Statistics(float(numbers.mean()), float(numbers.min()), p10, p50, p90, p99, float(numbers.max()))


def outliers(values: Sequence[float]) -> list[int]:
    """Places of values that are outliers, the farthest first (modified z-score, Iglewicz & Hoaglin 1993)."""
    if len(values) < 8:
        return []
    numbers = np.asarray(values, dtype=np.float64)
    away = np.abs(numbers - np.median(numbers))
    # Where most values are equal, the median distance is 0 and the mean one stands in.
    scale = float(np.median(away)) * _MAD_TO_SIGMA or float(away.mean()) * _MEAN_TO_SIGMA
    if scale == 0:
        return []
    found = np.flatnonzero(away / scale > _OUTLIER)
    return sorted(found.tolist(), key=lambda i: -away[i])


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
