"""What the Data screen says about a single row: its line in the table, as a chat, as JSON. Made in threads."""

from __future__ import annotations

import json
import re

from backprop.core.errors import BackpropError
from backprop.core.events import with_place
from backprop.data.convert import convert
from backprop.data.example import Example, Fields, Format, RowError, Turn
from backprop.data.formats import FileFormat, read_as, unknown_format
from backprop.data.reader import Row as DataRow
from msgspec import Struct

from backprop_tui.hints import hint_here
from backprop_tui.screens.dataset.file import OpenFile
from backprop_tui.text import SEVERITY, Row, safe, split_lines
from backprop_tui.widgets.cells import fact

PREVIEW = 400
LONGEST_SHOWN = 200_000
"""Characters of one text that a view shows: a row of megabytes stays readable and quick."""
_LETTERS = {"system": "S", "user": "U", "assistant": "A", "tool": "T"}
_ROLES = {"system": "warn+bold", "user": "info+bold", "assistant": "good+bold", "tool": "mark+bold"}
_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|(-?\d[\d.eE+-]*)|(true|false|null)|([^"\d\w-]+|\S)')


def format_of(value: object, file: FileFormat) -> Format | None:
    """What a row is read as: its own format where the file mixes them, as training does."""
    return read_as(value, file.format, Fields(file.mapping))


def read_row(row: DataRow, file: FileFormat) -> tuple[Example | None, RowError | None]:
    """The row as an example of the file's format, or of its own where the file mixes them; or what is wrong."""
    if row.error is not None:
        return None, row.error
    format = format_of(row.value, file)
    if format is None:
        return None, unknown_format(row.value)
    try:
        return convert(row.value, format, file.mapping), None
    except RowError as error:
        return None, error


class RowSummary(Struct, frozen=True):
    """What the table shows of one row."""

    line: int
    mark: str
    """``error``, ``warning`` or empty."""
    turns: str
    """The roles in order, one letter each (``SUAUA``), or the format where a row has none."""
    size: int
    """Bytes of the row in the file."""
    preview: str
    """The row's text on one line, or what is wrong with it."""


def summarise(opened: OpenFile, index: int) -> RowSummary:
    """The row's line in the table."""
    row = opened.row(index)
    example, error = read_row(row, opened.file)
    if example is None:
        words = with_place(error.field, error.message) if error is not None else ""
        return RowSummary(row.line, "error", "", len(row.raw), safe(words)[:PREVIEW])
    mark = "warning" if any(warning.severity == "warning" for warning in example.warnings) else ""
    return RowSummary(row.line, mark, _letters(example), len(row.raw), _preview(example))


def all_turns(example: Example) -> list[tuple[str, list[Turn]]]:
    """The parts of an example in the order they are read: heading (empty for the conversation) and turns."""
    parts = [("", example.turns)]
    if example.chosen or example.rejected:
        parts += [("chosen", example.chosen), ("rejected", example.rejected)]
    if example.completion:
        verdict = {True: "good", False: "bad", None: "not judged"}[example.label]
        parts.append((f"completion, labelled {verdict}", example.completion))
    return parts


def _letters(example: Example) -> str:
    if example.text is not None:
        return "text"
    letters = "".join(_LETTERS.get(turn.role, "?") for turn in example.turns)
    if example.format == "preference":
        return f"{letters[-5:]}+/-"
    if example.format == "kto":
        return f"{letters[-5:]}{'+' if example.label else '-'}"
    return letters if len(letters) <= 8 else f"{letters[:4]}×{len(letters)}"


def _preview(example: Example) -> str:
    if example.text is not None:
        return safe(example.text[:PREVIEW])
    turns = [turn for _, part in all_turns(example) for turn in part]
    turns = [turn for turn in turns if turn.role != "system"] or turns
    words = (turn.content[:PREVIEW].strip() for turn in turns)
    return safe(" ▸ ".join(word for word in words if word)[:PREVIEW])


def chat_lines(row: DataRow, file: FileFormat) -> list[Row]:
    """The row as the conversation it is read as, with what was noticed about it first."""
    if row.error is not None:
        return raw_lines(row)
    example, error = read_row(row, file)
    if example is None:
        return [*problem_lines(error), [], *raw_lines(row)[:200]]
    lines: list[Row] = []
    for warning in example.warnings:
        mark, ink = SEVERITY["warning" if warning.severity == "warning" else "info"]
        lines.append([(f"{mark} {safe(warning.message)}", ink)])
    if example.text is not None:
        return [*lines, *_shortened(example.text)]
    if example.tools:
        functions = (tool.get("function", tool) for tool in example.tools)
        names = ", ".join(str(f.get("name", "?")) if isinstance(f, dict) else str(f) for f in functions)
        lines.append([(f"tools: {safe(names)}", "mark+bold")])
    for heading, turns in all_turns(example):
        if heading:
            lines += [[], [(f"── {heading} ──", "strong+bold")]]
        for turn in turns:
            lines += _turn_lines(turn)
    return lines


def _turn_lines(turn: Turn) -> list[Row]:
    ink = _ROLES.get(turn.role, "bad+bold")
    note = {None: "", True: "  (the row says: train)", False: "  (not trained)"}[turn.train]
    name = f" {safe(turn.name)}" if turn.name else ""
    lines: list[Row] = [[], [(f"▌{safe(turn.role)}{name}", ink), (note, "muted")]]
    if turn.reasoning:
        lines += [[("  ", "text"), *line] for line in split_lines(turn.reasoning[:LONGEST_SHOWN], "muted")]
    if turn.content:
        lines += _shortened(turn.content)
    for call in turn.tool_calls or []:
        function = call.get("function", {})
        arguments = json.dumps(function.get("arguments"), ensure_ascii=False)[:LONGEST_SHOWN]
        lines.append([(f"→ {safe(str(function.get('name')))}({safe(arguments)})", "mark+bold")])
    if turn.blank():
        lines.append([("(empty)", "muted")])
    return lines


def _shortened(text: str) -> list[Row]:
    return split_lines(text[:LONGEST_SHOWN], "text") + _not_shown(len(text) - LONGEST_SHOWN)


def _not_shown(characters: int) -> list[Row]:
    return [[(f"… {characters:,} more characters, not shown", "muted")]] if characters > 0 else []


def problem_lines(error: RowError | None) -> list[Row]:
    if error is None:
        return []
    facts = (("field", error.field), ("why", error.message), ("code", error.code))
    lines: list[Row] = [[("✗ This row cannot be used for training", "bad")]]
    return lines + [fact(label, safe(value), width=7) for label, value in facts if value]


def raw_lines(row: DataRow) -> list[Row]:
    """The row as JSON, indented and coloured; as it stands in the file where it is no JSON."""
    if row.error is not None:
        raw = row.raw[: 4 * LONGEST_SHOWN].decode("utf-8", "replace")
        return [*problem_lines(row.error), [], *_shortened(raw)]
    text = json.dumps(row.value, ensure_ascii=False, indent=2, default=str)
    return [_coloured(line) for line in text[:LONGEST_SHOWN].split("\n")] + _not_shown(len(text) - LONGEST_SHOWN)


def _coloured(line: str) -> Row:
    """One line of indented JSON by kinds of token. What does not scan (a string cut off) stays plain."""
    pieces: Row = []
    end = 0
    for match in _TOKEN.finditer(line):
        if match.start() > end:
            pieces.append((safe(line[end : match.start()]), "text"))
        string, colon, number, literal, _ = match.groups()
        ink = "info" if colon else "good" if string else "mark" if number else "warn" if literal else "text"
        pieces.append((safe(string or match[0]), ink))
        if colon:
            pieces.append((colon, "text"))
        end = match.end()
    if end < len(line):
        pieces.append((safe(line[end:]), "text"))
    return pieces


def error_lines(error: BackpropError) -> list[Row]:
    """An error for a person: what, then what to do."""
    lines: list[Row] = [[(f"✗ {safe(part)}", "bad")] for part in error.message.split("\n")]
    if error.hint:
        lines += [[], [("→ ", "strong+bold"), (safe(hint_here(error.hint)), "text")]]
    return [*lines, [], [(error.code, "muted")]] if error.code else lines
