"""Rows → examples: what a row of a known format says, and what is odd in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from backprop.data.content import as_text, kind, read_parts, read_tools, shown
from backprop.data.example import PLAIN, Example, Fields, Format, RowError, Turn, as_context, followed
from backprop.data.messages import apply_mask, check_turns, read_turns, refuse_unknown_mask
from backprop.data.spellings import MEDIA, MEDIA_MARK, json_turns, judgement, parsed, turn_keys
from backprop.data.text_turns import read_marked, split_transcript, transcript_inside

MISSING = frozenset({"nan", "NaN", "None", "none", "NULL", "null", "N/A", "n/a", "<NA>"})
"""What programs write for a value that is missing."""


def convert(row: Any, format: Format, mapping: Mapping[str, str] | Fields | None = None) -> Example:
    """Read a row in ``format``.

    Raises:
        RowError: the row cannot be used, with its code, the field as the row calls it, and why.
    """
    names = mapping if isinstance(mapping, Fields) else Fields(mapping) if mapping else PLAIN
    if isinstance(row, str):
        return read_marked(row) if format == "chatml" else _text(row, "text")
    if isinstance(row, list) and format == "openai":
        row = {names.messages: row}
    if not isinstance(row, dict):
        raise RowError("invalid_type", "", f"the row is {kind(row)}, where an object is needed")
    for name in MEDIA:
        if row.get(name):
            raise RowError("unsupported_content", name, f"the row has {name}: only text is trained")
    try:
        refuse_unknown_mask(row, names.loss_mask if format in ("openai", "sharegpt") else "")
        example = _READERS[format](row, names)
    except RecursionError:
        raise RowError("too_deep", "", "the row is nested too deeply to be read") from None
    _note_marks(example)
    return example


def _note_marks(example: Example) -> None:
    """Warn of answers that only say that a value is missing, and of texts that stand around a picture."""
    for turn in (*example.turns, *example.chosen, *example.completion):
        if turn.content in MISSING and turn.role == "assistant":
            words = f"an answer is {turn.content!r}, as programs write a missing value: it is trained as text"
            example.warnings.append(RowError("written_value", "", words, "warning"))
        if "<" in turn.content and (mark := MEDIA_MARK.search(turn.content)) is not None:
            words = f"{mark[0]} stands in a text: only the text is trained"
            example.warnings.append(RowError("unsupported_content", "", words, "warning"))


def _need(row: dict[str, Any], name: str, of: str) -> Any:
    if name not in row:
        raise RowError("missing_field", name, f"the row has no {name!r}, which {of} rows have")
    return row[name]


def _tools(row: dict[str, Any], names: Fields) -> list[dict[str, Any]] | None:
    for name in (names.tools, names.functions):
        if row.get(name) is not None:
            return read_tools(row[name], name)
    return None


def _system(row: dict[str, Any], names: Fields, turns: list[Turn], warnings: list[RowError]) -> list[Turn]:
    """The turns with the row's ``system`` column first, unless they already start with a system turn."""
    value, name = row.get(names.system), names.system
    if isinstance(value, dict):
        value = value.get("parts", value.get("content", value))
    parts = isinstance(value, list | dict)
    text = "".join(read_parts(value, name, warnings).text) if parts else as_text(value, name)
    if not text.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content.strip() != text.strip():
            words = f"{name} is not used: the conversation begins with another system text"
            warnings.append(RowError("ignored_field", name, words, "warning"))
        return turns
    return [Turn("system", text), *turns]


def _chat(format: Format, part: str) -> Callable[[dict[str, Any], Fields], Example]:
    def read(row: dict[str, Any], names: Fields) -> Example:
        warnings: list[RowError] = []
        name = getattr(names, part)
        turns = _chat_turns(row, names, name, _need(row, name, format), warnings)
        check_turns(turns, name, warnings)
        return Example(format=format, turns=turns, tools=_tools(row, names), warnings=warnings)

    return read


def _chat_turns(row: dict[str, Any], names: Fields, name: str, value: Any, warnings: list[RowError]) -> list[Turn]:
    turns = read_turns(value, name, warnings, names)
    if row.get(names.loss_mask) is not None:
        apply_mask(turns, row[names.loss_mask], names.loss_mask, warnings)
    return _system(row, names, turns, warnings) if turns else turns


def _alpaca(row: dict[str, Any], names: Fields) -> Example:
    warnings: list[RowError] = []
    turns = _alpaca_turns(row, names, warnings)
    return Example(format="alpaca", turns=turns, tools=_tools(row, names), warnings=warnings)


def _alpaca_turns(row: dict[str, Any], names: Fields, warnings: list[RowError]) -> list[Turn]:
    asked = as_text(_need(row, names.instruction, "alpaca"), names.instruction, warnings)
    more = as_text(row.get(names.input), names.input, warnings)
    answer = _answer(_need(row, names.output, "alpaca"), names.output, warnings)
    if more.strip():
        asked = f"{asked}\n\n{more}" if asked.strip() else more
    turns = [*_history(row, names, warnings), Turn("user", asked), Turn("assistant", answer)]
    for name, text in ((names.instruction, asked), (names.output, answer)):
        if not text.strip():
            warnings.append(RowError("empty_content", name, f"{name} is empty", "warning"))
    return _system(row, names, turns, warnings)


def _answer(value: Any, name: str, warnings: list[RowError]) -> str:
    """An answer's text; of SQuAD's ``{"text": [...]}`` the first."""
    if isinstance(value, dict) and isinstance(texts := value.get("text"), list):
        value = texts[0] if texts else None
    return as_text(value, name, warnings)


def _history(row: dict[str, Any], names: Fields, warnings: list[RowError]) -> list[Turn]:
    """Earlier questions and answers: pairs, or turns; either also as JSON text."""
    name = names.history
    value = row.get(name) or []
    value = parsed(value) if isinstance(value, str) else value
    if turn_keys(value):
        return read_turns(value, name, warnings, names)
    turns: list[Turn] = []
    for i, pair in enumerate(value if isinstance(value, list) else [value]):
        place = f"{name}[{i}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("invalid_type", place, f"{place} must be a pair of question and answer")
        for role, said in zip(("user", "assistant"), pair, strict=True):
            turns.append(Turn(role, as_text(said, place, warnings)))
            if turns[-1].blank():
                warnings.append(RowError("empty_content", place, f"{place} is empty ({role})", "warning"))
    return turns


def _turns_of(value: Any, name: str, warnings: list[RowError], names: Fields, role: str) -> list[Turn]:
    """A side of a pair, or a prompt: text, messages (also as JSON text), or a transcript, which is split."""
    if isinstance(value, str) and (value[:1] in "[{HUS" or value[:1].isspace()):
        if (items := json_turns(value)) is not None:
            value = items
        elif (turns := split_transcript(value)) is not None:
            words = f"{name} is a transcript: it is split into its {len(turns)} turns"
            warnings.append(RowError("transcript", name, words, "info"))
            return turns
    if isinstance(value, list | dict):
        return read_turns(value, name, warnings, names, bare=role if role == "assistant" else None)
    return [Turn(role, as_text(value, name, warnings))]


def _prompt_turns(row: dict[str, Any], names: Fields, warnings: list[RowError]) -> list[Turn]:
    """The prompt: text or messages, or the chat column that some rows keep it in. Blank text is no turn."""
    value = row.get(names.prompt)
    if value is None:
        for name in (names.conversations, names.messages):
            if row.get(name) is not None:
                return _system(row, names, read_turns(row[name], name, warnings, names), warnings)
        return []
    turns = _turns_of(value, names.prompt, warnings, names, "user")
    turns = [turn for turn in turns if not (turn.role == "user" and turn.blank())]
    return _system(row, names, turns, warnings)


def _answer_turns(value: Any, name: str, warnings: list[RowError], names: Fields) -> list[Turn]:
    turns = _turns_of(value, name, warnings, names, "assistant")
    if not turns or all(turn.blank() for turn in turns):
        warnings.append(RowError("empty_content", name, f"{name} is empty", "warning"))
    return turns


def _asked_once(prompt: list[Turn], answer: list[Turn]) -> tuple[list[Turn], list[Turn]]:
    """Prompt and answer where the answer may begin with the prompt, whole or its last turns, or with more than it."""
    bare = [_said(turn) for turn in prompt if turn.role != "system"]
    told = [_said(turn) for turn in answer]
    for size in range(len(answer), 0, -1):
        if size <= len(bare) and bare[-size:] == told[:size]:
            return prompt, answer[size:]
        if bare and size > len(bare) and told[size - len(bare) : size] == bare:
            system = [] if told[0][0] == "system" else [turn for turn in prompt if turn.role == "system"]
            return [*system, *answer[:size]], answer[size:]
    return prompt, answer


def _said(turn: Turn) -> tuple[str, str]:
    return turn.role, turn.content.strip()


def _prompt_completion(row: dict[str, Any], names: Fields) -> Example:
    warnings: list[RowError] = []
    _need(row, names.prompt, "prompt/completion")
    prompt, answer = _prompt_and_answer(row, names, warnings, "prompt/completion")
    turns = followed(as_context(prompt), answer)
    return Example(format="prompt_completion", turns=turns, tools=_tools(row, names), warnings=warnings)


def _prompt_and_answer(
    row: dict[str, Any], names: Fields, warnings: list[RowError], of: str
) -> tuple[list[Turn], list[Turn]]:
    """The prompt, and the one answer that is trained or judged, of a row of whichever format with one answer."""
    chat = next((name for name in (names.conversations, names.messages) if row.get(name) is not None), None)
    if names.completion in row or (chat is None and names.output not in row):
        value, name = _need(row, names.completion, of), names.completion
        prompt = _prompt_turns(row, names, warnings)
        answer = _answer_turns(value, name, warnings, names)
        if answer and answer[0].role != "assistant":
            prompt, answer = _asked_once(prompt, answer)
    else:
        name = chat or names.output
        turns = _chat_turns(row, names, chat, row[chat], warnings) if chat else _alpaca_turns(row, names, warnings)
        start = len(turns)
        while start and turns[start - 1].role == "assistant":
            start -= 1
        prompt, answer = turns[:start], turns[start:]
    if not any(turn.role == "assistant" for turn in answer):
        raise RowError("no_assistant", name, f"{name} holds no turn of the assistant")
    return prompt, answer


def _kto(row: dict[str, Any], names: Fields) -> Example:
    warnings: list[RowError] = []
    prompt, answer = _prompt_and_answer(row, names, warnings, "feedback")
    given = _need(row, names.label, "feedback")
    label = judgement(given)
    if label is None:
        words = f"{names.label} must be true or false (or 1, 0, yes, no), not {shown(given)}"
        raise RowError("invalid_value", names.label, words)
    tools = _tools(row, names)
    return Example(format="kto", turns=prompt, completion=answer, label=label, tools=tools, warnings=warnings)


def _preference(row: dict[str, Any], names: Fields) -> Example:
    warnings: list[RowError] = []
    if names.chosen in row or not {names.completion, names.output, names.messages, names.conversations} & {*row}:
        chosen = _answer_turns(_need(row, names.chosen, "preference"), names.chosen, warnings, names)
        prompt = _prompt_turns(row, names, warnings)
    else:
        prompt, chosen = _prompt_and_answer(row, names, warnings, "preference")
    rejected = _answer_turns(_need(row, names.rejected, "preference"), names.rejected, warnings, names)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    lead, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if lead:
        prompt, lead = _asked_once(prompt, lead)
        prompt = [*prompt, *lead]
    elif rejected and rejected[0].role != "assistant":
        rejected = _asked_once(prompt, rejected)[1]
    if not prompt:
        warnings.append(RowError("no_prompt", names.prompt, "the pair has no prompt", "info"))
    if chosen == rejected:
        warnings.append(RowError("same_sides", names.rejected, "chosen and rejected are the same", "warning"))
    for name, side in ((names.chosen, chosen), (names.rejected, rejected)):
        if not any(turn.role == "assistant" for turn in side):
            raise RowError("no_assistant", name, f"{name} holds no turn of the assistant")
    tools = _tools(row, names)
    return Example(format="preference", turns=prompt, chosen=chosen, rejected=rejected, tools=tools, warnings=warnings)


def _text(text: Any, name: str) -> Example:
    if text is None or (isinstance(text, str) and not text.strip()):
        raise RowError("empty_content", name, f"{name} is empty")
    example = Example(format="text", text=as_text(text, name))
    if (inside := transcript_inside(example.text or "", name)) is not None:
        example.warnings.append(inside)
    return example


_READERS: dict[Format, Callable[[dict[str, Any], Fields], Example]] = {
    "sharegpt": _chat("sharegpt", "conversations"),
    "openai": _chat("openai", "messages"),
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "preference": _preference,
    "kto": _kto,
    "text": lambda row, names: _text(_need(row, names.text, "text"), names.text),
    "chatml": lambda row, names: read_marked(_need(row, names.text, "ChatML"), names.text),
}
