"""Messages of chat rows (ShareGPT and OpenAI shapes) → turns, and values of fields → text."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import msgspec

from backprop.data.example import ROLES, RowError, Turn

ROLE_OF = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
"""Role as rows write it → the role that templates know."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_WEIGHTS = ("train", "loss_weight", "weight")
_KNOWN = frozenset(
    {"role", "content", "from", "value", "tool_calls", "function_call", "name", "tool_call_id", *_REASONING, *_WEIGHTS}
    | {"refusal", "audio", "annotations", "id"}
)
_KINDS = {list: "a list", dict: "an object", bool: "a truth value", str: "text", int: "a number", float: "a number"}


def kind(value: Any) -> str:
    """What a value is, in words."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def as_text(value: Any, field: str) -> str:
    """The text of a field: ``None`` is empty, 0 and False are not, nothing becomes a Python representation.

    Raises:
        RowError: a list or an object stands where text is needed.
    """
    if type(value) is str:
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | str):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    raise RowError("invalid_type", field, f"{field} is {kind(value)}, where text is needed")


def read_turns(items: Any, field: str, warnings: list[RowError], *, role: str = "assistant") -> list[Turn]:
    """Messages of either shape, mixed freely. A bare string on a side of a pair is a message of ``role``.

    Raises:
        RowError: not a list, or an item that is no message; the field names its place, as ``messages[2].content``.
    """
    if isinstance(items, dict):
        return [_read_turn(items, field, warnings)]
    if not isinstance(items, list):
        raise RowError("invalid_type", field, f"{field} is {kind(items)}, where a list of messages is needed")
    turns = []
    for i, item in enumerate(items):
        if isinstance(item, dict):
            turns.append(_read_turn(item, f"{field}[{i}]", warnings))
        elif isinstance(item, str) and field in ("chosen", "rejected", "completion"):
            turns.append(Turn(role, item))
        else:
            raise RowError("invalid_type", f"{field}[{i}]", f"{field}[{i}] is {kind(item)}, where a message is needed")
    return turns


def _read_turn(item: dict[str, Any], place: str, warnings: list[RowError]) -> Turn:
    role_key, text_key = ("from", "value") if "from" in item else ("role", "content")
    speaker, said = f"{place}.{role_key}", f"{place}.{text_key}"
    given = item.get(role_key)
    if given is None:
        raise RowError("missing_field", speaker, f"{place} has no {role_key!r}: who speaks?")
    if not isinstance(given, str):
        raise RowError("invalid_type", speaker, f"{speaker} is {kind(given)}, where text is needed")
    role = ROLE_OF.get(given) or ROLE_OF.get(given.strip().lower())
    if role is None:
        role = given
        words = f"{given!r} is no known role; it is kept as it is"
        warnings.append(RowError("invalid_role", speaker, words, "warning"))
    content, reasoning, calls = "", None, None
    value = item.get(text_key)
    if type(value) is str:
        content = value
    elif isinstance(value, list | dict):
        content, reasoning = read_parts(value, said)
    elif value is None and text_key not in item and not ("tool_calls" in item or "function_call" in item):
        raise RowError("missing_field", said, f"{place} has no {text_key!r}")
    else:
        content = as_text(value, said)
    if given in ("function_call", "tool_call") and content:
        calls, content = _call_from_text(content)
    turn = Turn(role, content, reasoning, calls)
    if len(item) > 2 or text_key not in item:
        _read_extras(turn, item, place, warnings)
    return turn


def _read_extras(turn: Turn, item: dict[str, Any], place: str, warnings: list[RowError]) -> None:
    """Everything a message may carry beside role and content."""
    for key in _REASONING:
        value = item.get(key)
        if value is not None and not turn.reasoning:
            turn.reasoning = as_text(value, f"{place}.{key}")
    if item.get("tool_calls") is not None:
        turn.tool_calls = read_calls(item["tool_calls"], f"{place}.tool_calls")
    elif item.get("function_call") is not None:
        turn.tool_calls = [_read_call(item["function_call"], f"{place}.function_call")]
    if not turn.content and isinstance(item.get("refusal"), str):
        turn.content = item["refusal"]
    for key in ("name", "tool_call_id"):
        if item.get(key) is not None:
            setattr(turn, key, as_text(item[key], f"{place}.{key}"))
    for key in _WEIGHTS:
        if item.get(key) is not None:
            turn.train = _weight(item[key], f"{place}.{key}", warnings)
            break
    for key, value in item.items():
        if key not in _KNOWN and value is not None:
            warnings.append(RowError("ignored_field", f"{place}.{key}", f"{place}.{key} is not used", "info"))


def _weight(value: Any, field: str, warnings: list[RowError]) -> bool:
    if not isinstance(value, bool | int | float) or not value >= 0:
        raise RowError("invalid_value", field, f"{field} must be true, false or a number from 0, not {shown(value)}")
    if value not in (0, 1):
        words = f"{field} is {shown(value)}: turns are trained fully or not, here fully"
        warnings.append(RowError("weight_rounded", field, words, "warning"))
    return bool(value)


def shown(value: Any) -> str:
    """A value in a message, short."""
    try:
        text = msgspec.json.encode(value).decode("utf-8", "replace")
    except (TypeError, ValueError, OverflowError, RecursionError):
        text = kind(value)
    return text if len(text) <= 60 else text[:57] + "…"


def read_parts(parts: Any, field: str) -> tuple[str, str | None]:
    """Content given as parts → text and reasoning.

    Raises:
        RowError: a part that is no text (an image, a sound), or no part at all.
    """
    text: list[str] = []
    reasoning: list[str] = []
    for i, part in enumerate([parts] if isinstance(parts, dict) else parts):
        place = f"{field}[{i}]"
        if isinstance(part, str):
            text.append(part)
            continue
        if not isinstance(part, dict):
            raise RowError("invalid_type", place, f"{place} is {kind(part)}, where text or a content part is needed")
        name = part.get("type", "text")
        if name in ("text", "input_text", "output_text", "refusal"):
            key = "refusal" if name == "refusal" else "text"
            if part.get(key) is None:
                raise RowError("missing_field", f"{place}.{key}", f"{place} has no {key!r}")
            text.append(as_text(part[key], f"{place}.{key}"))
        elif name in ("reasoning", "thinking", "reasoning_content"):
            key = next((k for k in (name, "text", "content") if k in part), name)
            reasoning.append(as_text(part.get(key), f"{place}.{key}"))
        else:
            raise RowError(
                "unsupported_content", place, f"{place} is a part of type {shown(name)}: only text is trained"
            )
    return "".join(text), "".join(reasoning) if reasoning else None


def read_calls(calls: Any, field: str) -> list[dict[str, Any]] | None:
    """OpenAI's ``tool_calls``, arguments parsed, so that templates do not quote them twice."""
    if isinstance(calls, str):
        calls = _parsed(calls)
    if not isinstance(calls, list):
        raise RowError("invalid_type", field, f"{field} is {kind(calls)}, where a list of calls is needed")
    return [_read_call(call, f"{field}[{i}]") for i, call in enumerate(calls)] or None


def _read_call(call: Any, place: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise RowError("invalid_type", place, f"{place} is {kind(call)}, where a call is needed")
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("missing_field", f"{place}.name", f"{place} does not name the function that is called")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if isinstance(call.get("id"), str):
        made["id"] = call["id"]
    return made


def _parsed(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return text


def _call_from_text(content: str) -> tuple[list[dict[str, Any]] | None, str]:
    """A call written as the whole text of a ShareGPT turn, ``{"name": …, "arguments": …}`` or several in a list."""
    value = _parsed(content)
    try:
        return read_calls(value if isinstance(value, list) else [value], "value"), ""
    except RowError:
        return None, content


def read_tools(value: Any, field: str) -> list[dict[str, Any]] | None:
    """The functions a conversation may call: a list, or such a list written as JSON text."""
    if isinstance(value, str):
        if not value.strip():
            return None
        value = _parsed(value)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError("invalid_type", field, f"{field} must be a list of function descriptions, or that as JSON text")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]
    return wrapped or None


def check_turns(turns: list[Turn], field: str, warnings: list[RowError]) -> None:
    """What makes a conversation unusable, and what looks wrong in it.

    Raises:
        RowError: ``no_turns``, ``no_known_role`` or ``no_assistant``.
    """
    if not turns:
        raise RowError("no_turns", field, "there is no turn in it")
    if not any(turn.role in ROLES for turn in turns):
        raise RowError("invalid_role", field, "no turn has a known role (system, user, assistant, tool)")
    if not any(turn.role == "assistant" for turn in turns):
        raise RowError("no_assistant", field, "no turn of the assistant: nothing to learn from")
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
        if turn.role != "system":
            before = turn.role
