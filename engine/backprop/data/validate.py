"""What is wrong with a dataset: every row looked at, each finding with its line, field, code and the row's start.

Good rows cost little: they are decoded into the types of a good row. Only what fails there is read again
and explained. Nothing is dropped: ``rows`` counts every row, and ``invalid`` those with an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from backprop.core.errors import DatasetParseError
from backprop.core.events import Problem
from backprop.core.methods import Rows
from backprop.data.dedup import Numbers, content_hash, content_parts, repeated
from backprop.data.example import CONTROL_TOKEN, PROBLEM_CODES, Fields, Findings, Format, RowError, one_label
from backprop.data.examples import read_row
from backprop.data.formats import file_format, other_method, read_as, rows_of
from backprop.data.line_index import NEWLINE, Cancelled, Progress, split_lines
from backprop.data.parse import misread
from backprop.data.quick_look import TYPES, QuickLook
from backprop.data.reader import Row, Source, open_source
from backprop.data.traces import trace_finding

__all__ = ["PROBLEM_CODES", "Validation", "validate"]

LISTED = 10_000
"""Findings of one code that are listed; all are counted."""
_PIECE = 128 * 1024
"""Bytes that are looked at together: few enough that their values are still in the processor's cache."""
_CHATML = {"<|im_start|>", "<|im_end|>"}


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


def validate(
    path: str | Path,
    *,
    mapping: Mapping[str, str] | None = None,
    rows: Rows = "conversation",
    traces: bool = False,
    held_out: str | Path | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
    so_far: Callable[[Sequence[Problem], Mapping[str, int]], object] | None = None,
    listed: int = LISTED,
) -> Validation:
    """Check every row of a dataset.

    Args:
        mapping: part → field of the rows; found from the rows where not given.
        rows: what the method learns from that is to be trained with: a row that is none of these is an error.
        traces: reasoning traces are to be trained as rows have them: those of no use are found (``data.traces``).
        held_out: a file that must share no row with this one.
        progress: called with bytes read and their total.
        cancelled: asked often; when true, what was found so far is returned, with ``complete`` false.
        so_far: called now and then with the findings until then and their counts; both go on growing afterwards.
        listed: findings of one code to list; all are counted.

    Raises:
        DatasetError: the file as a whole cannot be read (see ``open_source``), or none of its rows can.
    """
    with open_source(path, progress=progress, cancelled=cancelled) as source:
        checking = _Checking(source, mapping, rows, listed, traces=traces)
        held_out_contents = _contents(held_out, mapping) if held_out is not None else None
        for done in checking.pieces():
            if cancelled is not None and cancelled():
                checking.answer.complete = False
                break
            if progress is not None:
                progress(done, source.size)
            if so_far is not None:
                so_far(checking.answer.problems, checking.findings.counts)
        return checking.finish(held_out_contents)


def _contents(path: str | Path, mapping: Mapping[str, str] | None) -> Numbers:
    """The hash of the content of every row that can be read, for comparison within this process."""
    with open_source(path) as source:
        file = file_format(source, mapping)
        values = (row.value for row in source if row.error is None)
        return np.fromiter(
            (content_hash(value, read_as(value, file.format, file.names), file.names) for value in values), np.int64
        )


class _Checking:
    """Takes the rows of a source piece by piece and keeps what it finds."""

    def __init__(
        self, source: Source, mapping: Mapping[str, str] | None, rows: Rows, listed: int, *, traces: bool
    ) -> None:
        self.source = source
        self._traces = traces
        self._rows: Rows = rows
        self._listed = listed
        file = file_format(source, mapping)
        self._file, self.format = file, file.format
        self.names = file.names
        self.findings = Findings(listed)
        self.answer = Validation(
            path=str(source.path),
            format=file.format,
            unit=source.unit,
            mapping=file.mapping,
            problems=self.findings.problems,
        )
        self.answer.notes += file.notes()
        if file.traces and not traces:
            self.findings.add(0, b"", file.trace_finding())
        quick = file.format if file.format in TYPES and "row" not in file.mapping else None
        if traces or "reasoning" in file.mapping:
            quick = None
        if rows not in ("conversation", rows_of(quick)):
            quick = None
            self.answer.notes += filter(None, [other_method(file.format, rows)])
        self._quick = QuickLook(quick, self.names, file.columns, file.without_effect) if quick is not None else None
        self._contents: list[Numbers] = []
        """Hashes of the contents of all rows, in order."""
        self._formats: Counter[str] = Counter()
        self._labels: set[bool] = set()
        self.answer.notes += source.notes
        if source.has_bom:
            self.findings.add(
                0, b"", RowError("bom", "", "the file begins with a byte order mark; it is skipped", "info")
            )

    def pieces(self) -> Iterator[int]:
        """Check every row, in pieces; gives how many bytes are done."""
        line = 1
        for offset, buffer, size in self.source.pieces(_PIECE):
            data = memoryview(buffer)[:size]
            ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == NEWLINE)
            if self._quick is not None:
                contents, places = self._quick.look(data, line, offset, ends)
            else:
                found = split_lines(bytes(data), line, offset)
                contents, places = np.zeros(len(found), dtype=np.int64), dict(enumerate(found))
            self.answer.rows += len(contents)
            self._formats[self.format or "unknown"] += len(contents) - len(places)
            for i, place in sorted(places.items()):
                contents[i] = self._examine(self.source.made(place))
            self._contents.append(contents)
            line += len(ends)
            yield offset + size

    def _examine(self, row: Row) -> int:
        """Note what is wrong with one row. Returns the hash of its content; of one that cannot be read, of its
        place."""
        read = read_row(row, self._file)
        self._formats["unreadable" if row.error is not None else (read.known and read.format) or "unknown"] += 1
        findings = read.warnings
        if isinstance(read.became, RowError):
            findings.append(read.became)
        else:
            fault = read.became.fault(self._rows)
            told = (fault.code, fault.field) if fault is not None else None
            findings += [each for each in read.became.warnings if (each.code, each.field) != told]
            findings += [fault] if fault is not None else []
            trace = trace_finding(read.became, self._rows) if self._traces else None
            findings += [trace] if trace is not None else []
            if read.became.label is not None:
                self._labels.add(read.became.label)
        if read.format is not None:
            findings += odd_texts(row.value, read.format, self.names)
        for finding in findings:
            self.findings.add(row.line, row.raw, finding)
        self.answer.invalid += any(finding.severity == "error" for finding in findings)
        if row.error is not None:
            return hash((row.line, row.error.code))
        return content_hash(row.value, read.format, self.names)

    def finish(self, held_out: Numbers | None) -> Validation:
        """The answer, with what only all rows together tell."""
        answer = self.answer
        if answer.complete:
            self._note_repeated(held_out)
        if self._quick is not None:
            self._labels |= self._quick.labels
        if answer.format == "kto" and len(self._labels) == 1 and answer.rows - answer.invalid > 1:
            self.findings.add(0, b"", one_label(next(iter(self._labels)), self.names.label))
        answer.valid = answer.rows - answer.invalid
        answer.problem_counts = dict(self.findings.counts.most_common())
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

    def _note_repeated(self, held_out: Numbers | None) -> None:
        contents = np.concatenate(self._contents) if self._contents else np.empty(0, dtype=np.int64)
        again, earlier = repeated(contents)
        firsts = [self.source.row(first).line for first in earlier[: self._listed].tolist()]
        self._note_rows("duplicate_row", again, [f"the same as {self.source.unit} {line}" for line in firsts])
        if held_out is not None:
            both = np.flatnonzero(np.isin(contents, held_out))
            words = ["the same row is in the held-out file"] * min(len(both), self._listed)
            self._note_rows("held_out_overlap", both, words)

    def _note_rows(self, code: str, rows: Numbers, messages: Sequence[str]) -> None:
        """Warn of each row; those beyond the messages are counted only, and not read for it."""
        for index, message in zip(rows.tolist(), messages, strict=False):
            row = self.source.row(index)
            self.findings.add(row.line, row.raw, RowError(code, "", message, "warning"))
        if len(rows) > len(messages):
            self.findings.counts[code] += len(rows) - len(messages)


def odd_texts(value: object, format: Format, names: Fields) -> list[RowError]:
    """What is odd inside the texts that are read from a row; ChatML's own tags are none in a ChatML row."""
    value, parts = names.held(value), content_parts(value, format, names)
    if isinstance(value, dict) and parts is not None:
        used = {id(part) for part in parts if part is not None}
        value = {key: part for key, part in value.items() if id(part) in used}
    found = []
    marked = format == "chatml" or (format != "text" and isinstance(value, dict) and names.text in value)
    allowed = _CHATML if marked else set()
    for place, text in _texts(value):
        tokens = [token for token in dict.fromkeys(CONTROL_TOKEN.findall(text)) if token not in allowed]
        if tokens:
            names_them = ", ".join(tokens[:3]) + (" …" if len(tokens) > 3 else "")
            found.append(RowError("special_token", place, f"control token inside the text: {names_them}", "warning"))
        if "\0" in text:
            found.append(RowError("nul_byte", place, "a NUL character inside the text", "warning"))
        found += misread(text, place)
    return found


def _texts(value: object) -> Iterator[tuple[str, str]]:
    """Every text inside a value, with its place as ``messages[2].content``."""
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        place, item = pending.pop()
        if type(item) is str:
            yield place, item
        elif isinstance(item, dict):
            pending += [(f"{place}.{key}" if place else str(key), inner) for key, inner in item.items()]
        elif isinstance(item, list):
            pending += [(f"{place}[{i}]", inner) for i, inner in enumerate(item)]
