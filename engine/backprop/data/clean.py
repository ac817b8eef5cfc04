"""A cleaned copy of a dataset, with a report of every row that was left out and why. The original is not touched."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from backprop.core.errors import DatasetError, InputError
from backprop.core.methods import Rows
from backprop.data.example import Example, RowError
from backprop.data.examples import Read, Reader, Usable, beside, line_of, refuse_existing, whole_file, whole_text
from backprop.data.line_index import Cancelled, Progress
from backprop.data.quality import UNKNOWN, LengthLimits, Scores, difficulty, language
from backprop.data.reader import open_source
from backprop.data.traces import TraceLimits


class Rules(Struct, frozen=True):
    """What is left out besides rows that cannot be used and exact duplicates. Nothing, unless asked for."""

    near: float | None = None
    """Overlap from which the later of two rows is left out (``dedup.THRESHOLD`` is a good one)."""
    lengths: LengthLimits | None = None
    traces: TraceLimits | None = None
    languages: frozenset[str] = frozenset()
    """ISO 639-1 codes to keep; rows too short to tell stay."""
    keep_duplicates: bool = False
    curriculum: bool = False
    """Write the rows from easy to hard instead of in their order: by their scores where there are some."""
    min_perplexity: float | None = None
    max_perplexity: float | None = None
    perplexity_outliers: bool = False
    """Leave out rows whose loss is far from that of all others."""

    @property
    def need_scores(self) -> bool:
        """Whether a model has to be asked first."""
        return self.min_perplexity is not None or self.max_perplexity is not None or self.perplexity_outliers


class LeftOut(Struct):
    """A row that was left out, and why."""

    line: int
    reason: str
    detail: str = ""


class CleanResult(Struct, kw_only=True):
    """The answer of ``backprop data clean``, and what its report holds."""

    path: str
    output: str
    report: str
    rows: int
    kept: int
    removed: dict[str, int]
    """Rows left out, by reason."""
    left_out: list[LeftOut]
    """Each of them, by line."""
    notes: list[str]
    """What is unusual about how the dataset is read."""


def clean_file(
    path: str | Path,
    rules: Rules | None = None,
    *,
    mapping: Mapping[str, str] | None = None,
    scores: Scores | None = None,
    output: Path | None = None,
    rows: Rows = "conversation",
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> CleanResult:
    """Write the rows worth keeping to ``output`` (``data.clean.jsonl`` by default), and a report beside it.

    Args:
        scores: of the rows by a model, for rules about perplexity; a row without one does not pass them.
        rows: what the method learns from that is to be trained with: what it cannot use is left out.

    Raises:
        InputError: one of the two files exists already, or a rule needs scores and there are none.
        DatasetError: nothing would be left (``DATASET_EMPTY``).
    """
    rules = rules or Rules()
    if rules.need_scores and scores is None:
        raise InputError(
            "rows can only be left out by perplexity once a model has scored them",
            hint="name the model with --model, or a file of scores with --scores",
        )
    output = output or beside(Path(path), "clean")
    report = beside(output, "report", ".json")
    refuse_existing(output, report)
    with open_source(path, progress=progress, cancelled=cancelled) as source:
        sieve = _Sieve(Reader(source, mapping, progress, cancelled, rows), rules, scores)
        kept = sieve.kept()
        removed = dict(Counter(row.reason for row in sieve.left_out).most_common())
        if not kept:
            counts = ", ".join(f"{count} {reason}" for reason, count in removed.items())
            raise DatasetError(
                f"{path}: no row would be left: {counts}",
                hint="loosen the rules",
                code="DATASET_EMPTY",
                details={"path": str(path), "removed": removed},
            )
        result = CleanResult(
            path=str(path),
            output=str(output),
            report=str(report),
            rows=sieve.rows,
            kept=len(kept),
            removed=removed,
            left_out=sorted(sieve.left_out, key=lambda row: row.line),
            notes=source.notes,
        )
        with whole_file(report) as told, whole_file(output) as out:
            told.write(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
            for index in kept:
                out.write(line_of(source.row(index)))
        return result


class _Sieve:
    """One pass over the rows; near duplicates are settled at the end."""

    def __init__(self, reader: Reader, rules: Rules, scores: Scores | None) -> None:
        self._reader = reader
        self._rules = rules
        self._scored = scores
        self._odd = frozenset(scores.outliers()) if scores is not None and rules.perplexity_outliers else frozenset()
        self.rows = 0
        self.left_out: list[LeftOut] = []
        self._scores: list[float] = []
        self._first: dict[bytes, int] = {}
        self._passed = Usable(reader, rules.near, self._passing())

    def _passing(self) -> Iterator[Read]:
        for read in self._reader:
            self.rows += 1
            reason, detail = self._reason(read)
            if reason:
                self.left_out.append(LeftOut(read.row.line, reason, detail))
                continue
            if self._rules.curriculum and isinstance(read.became, Example):
                self._scores.append(self._hardness(read.row.line, read.became))
            yield read

    def _reason(self, read: Read) -> tuple[str, str]:
        """Why a row is left out, with more on it; empty for one that stays."""
        rules = self._rules
        example = read.became
        if isinstance(example, RowError):
            return example.code, example.message
        if not rules.keep_duplicates:
            earlier = self._first.setdefault(read.key, read.row.line)
            if earlier != read.row.line:
                return "duplicate_row", f"the same as {self._reader.source.unit} {earlier}"
        if rules.lengths is not None and (reason := rules.lengths.reason(example)):
            return reason, ""
        if rules.traces is not None and (reason := rules.traces.reason(example)):
            return reason, ""
        if rules.languages:
            found = language(whole_text(example))
            if found not in rules.languages and found != UNKNOWN:
                return "language", found
        return self._by_perplexity(read.row.line) if rules.need_scores else ("", "")

    def _by_perplexity(self, line: int) -> tuple[str, str]:
        score = self._scored.of(line) if self._scored is not None else None
        if score is None:
            return "no_score", "the model has no score for it: nothing of it would be trained"
        rules, words = self._rules, f"perplexity {score.perplexity:.4g}"
        if rules.max_perplexity is not None and score.perplexity > rules.max_perplexity:
            return "perplexity_high", words
        if rules.min_perplexity is not None and score.perplexity < rules.min_perplexity:
            return "perplexity_low", words
        return ("perplexity_outlier", words) if line in self._odd else ("", "")

    def _hardness(self, line: int, example: Example) -> float:
        """What the curriculum goes by; rows that have no score come last."""
        if self._scored is None:
            return difficulty(whole_text(example))
        score = self._scored.of(line)
        return score.loss if score is not None else math.inf

    def kept(self) -> list[int]:
        """Indices of the rows that stay, in the order in which they are written."""
        passed = self._passed
        dropped: set[int] = set()
        for group in passed.near_groups():
            for member in group[1:]:
                dropped.add(member)
                same = f"nearly the same as {self._reader.source.unit} {passed.lines[group[0]]}"
                self.left_out.append(LeftOut(passed.lines[member], "near_duplicate", same))
        order: Iterable[int] = range(len(passed.places))
        if self._rules.curriculum:
            order = sorted(order, key=self._scores.__getitem__)
        return [passed.places[i] for i in order if i not in dropped]
