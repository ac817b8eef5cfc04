"""The quality of a dataset in one answer: lengths, repeats, languages, problems, difficulty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

from backprop.data.dedup import THRESHOLD, MinHashIndex, exact_duplicates
from backprop.data.example import Format
from backprop.data.examples import Read, Reader, answer_text, prompt_text, whole_text
from backprop.data.line_index import Cancelled, Progress
from backprop.data.quality import (
    LengthLimits,
    Statistics,
    TraceLimits,
    difficulty,
    estimate_tokens,
    language,
    outliers,
    statistics,
)
from backprop.data.reader import open_source
from backprop.data.scores import PerplexityReport, Scores

LANGUAGE_SAMPLE = 2_000
SHOWN = 20


class NearGroup(Struct):
    """Rows that nearly agree, by line."""

    lines: list[int]
    excerpt: str


class QualityReport(Struct, kw_only=True):
    """The answer of ``backprop data report``. Lengths are tokens estimated at four characters each."""

    path: str
    format: Format | None
    mapping: dict[str, str]
    rows: int
    usable: int
    problems: dict[str, int]
    """Rows that cannot be used, and warnings about the others, by code."""
    prompt_tokens: Statistics | None
    answer_tokens: Statistics | None
    total_tokens: Statistics | None
    turns: dict[int, int]
    """Rows by number of turns."""
    histogram: list[tuple[int, int]]
    """Rows per class of total length, as (upper bound in tokens, rows); bounds double."""
    duplicates: int
    """Rows that repeat an earlier one."""
    near_duplicates: int
    """Further rows that nearly repeat an earlier one."""
    near_groups: list[NearGroup]
    """The largest groups of near duplicates."""
    languages: dict[str, int]
    language_sample: int
    """Rows whose language was looked at."""
    traces: dict[str, int]
    """Reasoning traces of answers that have any, by what the trace filter says (``kept`` where nothing)."""
    too_short_or_long: dict[str, int]
    """What the length filter with its defaults would leave out, by reason."""
    length_outliers: list[int]
    """Lines whose length is far from all others (modified z-score above 3.5 on the log scale)."""
    difficulty: Statistics | None
    easiest: list[int]
    hardest: list[int]
    """Lines at both ends of the order by difficulty."""
    perplexity: PerplexityReport | None = None
    """What a model finds hard, where it was asked."""


def report(
    path: str | Path,
    *,
    mapping: Mapping[str, str] | None = None,
    near: float = THRESHOLD,
    scores: Scores | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> QualityReport:
    """Read a dataset and say what its quality is.

    Args:
        near: overlap of word triples from which rows count as near duplicates.
        scores: of its rows by a model.
        progress: called with bytes read and their total.

    Raises:
        DatasetError: the file cannot be read.
        OperationCancelledError: ``cancelled`` said stop.
    """
    with open_source(path, progress=progress, cancelled=cancelled) as source:
        reader = Reader(source, mapping, progress, cancelled)
        counting = _Counting(reader, near)
        for read in reader:
            counting.take(read)
        found = counting.finish()
        found.perplexity = scores.report() if scores is not None else None
        return found


class _Counting:
    def __init__(self, reader: Reader, near: float) -> None:
        self._reader = reader
        self._rows = 0
        self._problems: Counter[str] = Counter()
        self._turns: Counter[int] = Counter()
        self._traces: Counter[str] = Counter()
        self._lengths: Counter[str] = Counter()
        self._lines: list[int] = []
        self._places: list[int] = []
        self._keys: list[bytes] = []
        self._prompt: list[int] = []
        self._answer: list[int] = []
        self._difficulty: list[float] = []
        self._minhash = MinHashIndex(near)

    def take(self, read: Read) -> None:
        self._rows += 1
        if read.example is None:
            self._problems[read.error.code if read.error is not None else "unknown_format"] += 1
            return
        example = read.example
        self._problems.update(warning.code for warning in example.warnings)
        prompt, answer, whole = prompt_text(example), answer_text(example), whole_text(example)
        self._minhash.add(len(self._keys), whole)
        self._lines.append(read.row.line)
        self._places.append(read.index)
        self._keys.append(read.key)
        self._prompt.append(estimate_tokens(prompt))
        self._answer.append(estimate_tokens(answer))
        self._difficulty.append(difficulty(whole))
        self._turns[len(example.turns) + len(example.chosen) + len(example.completion)] += 1
        self._lengths[LengthLimits().reason(example) or "ok"] += 1
        reason = TraceLimits().reason(example)
        if reason != "no_think":
            self._traces[reason or "kept"] += 1

    def finish(self) -> QualityReport:
        repeated = exact_duplicates(self._keys)
        groups = self._minhash.groups(self._text)
        nearly = [[i for i in group if i not in repeated] for group in groups]
        nearly = sorted((group for group in nearly if len(group) > 1), key=len, reverse=True)
        total = [a + b for a, b in zip(self._prompt, self._answer, strict=True)]
        order = sorted(range(len(self._difficulty)), key=self._difficulty.__getitem__)
        languages, sample = self._languages()
        return QualityReport(
            path=str(self._reader.path),
            format=self._reader.format,
            mapping=self._reader.mapping,
            rows=self._rows,
            usable=len(self._keys),
            problems=dict(self._problems.most_common()),
            prompt_tokens=statistics(self._prompt),
            answer_tokens=statistics(self._answer),
            total_tokens=statistics(total),
            turns=dict(sorted(self._turns.items())),
            histogram=histogram(total),
            duplicates=len(repeated),
            near_duplicates=sum(len(group) - 1 for group in nearly),
            near_groups=[
                NearGroup([self._lines[i] for i in group], self._text(group[0])[:80]) for group in nearly[:SHOWN]
            ],
            languages=languages,
            language_sample=sample,
            traces=dict(self._traces.most_common()),
            too_short_or_long={name: count for name, count in self._lengths.most_common() if name != "ok"},
            length_outliers=[self._lines[i] for i in length_outliers(total)[:SHOWN]],
            difficulty=statistics(self._difficulty),
            easiest=[self._lines[i] for i in order[:SHOWN]],
            hardest=[self._lines[i] for i in reversed(order[-SHOWN:])],
        )

    def _languages(self) -> tuple[dict[str, int], int]:
        """Languages of rows spread evenly over the file."""
        step = max(1, len(self._keys) // LANGUAGE_SAMPLE)
        chosen = range(0, len(self._keys), step)
        return dict(Counter(language(self._text(i)) for i in chosen).most_common()), len(chosen)

    def _text(self, i: int) -> str:
        return self._reader.text(self._places[i])


def histogram(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers per class of length; the upper bounds are 16, 32, 64 … and belong to their class."""
    if not lengths:
        return []
    bounds = [16]
    while bounds[-1] < max(lengths):
        bounds.append(bounds[-1] * 2)
    counts = np.bincount(np.searchsorted(bounds, lengths), minlength=len(bounds))
    return list(zip(bounds, counts.tolist(), strict=True))


def length_outliers(lengths: Sequence[int]) -> list[int]:
    """Places of lengths far from all others, the farthest first; they are compared on the log scale."""
    return outliers(np.log1p(np.asarray(lengths, dtype=np.float64)).tolist())
