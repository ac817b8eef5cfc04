"""Messages of chat rows → turns, whatever their keys are called (``spellings``), with the masks that they bring; and
turns that stand inside a text: ChatML and its like, and transcripts."""

from __future__ import annotations

import re
from typing import Any

from backprop.data.content import (
    are_parts,
    as_text,
    call_from_text,
    kind,
    read_call,
    read_calls,
    read_parts,
    result_text,
    shown,
)
from backprop.data.example import PLAIN, ROLES, Fields, RowError, Turn, followed
from backprop.data.spellings import (
    ROLE_OF,
    judgement,
    leaves_out,
    like_mask,
    like_verdict,
    listed,
    pair_keys,
    parsed,
    spelled,
)

REASONING = ("reasoning_content", "reasoning", "thinking")
_TRAIN = ("train", "loss_weight", "weight", "loss", "loss_scale", "training", "trainable", "loss_mask", "train_mask")
_MASKED = "masked"
_KNOWN = frozenset(
    {"role", "content", "from", "value", "tool_calls", "function_call", "name", "tool_call_id", *REASONING, *_TRAIN}
    | {_MASKED, "prefix", "refusal", "audio", "annotations", "id"}
)


_ROLE_NAMES = "system, user, assistant and tool"


def read_turns(
    items: Any, field: str, warnings: list[RowError], names: Fields = PLAIN, *, bare: str | None = None
) -> list[Turn]:
    """Messages of any shape, mixed freely: a list of them (also as JSON text, as columns, as pairs of question and
    answer), or one.

    Args:
        bare: the role of a message that is only a text; ``None`` where a text is none.

    Raises:
        RowError: not a list, or an item that is no message; the field names its place, as ``messages[2].content``.
    """
    if type(items) is not list:
        items = listed(items)
    if isinstance(items, dict):
        items, places = [items], [field]
    elif isinstance(items, list):
        places = [f"{field}[{i}]" for i in range(len(items))]
    else:
        raise RowError("invalid_type", field, f"{field} is {kind(items)}, where a list of messages is needed")
    turns: list[Turn] = []
    for item, place in zip(items, places, strict=True):
        if isinstance(item, dict):
            made = _read_item(item, place, warnings, names)
        elif isinstance(item, str) and bare is not None:
            made = [Turn(bare, item)]
        else:
            raise RowError("invalid_type", place, f"{place} is {kind(item)}, where a message is needed")
        before = turns[-1] if turns else None
        if before is not None and before.given and before.given == len(before.content):
            made = followed([turns.pop()], made)
        turns += made
    return turns


def _read_item(item: dict[str, Any], place: str, warnings: list[RowError], names: Fields) -> list[Turn]:
    """The turns of one item: mostly one. Results of tools come before the text beside them."""
    role_key, text_key = names.role, names.content
    given, value = item.get(role_key), item.get(text_key)
    if given is None or "from" in item:
        role_key = next((key for key in ("from", "role") if item.get(key) is not None), role_key)
        given = item.get(role_key)
    if given is None and role_key not in item and (pair := pair_keys(item)) is not None:
        system = as_text(item.get("system"), f"{place}.system")
        sides = [Turn("system", system)] if system.strip() else []
        for role, key in zip(("user", "assistant"), pair, strict=True):
            sides.append(Turn(role, as_text(item[key], f"{place}.{key}", warnings)))
        return sides
    if value is None or role_key == "from":
        text_keys = ("value", text_key) if role_key == "from" else (text_key, "value", "content")
        text_key = next((key for key in text_keys if item.get(key) is not None), text_keys[0])
        value = item.get(text_key)
    if given is None and text_key == "value":
        role_key = "from"
    speaker, said = f"{place}.{role_key}", f"{place}.{text_key}"
    if given is None:
        raise RowError("missing_field", speaker, f"{place} has no {role_key!r}: who speaks?")
    if not isinstance(given, str):
        raise RowError("invalid_type", speaker, f"{speaker} is {kind(given)}, where text is needed")
    role = ROLE_OF.get(given) or ROLE_OF.get(given.strip().lower(), given)
    if role not in ROLES:
        words = f"role {given!r} is not known ({_ROLE_NAMES} are): it is kept as it is"
        warnings.append(RowError("invalid_role", speaker, words, "warning"))
    turn, results = Turn(role, ""), []
    if type(value) is str:
        turn.content = value
    elif role == "tool" and isinstance(value, list | dict) and not are_parts(value):
        turn.content = result_text(value)
        words = f"{said} is {kind(value)}, which a tool answered: it is read as its JSON text"
        warnings.append(RowError("written_value", said, words, "info"))
    elif isinstance(value, list | dict):
        results = read_parts(turn, value, said, warnings)
    elif value is None and text_key not in item and not ("tool_calls" in item or "function_call" in item):
        raise RowError("missing_field", said, f"{place} has no {text_key!r}")
    else:
        turn.content = as_text(value, said, warnings)
    if given in ("function_call", "tool_call") and turn.content:
        turn.tool_calls, turn.content = call_from_text(turn.content)
    if len(item) > 2 or text_key not in item:
        _read_extras(turn, item, place, warnings, {role_key, text_key})
    return results if results and turn.blank() else [*results, turn]


def _read_extras(turn: Turn, item: dict[str, Any], place: str, warnings: list[RowError], read: set[str]) -> None:
    """Everything a message may carry beside role and content."""
    for key in REASONING:
        value = item.get(key)
        if value is not None and not turn.reasoning:
            turn.reasoning = as_text(value, f"{place}.{key}")
    if item.get("tool_calls") is not None:
        turn.tool_calls = read_calls(item["tool_calls"], f"{place}.tool_calls", warnings)
    elif item.get("function_call") is not None:
        turn.tool_calls = [read_call(item["function_call"], f"{place}.function_call", warnings)]
    if not turn.content and isinstance(item.get("refusal"), str):
        turn.content = item["refusal"]
    for key in ("name", "tool_call_id"):
        if item.get(key) is not None:
            setattr(turn, key, as_text(item[key], f"{place}.{key}"))
    for key in (*_TRAIN, _MASKED):
        if item.get(key) is not None:
            weight = _weight(item[key], f"{place}.{key}", warnings)
            turn.train = not weight if key == _MASKED else weight
            break
    if turn.train and turn.role != "assistant":
        words = f"{place}.{key} asks to train a turn of the {turn.role}: only answers are trained"
        warnings.append(RowError("ignored_field", f"{place}.{key}", words, "warning"))
    if item.get("prefix") is True and turn.role == "assistant":
        turn.given, turn.train = len(turn.content), False
    for key, value in item.items():
        if key not in _KNOWN and key not in read and value is not None:
            answer = turn.role == "assistant"
            if (like_mask(key) and not isinstance(value, str)) or (answer and leaves_out(key, value)):
                raise _unknown_mask(f"{place}.{key}")
            if (
                answer
                and isinstance(value, bool | str)
                and judgement(value) is False
                and (like_verdict(key) or spelled("label", {key: value}))
            ):
                words = f"{place}.{key} is {shown(value)}: the answer is trained as a good one"
                warnings.append(RowError("bad_as_good", f"{place}.{key}", words, "warning"))
            else:
                warnings.append(RowError("ignored_field", f"{place}.{key}", f"{place}.{key} is not used", "info"))


def _unknown_mask(field: str) -> RowError:
    words = f"{field} looks like a loss mask of a kind that is not known: what it means would be ignored"
    return RowError("unknown_mask", field, words)


def _weight(value: Any, field: str, warnings: list[RowError]) -> bool:
    if not isinstance(value, bool | int | float) or not value >= 0:
        raise RowError("invalid_value", field, f"{field} must be true, false or a number from 0, not {shown(value)}")
    if value not in (0, 1):
        words = f"{field} is {shown(value)}: turns are trained fully or not, here fully"
        warnings.append(RowError("weight_rounded", field, words, "warning"))
    return bool(value)


def apply_mask(turns: list[Turn], mask: Any, field: str, warnings: list[RowError]) -> None:
    """Set ``train`` of turns by a list that the row brings: an entry per turn, or per answer.

    Raises:
        RowError: ``invalid_value`` for a list of another length, or entries that say nothing.
    """
    mask = parsed(mask) if isinstance(mask, str) else mask
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not isinstance(mask, list) or len(mask) not in (len(turns), len(answers)):
        size = f"{len(mask)} entries" if isinstance(mask, list) else kind(mask)
        words = f"{field} is {size}, where one for each of {len(turns)} turns or {len(answers)} answers is needed"
        raise RowError("invalid_value", field, words)
    for i, (turn, entry) in enumerate(zip(turns if len(mask) == len(turns) else answers, mask, strict=True)):
        weight = _weight(entry, f"{field}[{i}]", warnings)
        if turn.role == "assistant":
            turn.train = weight
        elif weight:
            words = f"{field}[{i}] asks to train a turn of the {turn.role}: only answers are trained"
            warnings.append(RowError("ignored_field", f"{field}[{i}]", words, "warning"))


def refuse_unknown_mask(row: dict[str, Any], known: str) -> None:
    """Raise ``unknown_mask`` where a column of ``row`` beside ``known`` looks like a mask: a list of truth values."""
    for name, value in row.items():
        if type(value) is list and name != known and like_mask(str(name)) and _flags(value):
            raise _unknown_mask(str(name))


def _flags(value: list[Any]) -> bool:
    return bool(value) and all(type(entry) in (bool, int, float) and entry in (0, 1) for entry in value)


def _unknown_roles(turns: list[Turn]) -> str:
    names = list(dict.fromkeys(repr(turn.role) for turn in turns if turn.role not in ROLES))
    return f"role{'s' * (len(names) > 1)} {', '.join(names[:3])}; known are {_ROLE_NAMES}"


def check_turns(turns: list[Turn], field: str, warnings: list[RowError]) -> None:
    """What makes a conversation unusable, and what looks wrong in it.

    Raises:
        RowError: ``no_turns``, ``no_known_role`` or ``no_assistant``.
    """
    if not turns:
        raise RowError("no_turns", field, "there is no turn in it")
    if not any(turn.role in ROLES for turn in turns):
        raise RowError("invalid_role", field, f"no turn has a known role: {_unknown_roles(turns)}")
    if not any(turn.role == "assistant" for turn in turns):
        others = f" ({_unknown_roles(turns)})" if any(turn.role not in ROLES for turn in turns) else ""
        raise RowError("no_assistant", field, f"no turn of the assistant: nothing to learn from{others}")
    before = ""
    for i, turn in enumerate(turns):
        if turn.blank():
            empty = f"turn {i + 1} ({turn.role}) is empty"
            warnings.append(RowError("empty_content", f"{field}[{i}]", empty, "warning"))
        if turn.role == "system" and i > 0:
            late = f"turn {i + 1} is a system turn after the start"
            warnings.append(RowError("role_order", f"{field}[{i}]", late, "warning"))
        elif turn.role == before and turn.role in ("user", "assistant") and not turns[i - 1].tool_calls:
            twice = f"turns {i} and {i + 1} are both by the {turn.role}"
            warnings.append(RowError("role_order", f"{field}[{i}]", twice, "warning"))
        elif turn.role == "assistant" and not before:
            first = "the assistant speaks first: nothing was asked"
            warnings.append(RowError("role_order", f"{field}[{i}]", first, "warning"))
        elif turn.role == "tool" and before in ("", "user"):
            uncalled = f"turn {i + 1} is a tool's result, and no turn of the assistant is before it"
            warnings.append(RowError("role_order", f"{field}[{i}]", uncalled, "warning"))
        if turn.role != "system":
            before = turn.role


_MARKS = (
    ("<|im_start|>", r"\n|<\|im_sep\|>", "<|im_end|>"),
    ("<|start_header_id|>", r"<\|end_header_id\|>\n*", "<|eot_id|>"),
    ("<start_of_turn>", r"\n", "<end_of_turn>"),
)
"""What begins a turn, what ends the name of its speaker, and what ends the turn."""
_AROUND = re.compile(r"(?:\s|</?s>|<(?:bos|eos)>|<\|(?:endoftext|begin_of_text|end_of_text|endofprompt)\|>)*")
"""What may stand around turns: white space, and the begin and end tokens of the common models."""
_SPEAKER = re.compile(r"(?:\A\s*|\n\s*\n)(Human|User|Assistant|System):[ \t]*")
_RENDERED = re.compile(
    r"\[INST\]|<\|user\|>|(?:\A|\n)### ?(?:Instruction|Human|User):|(?:\A|\n)(?:Human|User|Instruct):|(?:\A|\s)USER:"
)
_ANSWERED = re.compile(
    r"\[/INST\]|<\|assistant\|>|\n### ?(?:Response|Assistant|Output):|\n(?:Assistant|AI|Bot|Output):|\sASSISTANT:"
)
_ASKED = re.compile(r"\A\s*(?:Q|Question):[^\n]*\n\s*(?:A|Answer):")
"""A text that begins so is questions and answers; inside an answer this is how people write lists of them."""
TRANSCRIPT_HINTS = ("\n###", "Assistant:", "ASSISTANT:", "\nAI:", "\nBot:", "\nOutput:", "Q:", "Question:")
"""A text with none of these, and no control token, has no transcript inside."""


def holds_turns(text: str) -> bool:
    """Whether a text is written in marks of turns: ChatML's anywhere in it, or others' at its start."""
    if "<|" not in text and "<start_of_turn>" not in text:
        return False
    around = _AROUND.match(text)
    start = around.end() if around else 0
    return _MARKS[0][0] in text or any(text.startswith(begin, start) for begin, _, _ in _MARKS)


def read_marked(text: str, name: str, warnings: list[RowError]) -> list[Turn]:
    """The conversation that a text in ChatML, or in the marks of Llama 3 or Gemma, holds.

    Raises:
        RowError: turns that do not close, or text between them.
    """
    begin, after, end = next((marks for marks in _MARKS if marks[0] in text), _MARKS[0])
    if text.count(begin) != text.count(end) or not text.count(begin):
        counts = f"{text.count(begin)} {begin} and {text.count(end)} {end}"
        raise RowError("unbalanced_tags", name, f"ChatML turns do not close: {counts}")
    start, stop = re.escape(begin), re.escape(end)
    turn = re.compile(f"{start}([^\\n<]*)(?:{after})?((?:(?!{start}|{stop}).)*){stop}", re.DOTALL)
    messages = []
    done = 0
    for match in turn.finditer(text):
        if not _AROUND.fullmatch(text, done, match.start()):
            break
        messages.append({"role": match[1].strip(), "content": match[2]})
        done = match.end()
    if not _AROUND.fullmatch(text, done):
        left = text[done:].strip()
        code = "unbalanced_tags" if begin in left or end in left else "text_outside_turns"
        raise RowError(code, name, f"not inside a ChatML turn: {left[:40]!r}")
    return read_turns(messages, name, warnings)


def split_transcript(text: str) -> list[Turn] | None:
    """The turns of a text that is a whole conversation: ``Human: …``, an empty line, ``Assistant: …``.

    An empty last answer, which only asks for one, is no turn. ``None`` for any other text.
    """
    if "\n" not in text or ":" not in text[:40]:
        return None
    _, *parts = _SPEAKER.split(text)
    speakers, said = parts[::2], [part.strip() for part in parts[1::2]]
    if len(speakers) < 2 or not _SPEAKER.match(text) or speakers[0] == "Assistant":
        return None
    turns = [Turn(ROLE_OF[who.lower()], words) for who, words in zip(speakers, said, strict=True)]
    if all(turn.role != "assistant" for turn in turns):
        return None
    return turns[:-1] if turns[-1].role == "assistant" and turns[-1].blank() else turns


def transcript_inside(text: str) -> str:
    """What begins the first question of a text that holds questions and answers; empty for any other text."""
    asked = _RENDERED.search(text)
    return asked[0].strip() if asked is not None and _ANSWERED.search(text, asked.end()) else ""


def starts_asking(text: str) -> str:
    """As ``transcript_inside``, of questions and answers with which a whole text begins."""
    asked = _ASKED.match(text)
    return f"{asked[0].strip().partition(':')[0]}:" if asked is not None else ""
