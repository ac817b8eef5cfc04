"""What is wrong with a dataset: every row looked at, each finding with its line, field, code and the row's start.

Good rows cost little: they are decoded into the types of a good row (``typed``). Only what fails there is read again
and explained. Nothing is dropped: ``rows`` counts every row, and ``invalid`` those with an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from backprop.core.errors import DatasetParseError, DatasetValidationError
from backprop.core.events import Problem
from backprop.data.batches import Batch, batches
from backprop.data.example import Format, RowError
from backprop.data.formats import convert, detect_fields
from backprop.data.line_index import Cancelled, Progress
from backprop.data.mapping import PLAIN, Fields, describe_mapping
from backprop.data.prints import Numbers
from backprop.data.reader import Row, Source, open_source
from backprop.data.repeats import Repeats
from backprop.data.survey import file_format
from backprop.data.texts import odd_texts
from backprop.data.typed import QuickLook, supports

LISTED = 10_000
"""Findings of one code that are listed; all are counted."""
_EXCERPT = 80


class Validation(Struct, kw_only=True):
    """The answer of ``backprop validate``."""

    path: str
    format: Format | None
    """The format of most rows."""
    unit: str = "line"
    """What ``line`` counts: lines of the file, or rows where a row is no line."""
    rows: int = 0
    valid: int = 0
    invalid: int = 0
    """Rows with at least one error: training would skip them."""
    problems: list[Problem] = msgspec.field(default_factory=list)
    """Findings by line; a finding about the file as a whole has line 0."""
    problem_counts: dict[str, int] = msgspec.field(default_factory=dict)
    """Findings per code: all of them, also where not all are listed."""
    formats: dict[str, int] = msgspec.field(default_factory=dict)
    """Rows per format, those of none under ``unknown``."""
    mapping: dict[str, str] = msgspec.field(default_factory=dict)
    notes: list[str] = msgspec.field(default_factory=list)
    complete: bool = True
    """False when the check was cancelled: the counts are those so far."""

    @property
    def mostly_broken(self) -> bool:
        return self.invalid * 2 > self.rows

    def require_usable(self, *, allow_bad: bool = False) -> None:
        """Stop where more rows are bad than good, unless that is allowed.

        Raises:
            DatasetValidationError: with the share of bad rows and the first of them.
        """
        if allow_bad or not self.mostly_broken:
            return
        first = next(problem for problem in self.problems if problem.severity == "error")
        raise DatasetValidationError(
            f"{self.path}: {self.invalid} of {self.rows} rows ({self.invalid / self.rows:.0%}) cannot be used; "
            f"the first is {self.unit} {first.line}: {first.message}",
            hint=f"see all with: backprop validate {self.path}; train the others with --skip-bad",
            details={"path": self.path, "line": first.line},
        )


def validate(
    path: str | Path,
    *,
    mapping: Mapping[str, str] | None = None,
    held_out: str | Path | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
    so_far: Callable[[Sequence[Problem], Mapping[str, int]], object] | None = None,
    listed: int = LISTED,
) -> Validation:
    """Check every row of a dataset.

    Args:
        mapping: part → field of the rows; looked for in the first rows where not given.
        held_out: a file that must share no row with this one.
        progress: called with bytes read and their total.
        cancelled: asked often; when true, what was found so far is returned, with ``complete`` false.
        so_far: called now and then with the findings until then and their counts; both go on growing afterwards.
        listed: findings of one code to list; all are counted.

    Raises:
        DatasetError: the file as a whole cannot be read (see ``open_source``), or none of its rows can.
    """
    with open_source(path) as source:
        examiner = Examiner(source, mapping, listed)
        overlap = Repeats.of_file(held_out, mapping) if held_out is not None else None
        for batch in batches(source):
            if cancelled is not None and cancelled():
                examiner.answer.complete = False
                break
            examiner.take(batch)
            if progress is not None:
                progress(batch.end, source.bytes)
            if so_far is not None:
                so_far(examiner.answer.problems, examiner.counts)
        return examiner.finish(overlap, progress, cancelled)


class Examiner:
    """Takes the rows of a source batch by batch and keeps what it finds."""

    def __init__(self, source: Source, mapping: Mapping[str, str] | None, listed: int) -> None:
        self.source = source
        self._listed = listed
        seen = file_format(source, mapping)
        self.format = seen.format
        self.names = Fields(seen.mapping) if seen.mapping else PLAIN
        self.answer = Validation(path=str(source.path), format=seen.format, unit=source.unit, mapping=seen.mapping)
        if seen.found:
            self.answer.notes.append(f"fields are read as {describe_mapping(seen.mapping)}; --map says otherwise")
        self._quick = QuickLook(seen.format, self.names) if seen.format and supports(seen.format) else None
        self._repeats = Repeats(seen.format, self.names)
        self.counts: Counter[str] = Counter()
        """Findings per code until now."""
        self._formats: Counter[str] = Counter()
        self._labels: set[bool] = set()
        if source.has_bom:
            self._note(0, b"", RowError("bom", "", "the file begins with a byte order mark; it is skipped", "info"))

    def take(self, batch: Batch) -> None:
        doubtful: Sequence[int]
        if self._quick is not None and batch.raws_are_json:
            prints, doubtful = batch.quick_look(self._quick)
        else:
            prints, doubtful = np.zeros(len(batch), dtype=np.int64), range(len(batch))
        self.answer.rows += len(batch)
        bad = 0
        read: list[int] = []
        values: list[object] = []
        for i in doubtful:
            row = batch.row(i)
            bad += not self._examine(row)
            if row.error is None:
                read.append(i)
                values.append(row.value)
            else:
                prints[i] = self._repeats.unique()
        if read:
            prints[read] = self._repeats.prints_of(values)
        self._repeats.add(prints)
        self.answer.invalid += bad
        self._formats[self.format or "unknown"] += len(batch)

    def _examine(self, row: Row) -> bool:
        """Note what is wrong with one row. Returns whether it can be used."""
        if row.error is not None:
            self._formats["unreadable"] += 1
            self._formats[self.format or "unknown"] -= 1
            self._note(row.line, row.raw, row.error)
            return False
        found = detect_fields(row.value, self.names)
        if found != self.format:
            self._formats[found or "unknown"] += 1
            self._formats[self.format or "unknown"] -= 1
        errors = self._explain(row.value, found)
        for error in errors:
            self._note(row.line, row.raw, error)
        return not any(error.severity == "error" for error in errors)

    def _explain(self, value: object, found: Format | None) -> list[RowError]:
        if self.format is None:
            return [RowError("unknown_format", "", f"no known format: {_shape(value)}")]
        read_as = found if found is not None and self.format not in ("preference", "kto") else self.format
        errors: list[RowError] = []
        if found is not None and found != self.format:
            message = f"the row is {found}, where most rows are {self.format}"
            errors.append(RowError("mixed_format", "", message, "warning"))
        try:
            example = convert(value, read_as, self.names)
            errors += example.warnings
            if example.label is not None:
                self._labels.add(example.label)
        except RowError as error:
            errors.append(error)
        return [*errors, *odd_texts(value, read_as, self.names)]

    def _note(self, line: int, raw: bytes, error: RowError) -> None:
        self.counts[error.code] += 1
        if self.counts[error.code] > self._listed:
            return
        self.answer.problems.append(
            Problem(
                line=line,
                code=error.code,
                message=error.message,
                field=error.field,
                severity=error.severity,
                excerpt=excerpt(raw),
            )
        )

    def finish(self, overlap: Repeats | None, progress: Progress | None, cancelled: Cancelled | None) -> Validation:
        answer = self.answer
        if answer.complete:
            answer.complete = self._finish_repeats(overlap, progress, cancelled)
        if self._quick is not None:
            self._labels |= self._quick.labels
        if answer.format == "kto" and len(self._labels) == 1 and answer.rows - answer.invalid > 1:
            label = str(next(iter(self._labels))).lower()
            message = f"every label is {label}: feedback training needs both"
            self._note(0, b"", RowError("one_label", self.names.label, message, "warning"))
        answer.valid = answer.rows - answer.invalid
        answer.problem_counts = dict(self.counts.most_common())
        answer.formats = {name: count for name, count in self._formats.most_common() if count}
        answer.problems.sort(key=lambda problem: problem.line)
        if answer.rows and self._formats["unreadable"] == answer.rows:
            first = answer.problems[0]
            raise DatasetParseError(
                f"{answer.path}: none of its {answer.rows} rows can be read; "
                f"{answer.unit} {first.line}: {first.message}",
                hint="check that the file is what its ending says",
                details={"path": answer.path, "line": first.line, "problem": first.code},
            )
        return answer

    def _finish_repeats(self, overlap: Repeats | None, progress: Progress | None, cancelled: Cancelled | None) -> bool:
        """Note the rows that repeat others. Returns whether it got to the end."""
        found = self._repeats.find(self.source, overlap, progress, cancelled)
        if found is None:
            return False
        firsts = [self.source.row(earlier).line for earlier in found.earlier[: self._listed].tolist()]
        self._note_rows("duplicate_row", found.again, [f"the same as {self.source.unit} {line}" for line in firsts])
        held_out = ["the same row is in the held-out file"] * min(len(found.held_out), self._listed)
        self._note_rows("held_out_overlap", found.held_out, held_out)
        return True

    def _note_rows(self, code: str, rows: Numbers, messages: Sequence[str]) -> None:
        """Warn of each row; those beyond the messages are counted only, and not read for it."""
        for index, message in zip(rows.tolist(), messages, strict=False):
            row = self.source.row(index)
            self._note(row.line, row.raw, RowError(code, "", message, "warning"))
        if len(rows) > len(messages):
            self.counts[code] += len(rows) - len(messages)


def excerpt(raw: bytes) -> str:
    """A row's start, on one line."""
    text = raw[: _EXCERPT * 4].decode("utf-8", "replace")
    text = " ".join(text.split())
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: _EXCERPT + 1])
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"


def _shape(value: object) -> str:
    if isinstance(value, dict):
        names = ", ".join(map(str, list(value)[:6]))
        return f"an object with the fields {names}" if names else "an empty object"
    return f"a row that is {type(value).__name__}"
