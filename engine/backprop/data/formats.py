"""Rows of data → turns: which format a row has, and what it says (formats: README, "Data").

``detect`` is cheap and looks at one row; ``detect_file`` counts over rows; ``convert`` reads a row in a format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from msgspec import Struct

from backprop.data.example import Example, Format, RowError, Turn, as_context
from backprop.data.mapping import PLAIN, Fields, find_mapping
from backprop.data.messages import as_text, check_turns, kind, read_tools, read_turns, shown

__all__ = ["Example", "FileFormat", "Format", "RowError", "Turn", "convert", "detect", "detect_fields", "detect_file"]

FORMATS: tuple[Format, ...] = get_args(Format)
_START, _END = "<|im_start|>", "<|im_end|>"


def detect(row: Any, mapping: Mapping[str, str] | None = None) -> Format | None:
    """The format of one row, or ``None`` where its fields are no format's. Values are not checked."""
    return detect_fields(row, Fields(mapping) if mapping else PLAIN)


def detect_fields(row: Any, names: Fields) -> Format | None:
    """``detect`` with the mapping already read, for many rows."""
    if isinstance(row, str):
        return "chatml" if _START in row and _END in row else "text"
    if not isinstance(row, dict):
        return None
    label = row.get(names.label)
    if names.completion in row and type(label) in (bool, int) and label in (0, 1):
        return "kto"
    if names.chosen in row and names.rejected in row:
        return "preference"
    turns = row.get(names.conversations)
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0] and "value" in turns[0]:
        return "sharegpt"
    turns = row.get(names.messages)
    if (
        isinstance(turns, list)
        and turns
        and isinstance(turns[0], dict)
        and "role" in turns[0]
        and "content" in turns[0]
    ):
        return "openai"
    if names.instruction in row and names.output in row:
        return "alpaca"
    if names.prompt in row and names.completion in row:
        return "prompt_completion"
    text = row.get(names.text)
    if isinstance(text, str):
        return "chatml" if _START in text else "text"
    return None


class FileFormat(Struct, kw_only=True):
    """What the rows of a file are."""

    format: Format | None
    """The format of most rows; ``None`` where no row has a known one."""
    mapping: dict[str, str]
    """Part → field: the one given, or the one found."""
    found: bool = False
    """True when the mapping was found, not given."""
    counts: dict[str, int] = {}
    """Rows per format; those of no known format under ``unknown``."""
    lines: dict[str, list[int]] = {}
    """The first lines of each format."""

    def add(self, name: str, line: int, *, keep_lines: int = 20) -> None:
        """Count one row."""
        self.counts[name] = self.counts.get(name, 0) + 1
        lines = self.lines.setdefault(name, [])
        if len(lines) < keep_lines:
            lines.append(line)

    @property
    def usual(self) -> Format | None:
        """The known format that most rows have."""
        known = [name for name in FORMATS if name in self.counts]
        return max(known, key=self.counts.__getitem__, default=None)

    @property
    def mixed(self) -> bool:
        return sum(name != "unknown" for name in self.counts) > 1

    def describe_mix(self) -> str:
        """``990 alpaca, 10 sharegpt (lines 4, 9, 12 …)``: counts, and where the fewer ones are."""
        words: list[str] = []
        for name, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            lines = ", ".join(str(line) for line in self.lines[name][:5]) + (" …" if count > 5 else "")
            words.append(f"{count} {name}" + (f" (line{'s' if count > 1 else ''} {lines})" if words else ""))
        return ", ".join(words)


def detect_file(rows: Iterable[tuple[int, Any]], mapping: Mapping[str, str] | None = None) -> FileFormat:
    """The format of a file's rows, given as (line, row).

    Without a ``mapping``, one is looked for in rows of unknown format; it is taken when their fields then make a
    format.
    """
    file = FileFormat(format=None, mapping=dict(mapping or {}))
    names = Fields(mapping)
    for line, row in rows:
        name = detect_fields(row, names)
        if name is None and not file.mapping:
            wanted = find_mapping(row)
            if wanted and detect(row, wanted) is not None:
                file.mapping, file.found = wanted, True
                names = Fields(wanted)
                name = detect_fields(row, names)
        file.add(name or "unknown", line)
    file.format = file.usual
    return file


def convert(row: Any, format: Format, mapping: Mapping[str, str] | Fields | None = None) -> Example:
    """Read a row in ``format``.

    Raises:
        RowError: the row cannot be used, with its code, the field as the row calls it, and why.
    """
    names = mapping if isinstance(mapping, Fields) else Fields(mapping) if mapping else PLAIN
    if isinstance(row, str):
        return _chatml(row) if format == "chatml" else _text(row, "text")
    if not isinstance(row, dict):
        raise RowError("invalid_type", "", f"the row is {kind(row)}, where an object is needed")
    try:
        return _READERS[format](row, names)
    except RecursionError:
        raise RowError("too_deep", "", "the row is nested too deeply to be read") from None


def _need(row: dict[str, Any], name: str, of: str) -> Any:
    if name not in row:
        raise RowError("missing_field", name, f"the row has no {name!r}, which {of} rows have")
    return row[name]


def _tools(row: dict[str, Any], names: Fields) -> list[dict[str, Any]] | None:
    for name in (names.tools, names.functions):
        if row.get(name) is not None:
            return read_tools(row[name], name)
    return None


def _system(row: dict[str, Any], names: Fields, turns: list[Turn]) -> list[Turn]:
    """The turns with the row's ``system`` column first, unless they already start with a system turn."""
    text = as_text(row.get(names.system), names.system)
    if not text.strip() or (turns and turns[0].role == "system"):
        return turns
    return [Turn("system", text), *turns]


def _chat(format: Format, part: str) -> Callable[[dict[str, Any], Fields], Example]:
    def read(row: dict[str, Any], names: Fields) -> Example:
        name = getattr(names, part)
        warnings: list[RowError] = []
        turns = read_turns(_need(row, name, format), name, warnings)
        if turns:
            turns = _system(row, names, turns)
        check_turns(turns, name, warnings)
        return Example(format=format, turns=turns, tools=_tools(row, names), warnings=warnings)

    return read


def _alpaca(row: dict[str, Any], names: Fields) -> Example:
    warnings: list[RowError] = []
    asked = as_text(_need(row, names.instruction, "alpaca"), names.instruction)
    more = as_text(row.get(names.input), names.input)
    answer = as_text(_need(row, names.output, "alpaca"), names.output)
    if more.strip():
        asked = f"{asked}\n\n{more}" if asked.strip() else more
    turns: list[Turn] = []
    for i, pair in enumerate(row.get(names.history) or []):
        place = f"{names.history}[{i}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("invalid_type", place, f"{place} must be a pair of question and answer")
        turns += [Turn("user", as_text(pair[0], place)), Turn("assistant", as_text(pair[1], place))]
    turns += [Turn("user", asked), Turn("assistant", answer)]
    turns = _system(row, names, turns)
    if not asked.strip():
        warnings.append(RowError("empty_content", names.instruction, f"{names.instruction} is empty", "warning"))
    if not answer.strip():
        warnings.append(RowError("empty_content", names.output, f"{names.output} is empty", "warning"))
    return Example(format="alpaca", turns=turns, tools=_tools(row, names), warnings=warnings)


def _prompt_turns(row: dict[str, Any], names: Fields, warnings: list[RowError]) -> list[Turn]:
    """The prompt: text or messages, or the chat column that some rows keep it in. Blank text is no turn."""
    value = row.get(names.prompt)
    if value is None:
        for name in (names.conversations, names.messages):
            if row.get(name) is not None:
                return _system(row, names, read_turns(row[name], name, warnings, role="user"))
        return []
    turns = (
        read_turns(value, names.prompt, warnings, role="user")
        if isinstance(value, list | dict)
        else [Turn("user", as_text(value, names.prompt))]
    )
    turns = [turn for turn in turns if not (turn.role == "user" and turn.blank())]
    return _system(row, names, turns)


def _answer_turns(value: Any, name: str, warnings: list[RowError]) -> list[Turn]:
    if isinstance(value, list | dict):
        turns = read_turns(value, name, warnings)
    else:
        turns = [Turn("assistant", as_text(value, name))]
    if not turns or all(turn.blank() for turn in turns):
        warnings.append(RowError("empty_content", name, f"{name} is empty", "warning"))
    return turns


def _prompt_completion(row: dict[str, Any], names: Fields) -> Example:
    warnings: list[RowError] = []
    _need(row, names.prompt, "prompt/completion")
    prompt = _prompt_turns(row, names, warnings)
    answer = _answer_turns(_need(row, names.completion, "prompt/completion"), names.completion, warnings)
    if not any(turn.role == "assistant" for turn in answer):
        raise RowError("no_assistant", names.completion, f"{names.completion} holds no turn of the assistant")
    return Example(
        format="prompt_completion", turns=[*as_context(prompt), *answer], tools=_tools(row, names), warnings=warnings
    )


def _kto(row: dict[str, Any], names: Fields) -> Example:
    warnings: list[RowError] = []
    prompt = _prompt_turns(row, names, warnings)
    answer = _answer_turns(_need(row, names.completion, "feedback"), names.completion, warnings)
    label = _need(row, names.label, "feedback")
    if type(label) not in (bool, int) or label not in (0, 1):
        raise RowError(
            "invalid_value", names.label, f"{names.label} must be true or false (or 1, 0), not {shown(label)}"
        )
    return Example(
        format="kto",
        turns=prompt,
        completion=answer,
        label=bool(label),
        tools=_tools(row, names),
        warnings=warnings,
    )


def _preference(row: dict[str, Any], names: Fields) -> Example:
    warnings: list[RowError] = []
    chosen = _answer_turns(_need(row, names.chosen, "preference"), names.chosen, warnings)
    rejected = _answer_turns(_need(row, names.rejected, "preference"), names.rejected, warnings)
    prompt = _prompt_turns(row, names, warnings)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    # Both sides may repeat the prompt, whole or its last turns, or be its only place.
    if chosen[:shared] != prompt[len(prompt) - shared :]:
        prompt = [*prompt, *chosen[:shared]]
    chosen, rejected = chosen[shared:], rejected[shared:]
    if not prompt:
        warnings.append(RowError("no_prompt", names.prompt, "the pair has no prompt", "info"))
    if chosen == rejected:
        warnings.append(RowError("same_sides", names.rejected, "chosen and rejected are the same", "warning"))
    for name, side in ((names.chosen, chosen), (names.rejected, rejected)):
        if not any(turn.role == "assistant" for turn in side):
            raise RowError("no_assistant", name, f"{name} holds no turn of the assistant")
    return Example(
        format="preference", turns=prompt, chosen=chosen, rejected=rejected, tools=_tools(row, names), warnings=warnings
    )


def _text(text: Any, name: str) -> Example:
    if text is None or (isinstance(text, str) and not text.strip()):
        raise RowError("empty_content", name, f"{name} is empty")
    return Example(format="text", text=as_text(text, name))


_CHATML_TURN = re.compile(r"<\|im_start\|>([^\n<]*)\n?((?:(?!<\|im_start\|>|<\|im_end\|>).)*)<\|im_end\|>", re.DOTALL)


def _chatml(text: Any, name: str = "text") -> Example:
    text = as_text(text, name)
    if text.count(_START) != text.count(_END) or not text.count(_START):
        counts = f"{text.count(_START)} {_START} and {text.count(_END)} {_END}"
        raise RowError("unbalanced_tags", name, f"ChatML turns do not close: {counts}")
    warnings: list[RowError] = []
    messages = []
    end = 0
    for match in _CHATML_TURN.finditer(text):
        if text[end : match.start()].strip():
            break
        messages.append({"role": match[1].strip(), "content": match[2]})
        end = match.end()
    if text[end:].strip():
        left = text[end:].strip()
        code = "unbalanced_tags" if _START in left or _END in left else "text_outside_turns"
        raise RowError(code, name, f"not inside a ChatML turn: {left[:40]!r}")
    turns = read_turns(messages, name, warnings)
    check_turns(turns, name, warnings)
    return Example(format="chatml", turns=turns, warnings=warnings)


_READERS: dict[Format, Callable[[dict[str, Any], Fields], Example]] = {
    "sharegpt": _chat("sharegpt", "conversations"),
    "openai": _chat("openai", "messages"),
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "kto": _kto,
    "text": lambda row, names: _text(_need(row, names.text, "text"), names.text),
    "chatml": lambda row, names: _chatml(_need(row, names.text, "ChatML"), names.text),
}
