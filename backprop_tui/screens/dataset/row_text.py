"""What the Data screen says about single rows: the line of the table, the chat, the JSON. Made in threads."""

from __future__ import annotations

import json
import re

from backprop.data.formats import Example, FileFormat, Format, RowError, Turn, convert, detect_fields
from backprop.data.mapping import Fields
from backprop.data.reader import Row

from backprop_tui.screens.dataset.rows import RowSummary
from backprop_tui.widgets.styled import Line, many_lines, one_line, split_lines

PREVIEW = 400
LONGEST_SHOWN = 200_000
"""Characters of one text that a view shows: a row of megabytes stays readable and quick."""
_KINDS = {int: "a number", float: "a number", bool: "true or false", str: "a text", list: "a list", type(None): "null"}
_LETTERS = {"system": "S", "user": "U", "assistant": "A", "tool": "T"}
_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|(-?\d[\d.eE+-]*)|(true|false|null)|([^"\d\w-]+|\S)')


def format_of(value: object, file: FileFormat) -> Format | None:
    """What a row is read as: its own format where the file mixes them, as training does."""
    found = detect_fields(value, Fields(file.mapping))
    # Pairs and judged answers are read as what the file is, so that the error names the field that is missing.
    return file.format if found is None or file.format in ("preference", "kto") else found


def read_row(row: Row, file: FileFormat) -> tuple[Example | None, RowError | None]:
    """The row as an example of the file's format, or of its own where the file mixes them; or what is wrong."""
    if row.error is not None:
        return None, row.error
    format = format_of(row.value, file)
    if format is None:
        kind = _KINDS.get(type(row.value))
        words = f"it is {kind}, not an object with fields" if kind else "its fields are no known format's"
        return None, RowError("unknown_format", "", words)
    try:
        return convert(row.value, format, file.mapping), None
    except RowError as error:
        return None, error


def summarise(row: Row, file: FileFormat) -> RowSummary:
    """The row's line in the table."""
    example, error = read_row(row, file)
    if example is None:
        message = error.message if error is not None else ""
        where = f"{error.field}: " if error is not None and error.field and error.field not in message else ""
        return RowSummary(row.line, "error", "", len(row.raw), one_line(f"{where}{message}")[:PREVIEW])
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
        return one_line(example.text[:PREVIEW])
    turns = [turn for _, part in all_turns(example) for turn in part]
    words = [turn.content[:PREVIEW].strip() for turn in turns if turn.role != "system"] or [
        turn.content[:PREVIEW] for turn in turns
    ]
    return one_line(" ▸ ".join(word for word in words if word)[:PREVIEW])


def chat_lines(row: Row, file: FileFormat) -> list[Line]:
    """The row as the conversation it is read as, with what was noticed about it first."""
    if row.error is not None:
        return raw_lines(row)
    example, error = read_row(row, file)
    if example is None:
        return [*problem_lines(error), (), *raw_lines(row)[:200]]
    lines: list[Line] = []
    for warning in example.warnings:
        style = "warning" if warning.severity == "warning" else "dim"
        lines += [((f"{'!' if style == 'warning' else '·'} {one_line(warning.message)}", style),)]
    if example.text is not None:
        return [*lines, *_shortened(example.text, "")]
    if example.tools:
        functions = (tool.get("function", tool) for tool in example.tools)
        names = ", ".join(str(f.get("name", "?")) if isinstance(f, dict) else str(f) for f in functions)
        lines += [((f"tools: {one_line(names)}", "tool"),)]
    for heading, turns in all_turns(example):
        if heading:
            lines += [(), ((f"── {heading} ──", "heading"),)]
        for turn in turns:
            lines += _turn_lines(turn)
    return lines


def _turn_lines(turn: Turn) -> list[Line]:
    style = turn.role if turn.role in _LETTERS else "other"
    note = {None: "", True: "  (the row says: train)", False: "  (not trained)"}[turn.train]
    name = f" {one_line(turn.name)}" if turn.name else ""
    lines: list[Line] = [(), ((f"▌{one_line(turn.role)}{name}", style), (note, "dim"))]
    if turn.reasoning:
        lines += [((f"  {text}", "dim"),) for text in many_lines(turn.reasoning[:LONGEST_SHOWN]).split("\n")]
    if turn.content:
        lines += _shortened(turn.content, "")
    for call in turn.tool_calls or []:
        function = call.get("function", {})
        arguments = json.dumps(function.get("arguments"), ensure_ascii=False)[:LONGEST_SHOWN]
        lines += [((f"→ {one_line(str(function.get('name')))}({one_line(arguments)})", "tool"),)]
    if turn.blank():
        lines += [(("(empty)", "dim"),)]
    return lines


def _shortened(text: str, style: str) -> list[Line]:
    lines = split_lines(text[:LONGEST_SHOWN], style)
    if len(text) > LONGEST_SHOWN:
        lines += [((f"… {len(text) - LONGEST_SHOWN:,} more characters, not shown", "dim"),)]
    return lines


def problem_lines(error: RowError | None) -> list[Line]:
    if error is None:
        return []
    lines: list[Line] = [(("✗ This row cannot be used for training", "error"),)]
    if error.field:
        lines += [(("field  ", "dim"), (one_line(error.field), ""))]
    lines += [(("why    ", "dim"), (one_line(error.message), "")), (("code   ", "dim"), (error.code, ""))]
    return lines


def raw_lines(row: Row) -> list[Line]:
    """The row as JSON, indented and coloured; as it stands in the file where it is no JSON."""
    if row.error is not None:
        return [
            *problem_lines(row.error),
            (),
            *_shortened(row.raw[: 4 * LONGEST_SHOWN].decode("utf-8", "replace"), ""),
        ]
    text = json.dumps(row.value, ensure_ascii=False, indent=2, default=str)
    lines = [_coloured(line) for line in text[:LONGEST_SHOWN].split("\n")]
    if len(text) > LONGEST_SHOWN:
        lines += [((f"… {len(text) - LONGEST_SHOWN:,} more characters, not shown", "dim"),)]
    return lines


def _coloured(line: str) -> Line:
    """One line of indented JSON by kinds of token. What does not scan (a string cut off) stays plain."""
    pieces: list[tuple[str, str]] = []
    end = 0
    for match in _TOKEN.finditer(line):
        if match.start() > end:
            pieces.append((one_line(line[end : match.start()]), ""))
        string, colon, number, literal, _ = match.groups()
        style = "key" if colon else "string" if string else "number" if number else "literal" if literal else ""
        pieces.append((one_line(string), style) if string else (one_line(match[0]), style))
        if colon:
            pieces.append((colon, ""))
        end = match.end()
    if end < len(line):
        pieces.append((one_line(line[end:]), ""))
    return pieces


def problem_text(error: object) -> list[Line]:
    """An error for a person, as lines: what, then what to do."""
    message = getattr(error, "message", str(error))
    hint, code = getattr(error, "hint", ""), getattr(error, "code", "")
    lines: list[Line] = [*([(f"✗ {one_line(part)}", "error")] for part in str(message).split("\n"))]
    if hint:
        lines += [(), (("→ ", "heading"), (one_line(hint), ""))]
    if code:
        lines += [(), ((code, "dim"),)]
    return lines
