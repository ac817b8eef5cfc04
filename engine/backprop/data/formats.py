"""Which format a row has, and a file: told from fields under their own names, or under names that are looked for.

``detect_fields`` is cheap and looks at one row; ``file_format`` looks at rows from all over a file; ``read_as`` says in
which format a row of that file is read, and ``convert`` reads it. Other spellings of names are in ``spellings``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from msgspec import Struct

from backprop.core.errors import some
from backprop.core.methods import Rows, methods_for
from backprop.data.chat_template import KEPT_THINKING
from backprop.data.content import kind, shown
from backprop.data.convert import convert
from backprop.data.dedup import fields_read
from backprop.data.example import ABSENT, PARTS, PLAIN, Fields, Format, RowError, describe_mapping
from backprop.data.messages import REASONING, holds_turns
from backprop.data.reader import Source
from backprop.data.spellings import find_names, judgement, like_mask, like_verdict, turn_keys
from backprop.data.traces import TraceLimits

FORMATS: tuple[Format, ...] = get_args(Format)
_ONE_ANSWER = ("sharegpt", "openai", "alpaca", "prompt_completion", "chatml")
"""Formats whose rows become feedback by a label, and pairs by a rejected answer."""
NO_FIELD = "-"
"""In a mapping: no field is this part."""
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_OF_THINKING = ("hink", "HINK", "reasoning")
_ALIKE = 16
"""Rows of the same fields and types whose names are looked into: the others are taken to be like them."""
_NAMED = 12
"""Columns that a note names."""


def detect_fields(row: Any, names: Fields = PLAIN) -> Format | None:
    """The format of one row, or ``None`` where its fields are no format's. Values are not checked."""
    row = names.held(row)
    if isinstance(row, str):
        return "chatml" if holds_turns(row) and ("<|im_start|>" not in row or "<|im_end|>" in row) else "text"
    if isinstance(row, list):
        return "openai" if turn_keys(row) else None
    if not isinstance(row, dict):
        return None
    judged = names.label in row and judgement(row[names.label]) is not None
    if judged and names.completion in row:
        return "kto"
    if names.chosen in row and names.rejected in row:
        return "preference"
    own = _one_answer(row, names)
    if own is not None:
        return "kto" if judged else "preference" if row.get(names.rejected) else own
    return "text" if isinstance(row.get(names.text), str) else None


def _one_answer(row: dict[str, Any], names: Fields) -> Format | None:
    chat = row.get(names.conversations)
    if chat and turn_keys(chat, "from", "value") == ("from", "value"):
        return "sharegpt"
    chat = row.get(names.messages)
    usual = (names.role, names.content)
    if chat and turn_keys(chat, *usual) in (usual, ("", "")):
        return "openai"
    if names.instruction in row and names.output in row:
        return "alpaca"
    if names.prompt in row and names.completion in row:
        return "prompt_completion"
    text = row.get(names.text)
    return "chatml" if isinstance(text, str) and holds_turns(text) else None


def read_as(row: Any, file: Format | None, names: Fields = PLAIN) -> Format | None:
    """The format that a row is read in: its own, whatever the other rows of its file are.

    A row of no known format is read as what its ``file`` is, so that the error names the field that is missing; so is
    an answer in a file of judged ones whose ``label`` is no judgement. ``None``: nothing can be read of it.
    """
    row, own = names.held(row), detect_fields(row, names)
    if own is None or (file == "kto" and own in _ONE_ANSWER and isinstance(row, dict) and names.label in row):
        return file
    return own


class FormatCounts(Struct, kw_only=True):
    """Rows per format; those of no known format under ``unknown``."""

    counts: dict[str, int] = {}
    lines: dict[str, list[int]] = {}
    """The first lines of each format."""

    def add(self, name: str, line: int, *, keep_lines: int = 5) -> None:
        """Count one row."""
        self.counts[name] = self.counts.get(name, 0) + 1
        lines = self.lines.setdefault(name, [])
        if len(lines) < keep_lines:
            lines.append(line)

    @property
    def mixed(self) -> bool:
        """Whether rows have several known formats."""
        return sum(name != "unknown" for name in self.counts) > 1

    def describe(self) -> str:
        """``990 alpaca, 10 sharegpt (lines 4, 9, 12 …)``: counts, and where the fewer ones are."""
        words: list[str] = []
        for name, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            lines = self.lines.get(name, [])
            where = ", ".join(map(str, lines)) + (" …" if count > len(lines) else "")
            words.append(f"{count} {name}" + (f" (line{'s' if count > 1 else ''} {where})" if words and lines else ""))
        return ", ".join(words)


class FileFormat(FormatCounts, kw_only=True):
    """What the rows of a file are, by a look at rows from all over it."""

    format: Format | None
    """The format of most rows; ``None`` where no row has a known one."""
    mapping: dict[str, str]
    """Part → field: what was given, and what was found beside it."""
    names: Fields = PLAIN
    """The field names of that mapping."""
    found: dict[str, str] = {}
    """The part of the mapping that was found, not given."""
    looked_at: int = 0
    """Rows that all this was told from."""
    columns: dict[str, int] = {}
    """Every column, with the number of those rows that have it."""
    unused: dict[str, int] = {}
    """Columns that nothing reads, with the number of those rows in which they say something."""
    without_effect: dict[str, str] = {}
    """Those of them that look like a label, a weight or a mask, and what would use them."""
    traces: int = 0
    """Of the rows that were looked at, those whose answers have a reasoning trace."""

    def notes(self) -> list[str]:
        """What was guessed, and what is not used, each in one line for a person."""
        said = []
        if self.found:
            said.append(f"fields are read as {describe_mapping(self.found)}; --map says otherwise")
        if self.unused:
            named = [f"{name} ({self._share(count)})" for name, count in self.unused.items()]
            said.append(f"columns that are not used: {some(named, _NAMED)}")
        if thinking := [name for name in self.unused if name.lower() in REASONING]:
            said.append(f"--map reasoning={thinking[0]} trains what is in {thinking[0]} as thinking before the answer")
        said += [f"{name} has no effect on what is trained; {way}" for name, way in self.without_effect.items()]
        return said

    def trace_finding(self, trained: str = KEPT_THINKING) -> RowError:
        """The finding about reasoning traces in a file that is trained without the setting for them."""
        words = f"reasoning traces ({self._share(self.traces)}) are {trained}"
        return RowError("reasoning_trace", "", f"{words}; --reasoning-trace trains each whole, as plain text", "info")

    def doubts(self, row: Any, format: Format) -> list[RowError]:
        """The warning about an answer that a column without effect calls bad. Feedback and pairs have their own."""
        if not self.without_effect or format in ("kto", "preference"):
            return []
        row = self.names.held(row)
        values = {name: row.get(name) for name in self.without_effect if like_verdict(name) and isinstance(row, dict)}
        return [
            RowError("bad_as_good", name, f"{name} is {shown(value)}: the answer is trained as a good one", "warning")
            for name, value in values.items()
            if judgement(value) is False or (isinstance(value, int | float) and value < 0)
        ]

    def _share(self, count: int) -> str:
        return "every row" if count == self.looked_at else f"{max(1, round(100 * count / self.looked_at))} % of rows"


def file_format(source: Source, mapping: Mapping[str, str] | None = None) -> FileFormat:
    """The format of a file and the field mapping in use: the one answer for checking, training, reports and screens."""
    return detect_file(source.sample(), mapping)


def detect_file(rows: Iterable[Any], mapping: Mapping[str, str] | None = None) -> FileFormat:
    """The format of most of ``rows``, whatever their order.

    What the formats' own names and the ``mapping`` leave open is looked for under other names, and added where it
    explains more rows than without.
    """
    given = dict(mapping or {})
    whole = list(rows)
    found = _held_in(whole, given)
    holder = Fields(given | found)
    rows = [holder.held(row) for row in whole]
    columns = Counter(name for row in rows if isinstance(row, dict) for name in row)
    formats = _formats(rows, given | found)
    if "label" not in given and "kto" in formats and (label := _class_label(rows)):
        found |= label
        formats = _formats(rows, given | found)
    more = _common_mapping(rows, given | found, len(rows) - formats.count(None))
    more |= _beside(rows, given | found | more, columns)
    if more:
        found |= more
        formats = _formats(rows, given | found)
    names = Fields(given | found)
    counts = Counter(own or "unknown" for own in formats)
    unused: dict[str, list[Any]] = defaultdict(list)
    for row, own in zip(rows, formats, strict=True):
        if isinstance(row, dict) and own is not None:
            read = fields_read(row, own, names)
            for name, value in row.items():
                if name not in read and value not in _EMPTY:
                    unused[str(name)].append(value)
    for row in whole if holder.row != ABSENT else ():
        for name, value in row.items() if isinstance(row, dict) else ():
            if name != holder.row:
                unused[str(name)].append(value)
    format = max((name for name in FORMATS if counts[name]), key=counts.__getitem__, default=None)
    return FileFormat(
        format=format,
        mapping=given | found,
        names=names,
        found=found,
        looked_at=len(rows),
        columns=dict(columns),
        traces=sum(map(_thinks, rows, formats, [names] * len(rows))),
        unused=dict(Counter({name: len(values) for name, values in unused.items()}).most_common()),
        without_effect={name: way for name, values in unused.items() if (way := _what_would_use(name, values, format))},
        counts={name: count for name, count in counts.items() if count},
    )


def _thinks(row: Any, format: Format | None, names: Fields) -> bool:
    try:
        # Reading a row takes five times as long as looking for the words that say so: <think>, reasoning_content …
        text = repr(row)
        if format is None or (names.reasoning == ABSENT and not any(word in text for word in _OF_THINKING)):
            return False
        example = convert(row, format, names)
    except (RowError, RecursionError):
        return False
    return example.text is None and TraceLimits().reason(example) != "no_think"


def _what_would_use(name: str, values: list[Any], format: Format | None) -> str:
    """What would use a column that looks like a label, a weight or a mask; empty for any other."""
    if not like_verdict(name):
        flags = like_mask(name) and all(isinstance(value, bool) or value in (0, 1) for value in values)
        turns = "turns are left out by 'train' in a message, or --map loss_mask=FIELD, a list of one 0 or 1 a turn"
        return turns if flags else ""
    judged = [value for value in values if judgement(value) is not None]
    if format == "text" and len(judged) == len(values):
        return "texts have no answer that a label could leave out"
    if len(judged) == len(values) or any(isinstance(value, bool | str) for value in judged):
        return f"--map label={name} leaves out the answers that it calls bad"
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values) and (min(numbers) < 0 or max(numbers) <= 1):
        return "rows are left out by a label, true or false (--map label=FIELD)"
    return ""


def _held_in(rows: list[Any], given: dict[str, str]) -> dict[str, str]:
    """``row`` → the field with the object that most rows keep everything in: the only one of a known shape, where
    nothing beside it would be read."""
    names, found, known = Fields(given), Counter[str](), len(rows)
    for group in _alike(rows) if "row" not in given else ():
        row = group[0]
        if detect_fields(row, names) is not None:
            continue
        inside = [name for name, held in row.items() if isinstance(held, dict) and _is_known(held, given)]
        beside = {*PARTS, *find_names(row, given, whole=False).values(), *find_mapping(row, given).values()}
        if len(inside) == 1 and beside.isdisjoint({*row} - {*inside}):
            found[inside[0]] += len(group)
            known -= len(group)
    return {"row": max(found, key=found.__getitem__)} if sum(found.values()) > known else {}


def _is_known(row: dict[str, Any], given: dict[str, str]) -> bool:
    return detect_fields(row, Fields(given)) is not None or bool(find_mapping(row, given))


def _class_label(rows: Iterable[Any]) -> dict[str, str]:
    """The mapping that keeps a class from being a judgement in the rows where it happens to be 0 or 1."""
    labels = [judgement(row["label"]) for row in rows if isinstance(row, dict) and row.get("label") not in _EMPTY]
    judged = len(labels) - labels.count(None)
    return {"label": NO_FIELD} if 0 < 2 * judged < len(labels) else {}


def _formats(rows: Iterable[Any], mapping: dict[str, str]) -> list[Format | None]:
    names = Fields(mapping)
    return [detect_fields(row, names) for row in rows]


def find_mapping(row: Any, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """What makes sense of a row that is of no known format under ``given``: part → field, or nothing."""
    given = given or {}
    if not isinstance(row, dict) or detect_fields(row, Fields(given)) is not None:
        return {}
    found = find_names(row, given, whole=True)
    return found if detect_fields(row, Fields({**given, **found})) is not None else {}


def _alike(rows: Iterable[Any]) -> list[list[dict[str, Any]]]:
    """Rows by their shape: those with the same fields, and values of the same types, together."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        if isinstance(row, dict):
            groups.setdefault((*row, *map(type, row.values())), []).append(row)
    return list(groups.values())


def _common_mapping(rows: Iterable[Any], given: dict[str, str], known: int) -> dict[str, str]:
    """The mapping that most rows of unknown format need, where they are more than the ``known`` ones.

    Of two that agree the one with more fields is taken: a field that some rows lack is not lost for the others.
    """
    wanted: dict[tuple[tuple[str, str], ...], float] = defaultdict(float)
    for group in _alike(rows):
        some = group[:_ALIKE]
        for row in some:
            if found := find_mapping(row, given):
                wanted[tuple(found.items())] += len(group) / len(some)
    if sum(wanted.values()) <= known:
        return {}
    best = max(wanted, key=lambda items: (wanted[items], items))
    return max(
        (dict(items) for items in wanted if {*items} >= {*best}), key=lambda found: (len(found), [*found.items()])
    )


def _beside(rows: Iterable[Any], mapping: dict[str, str], columns: Mapping[str, int]) -> dict[str, str]:
    """What stands beside question and answer under another name, in any of the rows: a system text, a label …

    A name that some rows have as the format does is left to them.
    """
    found: dict[str, str] = {}
    for row in (row for group in _alike(rows) for row in group[:_ALIKE]):
        more = find_names(row, {**mapping, **found}, whole=False)
        if more and (format := detect_fields(row, names := Fields({**mapping, **found, **more}))) is not None:
            read = fields_read(row, format, names)
            found |= {part: name for part, name in more.items() if part not in columns and name in read}
    return found


def rows_of(format: Format | str | None) -> Rows:
    """What rows of a format are made for."""
    return "pairs" if format == "preference" else "feedback" if format == "kto" else "conversation"


def other_method(format: Format | str | None, rows: Rows) -> str:
    """What to do with rows of a format where the method learns from others; empty where it learns from these."""
    own = rows_of(format)
    if rows in ("conversation", own):
        return ""
    return f"rows like these are learned from with --method {' or '.join(methods_for(own))}"


def chosen_alone(format: Format | str | None, rows: Rows) -> str:
    """That of pairs one side is learned, where that is so, and what learns from both; else empty."""
    alone = rows == "conversation" and format == "preference"
    return "of each pair the chosen answer alone is trained: --method dpo learns from both" if alone else ""


def unknown_format(value: Any) -> RowError:
    """The error of a row whose fields are no format's."""
    if isinstance(value, dict) and "input_ids" in value:
        return RowError("unknown_format", "input_ids", "the row is tokenised already: give its text")
    if isinstance(value, dict):
        fields = ", ".join(str(key) for key in list(value)[:8])
        return RowError("unknown_format", "", f"no known format has these fields: {fields or 'none'}")
    return RowError("unknown_format", "", f"it is {kind(value)}, not an object with fields")


def mixed_format(own: Format, file: Format | None) -> RowError:
    """The warning about a row of another format than most."""
    words = f"the row is {own}, where most rows are {file}: it is read as what it is"
    return RowError("mixed_format", "", words, "warning")
