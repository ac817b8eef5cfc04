"""Which characters of a rendered conversation the model answers with: the spans that are trained.

A span starts where the model takes over (after what the generation prompt supplies) and ends with the terminator that
the template really writes. It is found by rendering prefixes of the conversation: the text up to an answer, and the
text through it, must begin the whole text. Templates that write earlier turns differently once more turns follow
break that; there the answer is put aside for a mark, and what changes in the whole text is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from backprop.data.chat_template import THINK, ChatTemplate
from backprop.data.example import RowError

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None

_MARK = "\ue0f5\ue0f6"
"""Private-use characters, which no conversation and no template has."""
_EMPTY_THINK = re.compile(r"\s*<think>\s*</think>\s*")


class Span(NamedTuple):
    """Characters ``start`` to ``end`` of the text are the answer of message ``turn`` (index), terminator included."""

    turn: int
    start: int
    end: int


def answer_spans(template: ChatTemplate, messages: Messages, tools: Tools, text: str) -> list[Span]:
    """The span of every assistant message in ``text``, which is ``messages`` rendered.

    Raises:
        RowError: ``mask_unclear``, naming the turn whose place in the text cannot be told.
    """
    spans: list[Span] = []
    before = 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _start(template, messages[:i], tools, text)
        if start is not None and not _begins(text, start, message) and _asks_nothing(template, messages[:i], tools):
            start = None
        end = _end(template, messages[: i + 1], tools, text) if i + 1 < len(messages) else len(text)
        if start is None or end is None or not before <= start <= end:
            start, end = _by_mark(template, messages, i, tools, text, before=before)
        empty = _EMPTY_THINK.match(text, start, end)
        if empty:
            start = empty.end()
        end = start + len(text[start:end].rstrip())
        spans.append(Span(i, start, end))
        before = end
    return spans


def _start(template: ChatTemplate, prefix: Messages, tools: Tools, text: str) -> int | None:
    """Where the model takes over after ``prefix``, or ``None`` where ``text`` does not begin like it."""
    try:
        asked = template.render(prefix, tools, prompt=True)
    except RowError:
        # A template may refuse an empty conversation, or one that ends like this.
        return None
    if text.startswith(asked):
        return len(asked)
    # A generation prompt may open a <think> that this answer does not have.
    header, think, _ = asked.rpartition(THINK)
    return len(header) if think and text.startswith(header) else None


def _begins(text: str, start: int, message: Mapping[str, Any]) -> bool:
    """True where the answer's words stand right at ``start``, or cannot be told (it is a call, or nothing)."""
    words = message["content"].strip()[:24]
    return bool(message.get("tool_calls")) or not words or text[start : start + 64].lstrip().startswith(words)


def _asks_nothing(template: ChatTemplate, prefix: Messages, tools: Tools) -> bool:
    """True where the template has no generation prompt: what stands before the answer's words is a header."""
    try:
        return template.render(prefix, tools, prompt=True) == template.render(prefix, tools)
    except RowError:
        return False


def _end(template: ChatTemplate, prefix: Messages, tools: Tools, text: str) -> int | None:
    try:
        through = template.render(prefix, tools)
    except RowError:
        return None
    return len(through) if text.startswith(through) else None


def _by_mark(
    template: ChatTemplate, messages: Messages, i: int, tools: Tools, text: str, *, before: int
) -> tuple[int, int]:
    """The span of message ``i`` where prefixes do not tell; it begins after ``before``."""
    mark = {"role": "assistant", "content": _MARK}
    try:
        marked = template.render([*messages[:i], mark, *messages[i + 1 :]], tools)
        alone = template.render([*messages[:i], mark], tools)
    except RowError:
        raise _unclear(i) from None
    if marked.count(_MARK) != 1 or alone.count(_MARK) != 1:
        raise _unclear(i)
    head, _, after = marked.partition(_MARK)
    if not text.endswith(after):
        raise _unclear(i)
    content_end = len(text) - len(after)
    same = _shared(head, text[:content_end])
    start = same if same == len(head) else None
    header = _header(template, messages[:i], tools)
    if header:
        found = text.rfind(header, before, min(same + len(header), content_end))
        start = found + len(header) if found >= 0 else start
    if start is None:
        opened = re.search(r"<think>\s*$", text[before:same])
        start = before + opened.start() if opened else None
    if start is None or not before <= start <= content_end:
        raise _unclear(i)
    tail = alone.partition(_MARK)[2].rstrip()
    if not text.startswith(tail, content_end):
        raise _unclear(i)
    return start, content_end + len(tail)


def _header(template: ChatTemplate, prefix: Messages, tools: Tools) -> str:
    """What asks the model to answer after ``prefix``, without a ``<think>`` in it."""
    try:
        bare, asked = template.render(prefix, tools), template.render(prefix, tools, prompt=True)
    except RowError:
        return ""
    return asked[len(bare) :].partition(THINK)[0] if asked.startswith(bare) else ""


def _unclear(i: int) -> RowError:
    return RowError(
        "mask_unclear",
        f"turns[{i}]",
        f"the chat template changes turn {i + 1} (assistant) depending on later turns: its place cannot be told",
    )


def _shared(a: str, b: str) -> int:
    """Number of characters that both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
