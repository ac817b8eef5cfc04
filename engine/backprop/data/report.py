"""The quality of a dataset in one answer: lengths, repeats, languages, problems, difficulty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

from backprop.core.methods import Rows
from backprop.data.dedup import THRESHOLD, clusters
from backprop.data.example import Example, Format
from backprop.data.examples import Read, Reader, Usable, answer_text, prompt_text, whole_text
from backprop.data.line_index import Cancelled, Progress
from backprop.data.quality import (
    LengthLimits,
    PerplexityReport,
    Scores,
    Statistics,
    difficulty,
    language,
    outliers,
    statistics,
)
from backprop.data.reader import open_source
from backprop.data.traces import TraceLimits, estimate_tokens

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
    rows: Rows = "conversation",
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> QualityReport:
    """Read a dataset and say what its quality is.

    Args:
        near: overlap of word triples from which rows count as near duplicates.
        scores: of its rows by a model.
        rows: what the method learns from that is to be trained with: what it cannot use is not usable.
        progress: called with bytes read and their total.

    Raises:
        DatasetError: the file cannot be read.
        OperationCancelledError: ``cancelled`` said stop.
    """
    with open_source(path, progress=progress, cancelled=cancelled) as source:
        reader = Reader(source, mapping, progress, cancelled, rows)
        measured = _Measured()
        usable = Usable(reader, near, measured.all_of(reader))
        again = {i for members in clusters(usable.keys) for i in members[1:]}
        nearly = [[i for i in group if i not in again] for group in usable.near_groups()]
        nearly = sorted((group for group in nearly if len(group) > 1), key=len, reverse=True)
        prompts, answers, hardness = measured.prompts, measured.answers, measured.difficulties
        total = [asked + said for asked, said in zip(prompts, answers, strict=True)]
        order = sorted(range(len(hardness)), key=hardness.__getitem__)
        # Languages are those of rows spread evenly over the file.
        sample = range(0, len(usable.keys), max(1, len(usable.keys) // LANGUAGE_SAMPLE))
        return QualityReport(
            path=str(source.path),
            format=reader.file.format,
            mapping=reader.file.mapping,
            rows=usable.rows,
            usable=len(usable.keys),
            problems=dict((usable.left_out + measured.warnings).most_common()),
            prompt_tokens=statistics(prompts),
            answer_tokens=statistics(answers),
            total_tokens=statistics(total),
            turns=dict(sorted(measured.turns.items())),
            histogram=histogram(total),
            duplicates=len(again),
            near_duplicates=sum(len(group) - 1 for group in nearly),
            near_groups=[
                NearGroup([usable.lines[i] for i in group], usable.text(group[0])[:80]) for group in nearly[:SHOWN]
            ],
            languages=dict(Counter(language(usable.text(i)) for i in sample).most_common()),
            language_sample=len(sample),
            traces=dict(measured.traces.most_common()),
            too_short_or_long=dict(measured.lengths.most_common()),
            length_outliers=[usable.lines[i] for i in length_outliers(total)[:SHOWN]],
            difficulty=statistics(hardness),
            easiest=[usable.lines[i] for i in order[:SHOWN]],
            hardest=[usable.lines[i] for i in reversed(order[-SHOWN:])],
            notes=source.notes,
            perplexity=scores.report() if scores is not None else None,
        )


class _Measured:
    """What is measured of examples, as they come."""

    def __init__(self) -> None:
        self.warnings, self.lengths, self.traces = Counter[str](), Counter[str](), Counter[str]()
        self.turns = Counter[int]()
        self.prompts: list[int] = []
        self.answers: list[int] = []
        self.difficulties: list[float] = []

    def all_of(self, reads: Iterable[Read]) -> Iterator[Read]:
        """The rows, each measured before it is given."""
        for read in reads:
            if isinstance(example := read.became, Example):
                self.warnings.update(warning.code for warning in example.warnings)
                self.prompts.append(estimate_tokens(prompt_text(example)))
                self.answers.append(estimate_tokens(answer_text(example)))
                self.difficulties.append(difficulty(whole_text(example)))
                self.turns[len(example.turns) + len(example.chosen) + len(example.completion)] += 1
                if reason := LengthLimits().reason(example):
                    self.lengths[reason] += 1
                if (reason := TraceLimits().reason(example)) != "no_think":
                    self.traces[reason or "kept"] += 1
            yield read


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
