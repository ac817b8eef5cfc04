"""What turns hold: texts, content parts, calls of tools and tools, in the spellings of the common interfaces."""

from __future__ import annotations

import json
import math
from datetime import date
from typing import Any

import msgspec

from backprop.data.example import RowError, Turn
from backprop.data.spellings import parsed

_KINDS = {list: "a list", dict: "an object", bool: "a truth value", str: "text", int: "a number", float: "a number"}
_PART_OF = {
    **dict.fromkeys(("text", "input_text", "output_text", "refusal"), "text"),
    **dict.fromkeys(("reasoning", "thinking", "reasoning_content", "reasoningContent"), "reasoning"),
    **dict.fromkeys(("tool_use", "toolUse", "tool_call", "function_call", "functionCall"), "call"),
    **dict.fromkeys(("tool_result", "toolResult", "tool_response", "function_response", "functionResponse"), "result"),
}
"""Type of a content part (Anthropic's, Bedrock's, Gemini's and OpenAI's) → what it is."""
_TEXT_KEYS = ("text", "value", "content", "refusal", "reasoning", "thinking", "reasoning_content", "reasoningText")
_RESULT_KEYS = ("content", "response", "output", "result", "json", "text")
_ID_KEYS = ("id", "tool_use_id", "toolUseId", "tool_call_id", "call_id")
_ARGUMENTS = ("arguments", "input", "args", "parameters")
_PARAMETERS = ("parameters", "input_schema", "inputSchema")


def kind(value: Any) -> str:
    """What a value is, in words."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def shown(value: Any) -> str:
    """A value in a message, short."""
    try:
        text = msgspec.json.encode(value).decode("utf-8", "replace")
    except (TypeError, ValueError, OverflowError, RecursionError):
        text = kind(value)
    return text if len(text) <= 60 else text[:57] + "…"


def as_text(value: Any, field: str, warnings: list[RowError] | None = None) -> str:
    """The text of a field: ``None`` is empty, 0 and False are not, nothing becomes a Python representation.

    Raises:
        RowError: a list or an object stands where text is needed.
    """
    if type(value) is str:
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, int | float | str):
        text = str(value)
    elif isinstance(value, date):
        return value.isoformat()
    else:
        raise RowError("invalid_type", field, f"{field} is {kind(value)}, where text is needed")
    if warnings is not None:
        warnings.append(RowError("written_value", field, f"{field} is {kind(value)}: it is read as {text!r}", "info"))
    return text


def are_parts(value: list[Any] | dict[str, Any]) -> bool:
    """Whether what stands in a turn of a tool is content in parts, and not data that the tool answered with."""
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, dict) and _is_part(item) for item in items)


def _is_part(item: dict[str, Any]) -> bool:
    name = item.get("type")
    if isinstance(name, str):
        return name in _PART_OF or any(medium in name for medium in ("image", "audio", "video"))
    return 0 < len(item) < 3 and item.keys() <= {"type", "text", *_PART_OF}


def read_parts(turn: Turn, parts: Any, field: str, warnings: list[RowError]) -> list[Turn]:
    """Give a turn its content, which is in parts: text, reasoning, calls.

    Returns:
        the answers of tools among the parts, which some interfaces put into a turn of the user, as turns of their own.

    Raises:
        RowError: a part that is no text (an image, a sound), or no part at all.
    """
    results = []
    for i, part in enumerate([parts] if isinstance(parts, dict) else parts):
        place = f"{field}[{i}]"
        if isinstance(part, str):
            turn.content += part
        elif isinstance(part, dict):
            results += _read_part(turn, part, place, warnings)
        else:
            raise RowError("invalid_type", place, f"{place} is {kind(part)}, where text or a content part is needed")
    return results


def _read_part(turn: Turn, part: dict[str, Any], place: str, warnings: list[RowError]) -> list[Turn]:
    name, held = part.get("type"), part
    if name is None:
        # Bedrock and Gemini say what a part is by its only key.
        name = next(
            (key for key in part if key in _PART_OF and part[key] is not None),
            "" if {*part}.isdisjoint(_TEXT_KEYS) else "text",
        )
        held = part[name] if isinstance(part.get(name), dict) else part
    meaning = _PART_OF.get(name) if isinstance(name, str) else None
    if meaning == "call":
        turn.tool_calls = [*(turn.tool_calls or []), read_call(held, place, warnings)]
    elif meaning == "result":
        value = next((held[key] for key in _RESULT_KEYS if held.get(key) is not None), None)
        return [Turn("tool", result_text(value), tool_call_id=_id(held))]
    elif meaning is None:
        named = shown(name or next(iter(part), ""))
        raise RowError("unsupported_content", place, f"{place} is a part of type {named}: only text is trained")
    else:
        key = next((key for key in (str(name), *_TEXT_KEYS) if held.get(key) is not None), "text")
        if held.get(key) is None:
            raise RowError("missing_field", f"{place}.{key}", f"{place} has no {key!r}")
        inner = held[key]["text"] if isinstance(held[key], dict) and "text" in held[key] else held[key]
        text = as_text(inner, f"{place}.{key}")
        if meaning == "text":
            turn.content += text
        else:
            turn.reasoning = (turn.reasoning or "") + text
    return []


def result_text(value: Any) -> str:
    """What a tool answered, as text: parts of text are joined, other values written as JSON."""
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and {*value[0]} == {"json"}:
        value = value[0]["json"]
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _id(item: dict[str, Any]) -> str | None:
    return next((item[key] for key in _ID_KEYS if isinstance(item.get(key), str)), None)


def read_calls(calls: Any, field: str, warnings: list[RowError]) -> list[dict[str, Any]] | None:
    """OpenAI's ``tool_calls``, arguments parsed, so that templates do not quote them twice."""
    if isinstance(calls, str):
        calls = parsed(calls)
    if not isinstance(calls, list):
        raise RowError("invalid_type", field, f"{field} is {kind(calls)}, where a list of calls is needed")
    return [read_call(call, f"{field}[{i}]", warnings) for i, call in enumerate(calls)] or None


def read_call(call: Any, place: str, warnings: list[RowError]) -> dict[str, Any]:
    """One call as ``{"type": "function", "function": {"name", "arguments"}}``; without arguments they are ``{}``."""
    if not isinstance(call, dict):
        raise RowError("invalid_type", place, f"{place} is {kind(call)}, where a call is needed")
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("missing_field", f"{place}.name", f"{place} does not name the function that is called")
    arguments: Any = next((function[key] for key in _ARGUMENTS if function.get(key) is not None), {})
    if isinstance(arguments, str):
        made = parsed(arguments)
        arguments = {} if made is None or not arguments.strip() else made
    if not isinstance(arguments, dict):
        words = f"the arguments of {function['name']} are no JSON object: {shown(arguments)}"
        warnings.append(RowError("call_arguments", f"{place}.arguments", words, "warning"))
    read: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if (id := _id(call)) is not None:
        read["id"] = id
    return read


def call_from_text(content: str) -> tuple[list[dict[str, Any]] | None, str]:
    """A call written as the whole text of a ShareGPT turn, ``{"name": …, "arguments": …}`` or several in a list."""
    value = parsed(content)
    try:
        return read_calls(value if isinstance(value, list) else [value], "value", []), ""
    except RowError:
        return None, content


def read_tools(value: Any, field: str) -> list[dict[str, Any]] | None:
    """The functions a conversation may call: a list, or such a list (or each of them) written as JSON text.

    Descriptions as Anthropic, MCP, Gemini, Bedrock and OpenAI's Responses have them become those of OpenAI's chats.
    """
    if isinstance(value, str):
        value = parsed(value) if value.strip() else None
    tools = [value] if isinstance(value, dict) else value
    if tools is None:
        return None
    tools = [parsed(tool) if isinstance(tool, str) else tool for tool in tools] if isinstance(tools, list) else None
    if tools is None or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("invalid_type", field, f"{field} must be a list of function descriptions, or that as JSON text")
    declared = [tool.get("function_declarations", tool.get("functionDeclarations", [tool])) for tool in tools]
    flat = [tool for group in declared for tool in group]
    return [_read_tool(tool, f"{field}[{i}]") for i, tool in enumerate(flat)] or None


def _read_tool(tool: dict[str, Any], place: str) -> dict[str, Any]:
    function = tool.get("function", tool.get("toolSpec", tool))
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("missing_field", f"{place}.name", f"{place} describes no function: it has no name")
    if "function" in tool:
        return tool
    made = {"parameters" if key in _PARAMETERS else key: inner for key, inner in function.items() if key != "type"}
    schema = made.get("parameters")
    if isinstance(schema, dict) and {*schema} == {"json"}:
        made["parameters"] = schema["json"]
    return {"type": "function", "function": made}
