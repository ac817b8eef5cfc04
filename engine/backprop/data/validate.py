"""What is wrong with a dataset: every row looked at, each finding with its line, field, code and the row's start.

Good rows cost little: they are decoded into the types of a good row. Only what fails there is read again
and explained. Nothing is dropped: ``rows`` counts every row, and ``invalid`` those with an error.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct

from backprop.core.errors import DatasetParseError
from backprop.core.events import Problem
from backprop.core.methods import Rows
from backprop.data.convert import MISSING, is_missing
from backprop.data.dedup import PARTS_READ, Numbers, chat_hash, content_hash, content_parts, repeated
from backprop.data.example import (
    CONTROL_TOKEN,
    PROBLEM_CODES,
    Fields,
    Findings,
    Format,
    RowError,
    Turn,
    one_label,
)
from backprop.data.examples import read_row
from backprop.data.formats import file_format, other_method, read_as, rows_of
from backprop.data.line_index import Cancelled, Place, Progress, split_lines
from backprop.data.messages import TRANSCRIPT_HINTS, check_turns
from backprop.data.parse import KEY_END, may_be_misread, misread, parse_json
from backprop.data.reader import Row, Source, open_source
from backprop.data.spellings import MEDIA, MEDIA_MARK, ROLE_OF, like_mask
from backprop.data.traces import trace_finding

__all__ = ["PROBLEM_CODES", "Validation", "validate"]

LISTED = 10_000
"""Findings of one code that are listed; all are counted."""
_NEWLINE, _SPACE = 10, 32
_KEY_END = int.from_bytes(KEY_END, "little")
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
        quick = file.format if file.format in _TYPES and "row" not in file.mapping else None
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
            ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == _NEWLINE)
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


class _OpenAI(Struct, gc=False, forbid_unknown_fields=True):
    """A message."""

    content: str
    role: Literal["system", "user", "assistant", "tool"]


class _ShareGPT(Struct, gc=False, forbid_unknown_fields=True, rename={"role": "from", "content": "value"}):
    role: Literal["system", "human", "user", "gpt", "assistant"]
    content: str


_TYPES: dict[Format, dict[str, Any]] = {
    "openai": {"messages": list[_OpenAI]},
    "sharegpt": {"conversations": list[_ShareGPT]},
    "alpaca": {"instruction": str, "output": str, "input": str | None},
    "prompt_completion": {"prompt": str, "completion": str},
    "preference": {"prompt": str, "chosen": str, "rejected": str},
    "kto": {"prompt": str, "completion": str, "label": bool},
    "text": {"text": str},
}
"""The fields of a good row."""
_OTHERS: dict[Format, tuple[str, ...]] = {
    "openai": ("conversations", "chosen", "rejected", "completion", "label"),
    "sharegpt": ("chosen", "rejected", "completion", "label"),
    "alpaca": ("chosen", "rejected", "completion", "messages", "conversations", "label"),
    "prompt_completion": ("chosen", "rejected", "label", "instruction", "messages", "conversations"),
    "preference": ("completion",),
    "kto": (),
    "text": ("chosen", "completion", "messages", "conversations", "instruction", "prompt"),
}
"""Parts that may make another format of a row: one that has them needs another look."""
_PRAISE = (b"", b"t", *(b"%d" % digit for digit in range(1, 10)))
"""What a value begins with that calls no answer bad: none, true, a number of one and more."""
_COLUMNS = 64
"""Columns beside the parts that are passed over quickly; of rows with more of them each is looked at."""
_CHATS = {"openai": "messages", "sharegpt": "conversations"}
_MARK = re.compile(f"{CONTROL_TOKEN.pattern}|{MEDIA_MARK.pattern}")


class QuickLook:
    """Decodes rows of one format into the types of a good row, which checks them while parsing.

    What does not pass, or looks odd, is left to ``formats.convert``, which says why. The types are narrower than the
    formats: tool calls, content parts or unusual keys are not wrong, only not quick.

    Args:
        format: what the rows are.
        names: the field names in use.
        columns: what the file's rows have; a row with another one needs another look.
        doubted: those of them that may call an answer bad.
    """

    def __init__(self, format: Format, names: Fields, columns: Iterable[str], doubted: Collection[str] = ()) -> None:
        self.format = format
        self.labels: set[bool] = set()
        """Labels seen, of feedback rows."""
        self._own_keys = 0
        """Keys that each row has, where none is repeated; learnt from the rows."""
        self._more_keys = 0
        """Keys of the rows that were checked last which not each of them has."""
        types = _TYPES[format]
        fields: list[Any] = [(part, kind) for part, kind in types.items() if part != "input"]
        fields += [("input", types["input"], None)] if "input" in types else []
        renamed = {part: getattr(names, part) for part in types}
        read = {getattr(names, part) for part in (*types, *_OTHERS[format], *PARTS_READ[format], "loss_mask")}
        for i, column in enumerate(column for column in columns if column not in read and _passes(column, doubted)):
            if i < _COLUMNS:
                fields.append((f"_{i}", msgspec.Raw, b""))
                renamed[f"_{i}"] = column
        row = msgspec.defstruct("QuickRow", fields, rename=renamed, gc=False, forbid_unknown_fields=True)
        self._decoder = msgspec.json.Decoder(row)
        self._doubted = [part for part, column in renamed.items() if column in doubted]
        self._texts = [part for part, kind in types.items() if kind is str]
        self._columns = [part if part in types else None for part in PARTS_READ[format]]

    def look(self, data: memoryview, line: int, offset: int, ends: Numbers) -> tuple[Numbers, dict[int, Place]]:
        """Look at whole lines with line breaks at ``ends``; the first has number ``line`` and begins at ``offset``.

        Returns:
            the hash of each row's content, and the rows that need another look (and another hash) by their position.
        """
        lines = len(ends) + (data[-1] != _NEWLINE)
        try:
            # As many values as lines are one value a line, where no line is blank.
            rows = self._decoder.decode_lines(data)
            if len(rows) == lines and not _may_hold_blank_lines(data, ends[: lines - 1] + 1):
                hashes, odd = self._check(rows)
                keys = _count_keys(data) - self._more_keys
                if keys != self._own_keys * lines:
                    repeated = _with_repeated_keys(split_lines(bytes(data), line, offset))
                    self._own_keys = 0 if repeated else keys // lines
                    odd |= repeated
                places = split_lines(bytes(data), line, offset) if odd else []
                return np.array(hashes, dtype=np.int64), {i: places[i] for i in odd}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        return self._one_by_one(split_lines(bytes(data), line, offset))

    def _one_by_one(self, places: list[Place]) -> tuple[Numbers, dict[int, Place]]:
        good, rows, others = [], [], {}
        for i, place in enumerate(places):
            try:
                rows.append(self._decoder.decode(place[2]))
                good.append(i)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                others[i] = place
        hashes = np.zeros(len(places), dtype=np.int64)
        hashes[good], odd = self._check(rows) if rows else ([], set())
        odd |= _with_repeated_keys([places[i] for i in good])
        return hashes, others | {good[i]: places[good[i]] for i in odd}

    def _check(self, rows: Sequence[Any]) -> tuple[list[int], set[int]]:
        """The hash of each row's content, and the positions of odd rows."""
        hashes, odd = self._hashes(rows)
        for part in self._doubted:
            odd.update(i for i, row in enumerate(rows) if bytes(getattr(row, part))[:1] not in _PRAISE)
        return hashes, odd

    def _hashes(self, rows: Sequence[Any]) -> tuple[list[int], set[int]]:
        if self.format in _CHATS:
            return self._check_chats([getattr(row, _CHATS[self.format]) for row in rows])
        columns = {part: [getattr(row, part) for row in rows] for part in self._columns if part is not None}
        texts = list(chain.from_iterable(columns[part] for part in self._texts))
        odd = {i % len(rows) for i in _odd(texts, turns=self.format != "alpaca")}
        if "input" in columns:
            self._more_keys = len(rows) - columns["input"].count(None)
            # A row without input is a good one.
            columns["input"] = [text or None for text in columns["input"]]
            given = [i for i, text in enumerate(columns["input"]) if text]
            odd.update(given[i] for i in _odd([columns["input"][i] for i in given]))
            odd.update(i for i in given if is_missing(columns["input"][i]))
        if self.format == "preference":
            odd.update(i for i, row in enumerate(rows) if row.chosen == row.rejected)
        if self.format == "kto":
            self.labels.update(columns["label"])
        absent = [None] * len(rows)
        parts = zip(*(absent if part is None else columns[part] for part in self._columns), strict=True)
        return list(map(hash, parts)), odd

    def _check_chats(self, chats: list[list[Any]]) -> tuple[list[int], set[int]]:
        hashes: list[int] = []
        texts: list[str] = []
        odd: set[int] = set()
        for i, chat in enumerate(chats):
            said = [message.content for message in chat]
            roles = tuple([message.role for message in chat])
            hashes.append(chat_hash(roles, said))
            texts += said
            if not _in_order(roles):
                odd.add(i)
        self._more_keys = 2 * len(texts)
        if strange := _odd(texts):
            ends = list(accumulate(map(len, chats)))
            odd.update(bisect_right(ends, at) for at in strange)
        return hashes, odd


def _passes(column: str, doubted: Collection[str]) -> bool:
    """True for a column that nothing is read from, whatever it holds."""
    harmless = column in doubted or (column not in MEDIA and not like_mask(column))
    return harmless and not {*column} & {'"', "\\"} and column.isprintable()


def _may_hold_blank_lines(data: memoryview, starts: Numbers) -> bool:
    """Whether a line begins with white space; all but the first begin at ``starts``."""
    letters = np.frombuffer(data, dtype=np.uint8)
    return bool(letters[0] <= _SPACE or (letters[starts] <= _SPACE).any())


def _count_keys(data: memoryview) -> int:
    """How many keys there are in JSON, and in texts of which it is a part."""
    pairs = (np.frombuffer(data[start : start + (len(data) - start) // 2 * 2], dtype="<u2") for start in (0, 1))
    return sum(int(np.count_nonzero(pair == _KEY_END)) for pair in pairs)


def _with_repeated_keys(places: Sequence[Place]) -> set[int]:
    return {i for i, (_, _, raw) in enumerate(places) if parse_json(raw)[1] is not None}


def _odd(texts: list[str], *, turns: bool = False) -> list[int]:
    """Texts that are blank, or hold a control token, a NUL or misread letters; with ``turns``, also those that may hold
    turns. What finds none looks at many texts with few calls."""
    joined = "\n".join(texts)
    odd: list[int] = []
    if "<" in joined or "[" in joined or "\0" in joined:
        search = _MARK.search
        odd = [i for i, text in enumerate(texts) if "\0" in text or (("<" in text or "[" in text) and search(text))]
    if turns and ("#" in joined or ":" in joined) and any(hint in joined for hint in TRANSCRIPT_HINTS):
        odd += [i for i, text in enumerate(texts) if any(hint in text for hint in TRANSCRIPT_HINTS)]
    if turns:
        odd += [i for i, text in enumerate(texts) if text[:1] in "[{ \t\n" and text.lstrip()[:1] in "[{"]
    if may_be_misread(joined):
        odd += [i for i, text in enumerate(texts) if misread(text)]
    if not MISSING.isdisjoint(texts):
        odd += [i for i, text in enumerate(texts) if text in MISSING]
    if "" in texts or True in map(str.isspace, texts):
        odd += [i for i, text in enumerate(texts) if not text.strip()]
    return odd


@cache
def _in_order(roles: tuple[str, ...]) -> bool:
    warnings: list[RowError] = []
    try:
        check_turns([Turn(ROLE_OF[role], "text") for role in roles], "", warnings)
    except RowError:
        return False
    return not warnings
