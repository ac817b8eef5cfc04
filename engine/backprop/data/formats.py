"""Rows of data → turns: which format a row has, and what it says (formats: README, "Data").

``detect_fields`` is cheap and looks at one row; ``file_format`` looks at rows from all over a file; ``read_as`` says in
which format a row of that file is read, and ``convert`` reads it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from msgspec import Struct

from backprop.data.example import PLAIN, Example, Fields, Format, RowError, Turn, as_context, find_mapping
from backprop.data.messages import as_text, check_turns, kind, read_tools, read_turns, shown
from backprop.data.reader import Source

FORMATS: tuple[Format, ...] = get_args(Format)
_START, _END = "<|im_start|>", "<|im_end|>"


def detect_fields(row: Any, names: Fields = PLAIN) -> Format | None:
    """The format of one row, or ``None`` where its fields are no format's. Values are not checked."""
    if isinstance(row, str):
        return "chatml" if _START in row and _END in row else "text"
    if not isinstance(row, dict):
        return None
    label = row.get(names.label)
    if names.completion in row and type(label) in (bool, int) and label in (0, 1):
        return "kto"
    if names.chosen in row and names.rejected in row:
        return "preference"
    if _has_messages(row.get(names.conversations), "from", "value"):
        return "sharegpt"
    if _has_messages(row.get(names.messages), "role", "content"):
        return "openai"
    if names.instruction in row and names.output in row:
        return "alpaca"
    if names.prompt in row and names.completion in row:
        return "prompt_completion"
    text = row.get(names.text)
    if isinstance(text, str):
        return "chatml" if _START in text else "text"
    return None


def _has_messages(value: Any, role: str, content: str) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and role in first and content in first


def read_as(row: Any, file: Format | None, names: Fields = PLAIN) -> Format | None:
    """The format that a row is read in: its own, whatever the other rows of its file are.

    A row of no known format is read as what its ``file`` is, so that the error names the field that is missing; so is
    an answer in a file of judged ones whose ``label`` is no judgement. ``None``: nothing can be read of it.
    """
    own = detect_fields(row, names)
    if own is None or (file == "kto" and own == "prompt_completion" and names.label in row):
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
    """Part → field: the one given, or the one found."""
    found: bool = False
    """True when the mapping was found, not given."""


def file_format(source: Source, mapping: Mapping[str, str] | None = None) -> FileFormat:
    """The format of a file and the field mapping in use: the one answer for checking, training, reports and screens."""
    return detect_file(source.sample(), mapping)


def detect_file(rows: Iterable[Any], mapping: Mapping[str, str] | None = None) -> FileFormat:
    """The format of most of ``rows``, whatever their order.

    Without a ``mapping``, one is looked for in rows of unknown format; it is taken when it explains more rows than the
    formats' own names do.
    """
    rows = list(rows)
    counts = _count(rows, Fields(mapping))
    found = None if mapping else _common_mapping(rows, sum(counts.values()) - counts["unknown"])
    if found:
        counts = _count(rows, Fields(found))
    format = max((name for name in FORMATS if counts[name]), key=counts.__getitem__, default=None)
    return FileFormat(
        format=format,
        mapping=dict(mapping or found or {}),
        found=bool(found),
        counts={name: count for name, count in counts.items() if count},
    )


def _count(rows: Iterable[Any], names: Fields) -> Counter[str]:
    return Counter(detect_fields(row, names) or "unknown" for row in rows)


def _common_mapping(rows: Iterable[Any], known: int) -> dict[str, str]:
    """The mapping that most rows of unknown format need, where they are more than the ``known`` ones.

    Of two that agree the one with more fields is taken: a field that some rows lack is not lost for the others.
    """
    wanted: Counter[tuple[tuple[str, str], ...]] = Counter()
    for row in rows:
        if detect_fields(row) is None and (mapping := find_mapping(row)) and detect_fields(row, Fields(mapping)):
            wanted[tuple(mapping.items())] += 1
    if wanted.total() <= known:
        return {}
    best = max(wanted, key=lambda items: (wanted[items], items))
    agreeing: list[tuple[tuple[str, str], ...]] = [items for items in wanted if set(items) >= set(best)]
    agreeing.sort(key=lambda items: (len(items), items))
    return dict(agreeing[-1])


def unknown_format(value: Any) -> RowError:
    """The error of a row whose fields are no format's."""
    if isinstance(value, dict):
        fields = ", ".join(str(key) for key in list(value)[:8])
        return RowError("unknown_format", "", f"no known format has these fields: {fields or 'none'}")
    return RowError("unknown_format", "", f"it is {kind(value)}, not an object with fields")


def mixed_format(own: Format, file: Format | None) -> RowError:
    """The warning about a row of another format than most."""
    words = f"the row is {own}, where most rows are {file}: it is read as what it is"
    return RowError("mixed_format", "", words, "warning")


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
        words = f"{names.label} must be true or false (or 1, 0), not {shown(label)}"
        raise RowError("invalid_value", names.label, words)
    tools = _tools(row, names)
    return Example(format="kto", turns=prompt, completion=answer, label=bool(label), tools=tools, warnings=warnings)


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
