"""Rows → examples: what a row of a known format says, and what is odd in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from backprop.data.content import as_text, kind, read_parts, read_tools, shown
from backprop.data.example import PLAIN, Example, Fields, Format, RowError, Turn, as_context, followed
from backprop.data.messages import (
    apply_mask,
    check_turns,
    holds_turns,
    read_marked,
    read_turns,
    refuse_unknown_mask,
    split_transcript,
    starts_asking,
    transcript_inside,
)
from backprop.data.spellings import MEDIA, MEDIA_MARK, json_turns, judgement, parsed, turn_keys

MISSING = frozenset({"nan", "NaN", "None", "NULL", "null", "N/A", "#N/A", "<NA>", "NaT"})
"""What programs write for a value that is missing."""
_NO_TEXT = frozenset(mark.lower() for mark in (*MISSING, "<noinput>"))


def is_missing(text: str) -> bool:
    """True for a text beside the question that only says there is none."""
    return len(text) < 16 and text.strip().lower() in _NO_TEXT


def convert(row: Any, format: Format, mapping: Mapping[str, str] | Fields | None = None) -> Example:
    """Read a row in ``format``.

    Raises:
        RowError: the row cannot be used, with its code, the field as the row calls it, and why.
    """
    names = mapping if isinstance(mapping, Fields) else Fields(mapping) if mapping else PLAIN
    row = names.held(row)
    if isinstance(row, str):
        row, names = {"text": row}, PLAIN
    elif isinstance(row, list) and format == "openai":
        row = {names.messages: row}
    if not isinstance(row, dict):
        raise RowError("invalid_type", "", f"the row is {kind(row)}, where an object is needed")
    reader = _Row(row, names)
    try:
        reader.refuse_what_is_no_text(format)
        said = _READERS[format](reader)
        example = Example(format=format, tools=reader.tools(), warnings=reader.warnings, **said)
        reader.think_before(example.completion or example.chosen or example.turns)
    except RecursionError:
        raise RowError("too_deep", "", "the row is nested too deeply to be read") from None
    turns = (*example.turns, *example.chosen, *example.completion)
    for turn in turns:
        if turn.content in MISSING and turn.role == "assistant":
            words = f"an answer is only {turn.content!r}, as programs write a missing value: it is trained as text"
            example.warnings.append(RowError("missing_mark", "", words, "warning"))
        if turn.role == "assistant" and (inside := transcript_inside(turn.content)):
            words = f"an answer holds a conversation ({inside} …): its questions are trained too"
            example.warnings.append(RowError("transcript", "", words, "warning"))
    for text in (example.text or "", *(turn.content for turn in turns)):
        if "<" in text and (mark := MEDIA_MARK.search(text)) is not None:
            words = f"{mark[0]} stands in a text: only the text is trained"
            example.warnings.append(RowError("unsupported_content", "", words, "warning"))
    return example


class _Row:
    """A row being read; what is odd in it is added to ``warnings``. Each reader gives fields of ``Example``."""

    def __init__(self, row: dict[str, Any], names: Fields) -> None:
        self.row = row
        self.names = names
        self.warnings: list[RowError] = []

    def refuse_what_is_no_text(self, format: Format) -> None:
        """Raise for pictures and sounds, and for a mask that would be ignored."""
        for name in MEDIA.intersection(self.row):
            if self.row[name]:
                raise RowError("unsupported_content", name, f"the row has {name}: only text is trained")
        refuse_unknown_mask(self.row, self.names.loss_mask if format in ("openai", "sharegpt") else "")

    def tools(self) -> list[dict[str, Any]] | None:
        for name in (self.names.tools, self.names.functions):
            if self.row.get(name) is not None:
                return read_tools(self.row[name], name)
        return None

    def think_before(self, turns: list[Turn]) -> None:
        """Give the last answer the thinking that the row keeps in a column of its own."""
        thinking = self._text_of(self.names.reasoning)
        answer = next((turn for turn in reversed(turns) if turn.role == "assistant"), None)
        if thinking and answer is not None and not answer.reasoning:
            answer.reasoning = thinking

    def _warn(self, code: str, field: str, message: str) -> None:
        self.warnings.append(RowError(code, field, message, "warning"))

    def _need(self, name: str, of: str) -> Any:
        if name not in self.row:
            raise RowError("missing_field", name, f"the row has no {name!r}, which {of} rows have")
        return self.row[name]

    def _text_of(self, name: str) -> str:
        return as_text(self.row.get(name), name, self.warnings)

    def _unless_missing(self, text: str, name: str) -> str:
        """A text that a row may have; nothing where it is a mark of a missing value."""
        if not is_missing(text):
            return text
        words = f"{name} is only {text.strip()!r}, as programs write a missing value: it is read as empty"
        self.warnings.append(RowError("missing_input", name, words, "info"))
        return ""

    def _with_system(self, turns: list[Turn]) -> list[Turn]:
        """The turns with the row's ``system`` column first, unless they already start with a system turn."""
        name = self.names.system
        value = self.row.get(name)
        if isinstance(value, dict):
            value = value.get("parts", value.get("content", value))
        system = Turn("system", "")
        if isinstance(value, list | dict):
            read_parts(system, value, name, self.warnings)
        else:
            system.content = self._unless_missing(as_text(value, name), name)
        if system.blank():
            return turns
        if turns and turns[0].role == "system":
            if _said(turns[0]) != _said(system):
                self._warn("ignored_field", name, f"{name} is not used: the conversation has another system text")
            return turns
        return [system, *turns]

    def _conversation(self, name: str, of: str) -> list[Turn]:
        turns = read_turns(self._need(name, of), name, self.warnings, self.names)
        mask = self.names.loss_mask
        if self.row.get(mask) is not None:
            apply_mask(turns, self.row[mask], mask, self.warnings)
        return self._with_system(turns) if turns else turns

    def chat(self, format: Format, name: str) -> dict[str, Any]:
        turns = self._conversation(name, format)
        check_turns(turns, name, self.warnings)
        return {"turns": turns}

    def alpaca(self) -> dict[str, Any]:
        names = self.names
        for name in (names.instruction, names.output):
            self._need(name, "alpaca")
        asked = self._text_of(names.instruction)
        more = self._unless_missing(self._text_of(names.input), names.input)
        if more.strip():
            asked = f"{asked}\n\n{more}" if asked.strip() else more
        answer = self.row[names.output]
        if isinstance(answer, dict) and isinstance(texts := answer.get("text"), list):
            # SQuAD's, which lists what several people answered.
            answer = texts[0] if texts else None
        answer = as_text(answer, names.output, self.warnings)
        for name, text in ((names.instruction, asked), (names.output, answer)):
            if not text.strip():
                self._warn("empty_content", name, f"{name} is empty")
        return {"turns": self._with_system([*self._history(), Turn("user", asked), Turn("assistant", answer)])}

    def _history(self) -> list[Turn]:
        """Earlier questions and answers: pairs, or turns; either also as JSON text."""
        name = self.names.history
        value = self.row.get(name) or []
        value = parsed(value) if isinstance(value, str) else value
        if turn_keys(value):
            return read_turns(value, name, self.warnings, self.names)
        turns: list[Turn] = []
        for i, pair in enumerate(value if isinstance(value, list) else [value]):
            place = f"{name}[{i}]"
            if not isinstance(pair, list) or len(pair) != 2:
                raise RowError("invalid_type", place, f"{place} must be a pair of question and answer")
            for role, said in zip(("user", "assistant"), pair, strict=True):
                turns.append(Turn(role, as_text(said, place, self.warnings)))
                if turns[-1].blank():
                    self._warn("empty_content", place, f"{place} is empty ({role})")
        return turns

    def _side(self, value: Any, name: str, role: str) -> list[Turn]:
        """A prompt, or an answer: text, messages (also as JSON text), or a transcript, which is split."""
        if isinstance(value, str) and (value[:1] in "[{HUS" or value[:1].isspace()):
            if (items := json_turns(value)) is not None:
                value = items
            elif (turns := split_transcript(value)) is not None:
                words = f"{name} is a transcript: it is split into its {len(turns)} turns"
                self.warnings.append(RowError("transcript", name, words, "info"))
                return turns
        if isinstance(value, list | dict):
            bare = role if role == "assistant" else None
            return read_turns(value, name, self.warnings, self.names, bare=bare)
        return [Turn(role, as_text(value, name, self.warnings))]

    def _prompt(self) -> list[Turn]:
        """The prompt: text or messages, or the chat column that some rows keep it in. Blank text is no turn."""
        name = self.names.prompt
        if self.row.get(name) is not None:
            turns = self._side(self.row[name], name, "user")
            return self._with_system([turn for turn in turns if not (turn.role == "user" and turn.blank())])
        chat = self._chat_column()
        return self._with_system(read_turns(self.row[chat], chat, self.warnings, self.names) if chat else [])

    def _chat_column(self) -> str | None:
        names = (self.names.conversations, self.names.messages)
        return next((name for name in names if self.row.get(name) is not None), None)

    def _answer(self, name: str, of: str) -> list[Turn]:
        turns = self._side(self._need(name, of), name, "assistant")
        if not turns or all(turn.blank() for turn in turns):
            self._warn("empty_content", name, f"{name} is empty")
        return turns

    def _prompt_and_answer(self, of: str) -> tuple[list[Turn], list[Turn]]:
        """The prompt, and the one answer that is trained or judged, of a row of whichever format with one answer."""
        name, chat, text = self.names.completion, self._chat_column(), self.row.get(self.names.text)
        marked = chat is None and self.names.output not in self.row and isinstance(text, str) and holds_turns(text)
        if name in self.row or (chat is None and not marked and self.names.output not in self.row):
            prompt, answer = self._prompt(), self._answer(name, of)
            if answer and answer[0].role != "assistant":
                prompt, answer = _asked_once(prompt, answer)
        else:
            name = chat or (self.names.text if marked else self.names.output)
            turns = self._conversation(chat, of) if chat else (self.chatml() if marked else self.alpaca())["turns"]
            start = _last_answer(turns)
            prompt, answer = turns[:start], turns[start:]
        _need_answer(answer, name)
        return prompt, answer

    def prompt_completion(self) -> dict[str, Any]:
        self._need(self.names.prompt, "prompt/completion")
        prompt, answer = self._prompt_and_answer("prompt/completion")
        return {"turns": followed(as_context(prompt), answer)}

    def kto(self) -> dict[str, Any]:
        prompt, answer = self._prompt_and_answer("feedback")
        name = self.names.label
        label = judgement(self._need(name, "feedback"))
        if label is None:
            words = f"{name} must be true or false (or 1, 0, yes, no), not {shown(self.row[name])}"
            raise RowError("invalid_value", name, words)
        return {"turns": prompt, "completion": answer, "label": label}

    def preference(self) -> dict[str, Any]:
        names = self.names
        whole = {names.completion, names.output, names.text, self._chat_column()}
        if names.chosen in self.row or not whole & {*self.row}:
            chosen, prompt = self._answer(names.chosen, "preference"), self._prompt()
        else:
            prompt, chosen = self._prompt_and_answer("preference")
        rejected, unpaired = self._rejected()
        if prompt and chosen and prompt[0].role == chosen[0].role == "system":
            prompt = prompt[1:]  # the sides bring their own
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        lead, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if lead:
            prompt, lead = _asked_once(prompt, lead)
            prompt = [*prompt, *lead]
        else:
            if chosen and chosen[0].role != "assistant":
                prompt, chosen = _asked_once(prompt, chosen)
            if rejected and rejected[0].role != "assistant":
                rejected = _asked_once(prompt, rejected)[1]
            for one, other in ((chosen, rejected), (rejected, chosen)):
                asked = any(turn.role != "system" for turn in prompt)
                if one and other and not asked and one[0].role != "assistant" == other[0].role:
                    start = _last_answer(one)  # one side has the question, the other the answer alone
                    prompt = [*prompt, *one[:start]]
                    del one[:start]
        if not prompt:
            self.warnings.append(RowError("no_prompt", names.prompt, "the pair has no prompt", "info"))
        _need_answer(chosen, names.chosen)
        unpaired = unpaired or _unpaired(chosen, rejected, names)
        if unpaired is not None and not any(_same_place(unpaired, warning) for warning in self.warnings):
            self._warn(unpaired.code, unpaired.field, unpaired.message)
        return {"turns": prompt, "chosen": chosen, "rejected": rejected, "unpaired": unpaired}

    def _rejected(self) -> tuple[list[Turn], RowError | None]:
        """The rejected side, or why it cannot be read: what is learned from the chosen side alone does not need it."""
        self._need(self.names.rejected, "preference")
        try:
            return self._answer(self.names.rejected, "preference"), None
        except RowError as error:
            return [], error

    def text(self) -> dict[str, Any]:
        name = self.names.text
        value = self._need(name, "text")
        if value is None or (isinstance(value, str) and not value.strip()):
            raise RowError("empty_content", name, f"{name} is empty")
        text = as_text(value, name)
        if inside := transcript_inside(text) or starts_asking(text):
            self._warn("transcript", name, f"{name} holds a conversation ({inside} …): its questions are trained too")
        return {"text": text}

    def chatml(self) -> dict[str, Any]:
        name = self.names.text
        turns = read_marked(as_text(self._need(name, "ChatML"), name), name, self.warnings)
        check_turns(turns, name, self.warnings)
        return {"turns": turns}


def _need_answer(side: list[Turn], name: str) -> None:
    if not any(turn.role == "assistant" for turn in side):
        raise RowError("no_assistant", name, f"{name} holds no turn of the assistant")


def _last_answer(turns: list[Turn]) -> int:
    """Where the assistant's turns at the end begin."""
    start = len(turns)
    while start and turns[start - 1].role == "assistant":
        start -= 1
    return start


def _unpaired(chosen: list[Turn], rejected: list[Turn], names: Fields) -> RowError | None:
    """Why two sides are no pair."""
    for side, name in ((chosen, names.chosen), (rejected, names.rejected)):
        if side and all(turn.blank() for turn in side):
            return RowError("empty_content", name, f"{name} is empty")
        if not any(turn.role == "assistant" for turn in side):
            return RowError("no_assistant", name, f"{name} holds no turn of the assistant")
    if chosen == rejected:
        return RowError("same_sides", names.rejected, f"{names.chosen} and {names.rejected} are the same")
    return None


def _same_place(one: RowError, two: RowError) -> bool:
    return (one.code, one.field) == (two.code, two.field)


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


_READERS: dict[Format, Callable[[_Row], dict[str, Any]]] = {
    "sharegpt": lambda row: row.chat("sharegpt", row.names.conversations),
    "openai": lambda row: row.chat("openai", row.names.messages),
    "alpaca": _Row.alpaca,
    "prompt_completion": _Row.prompt_completion,
    "preference": _Row.preference,
    "kto": _Row.kto,
    "text": _Row.text,
    "chatml": _Row.chatml,
}
