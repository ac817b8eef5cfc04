"""The quality of a dataset in one answer: lengths, repeats, languages, problems, difficulty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

from backprop.data.dedup import THRESHOLD, exact_duplicates
from backprop.data.example import Example, Format
from backprop.data.examples import Read, Reader, Usable, answer_text, prompt_text, whole_text
from backprop.data.line_index import Cancelled, Progress
from backprop.data.quality import (
    LengthLimits,
    PerplexityReport,
    Scores,
    Statistics,
    TraceLimits,
    difficulty,
    estimate_tokens,
    language,
    outliers,
    statistics,
)
from backprop.data.reader import open_source

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
    notes: list[str]
    """What is unusual about how the dataset is read."""
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
        found = _Counting(Reader(source, mapping, progress, cancelled), near).finish()
        found.perplexity = scores.report() if scores is not None else None
        return found


class _Counting:
    def __init__(self, reader: Reader, near: float) -> None:
        self._reader = reader
        self._warnings: Counter[str] = Counter()
        self._turns: Counter[int] = Counter()
        self._traces: Counter[str] = Counter()
        self._lengths: Counter[str] = Counter()
        self._prompt: list[int] = []
        self._answer: list[int] = []
        self._difficulty: list[float] = []
        self._usable = Usable(reader, near, self._measured())

    def _measured(self) -> Iterator[Read]:
        for read in self._reader:
            if isinstance(read.became, Example):
                self._measure(read.became)
            yield read

    def _measure(self, example: Example) -> None:
        self._warnings.update(warning.code for warning in example.warnings)
        self._prompt.append(estimate_tokens(prompt_text(example)))
        self._answer.append(estimate_tokens(answer_text(example)))
        self._difficulty.append(difficulty(whole_text(example)))
        self._turns[len(example.turns) + len(example.chosen) + len(example.completion)] += 1
        self._lengths[LengthLimits().reason(example) or "ok"] += 1
        reason = TraceLimits().reason(example)
        if reason != "no_think":
            self._traces[reason or "kept"] += 1

    def finish(self) -> QualityReport:
        usable = self._usable
        lines, problems = usable.lines, usable.left_out + self._warnings
        repeated = exact_duplicates(usable.keys)
        nearly = [[i for i in group if i not in repeated] for group in usable.near_groups()]
        nearly = sorted((group for group in nearly if len(group) > 1), key=len, reverse=True)
        total = [a + b for a, b in zip(self._prompt, self._answer, strict=True)]
        order = sorted(range(len(self._difficulty)), key=self._difficulty.__getitem__)
        languages, sample = self._languages()
        return QualityReport(
            path=str(self._reader.source.path),
            format=self._reader.format,
            mapping=self._reader.mapping,
            rows=usable.rows,
            usable=len(usable.keys),
            problems=dict(problems.most_common()),
            prompt_tokens=statistics(self._prompt),
            answer_tokens=statistics(self._answer),
            total_tokens=statistics(total),
            turns=dict(sorted(self._turns.items())),
            histogram=histogram(total),
            duplicates=len(repeated),
            near_duplicates=sum(len(group) - 1 for group in nearly),
            near_groups=[NearGroup([lines[i] for i in group], usable.text(group[0])[:80]) for group in nearly[:SHOWN]],
            languages=languages,
            language_sample=sample,
            traces=dict(self._traces.most_common()),
            too_short_or_long={name: count for name, count in self._lengths.most_common() if name != "ok"},
            length_outliers=[lines[i] for i in length_outliers(total)[:SHOWN]],
            difficulty=statistics(self._difficulty),
            easiest=[lines[i] for i in order[:SHOWN]],
            hardest=[lines[i] for i in reversed(order[-SHOWN:])],
            notes=self._reader.source.notes,
        )

    def _languages(self) -> tuple[dict[str, int], int]:
        """Languages of rows spread evenly over the file."""
        step = max(1, len(self._usable.keys) // LANGUAGE_SAMPLE)
        chosen = range(0, len(self._usable.keys), step)
        return dict(Counter(language(self._usable.text(i)) for i in chosen).most_common()), len(chosen)


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
