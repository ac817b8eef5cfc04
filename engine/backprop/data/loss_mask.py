"""Which characters of a rendered conversation the model answers with: the spans that are trained.

A span starts where the model takes over (after what the generation prompt supplies) and ends with the terminator that
the template really writes. It is found by rendering prefixes of the conversation: the text up to an answer, and the
text through it, must begin the whole text. Templates that write earlier turns differently once more turns follow
break that; there the answer is put aside for a mark, and what changes in the whole text is the answer. Between the
spans is what the row says besides: what is missing there, the template has left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from backprop.data.chat_template import CLOSED, END_THINK, MARK, OPENED, THINK, ChatTemplate, shared
from backprop.data.example import RowError, Turn

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None

_EMPTY_THINK = re.compile(rf"\s*(?P<opened>{OPENED}\s*)?{CLOSED}(?:\s*\n)?")
"""To the line that the answer begins in: its indentation is its own."""
_OPEN = re.compile(rf"{OPENED}\s*$")


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
        end = _end(template, messages[: i + 1], tools, text, last=i + 1 == len(messages))
        if start is None or end is None or not before <= start <= end:
            start, end = _by_mark(template, messages, i, tools, text, before=before)
        start = _after_empty_think(text, start, end)
        end = start + len(text[start:end].rstrip())
        spans.append(Span(i, start, end))
        before = end
    return spans


def _after_empty_think(text: str, start: int, end: int) -> int:
    """Where the answer goes on after thinking that is none, whether the prompt opened it or the answer does."""
    while (empty := _EMPTY_THINK.match(text, start, end)) and (
        empty["opened"] or _OPEN.search(text, max(0, start - 64), start)
    ):
        start = empty.end()
    return start


def _start(template: ChatTemplate, prefix: Messages, tools: Tools, text: str) -> int | None:
    """Where the model takes over after ``prefix``, or ``None`` where ``text`` does not begin like it."""
    try:
        asked = template.render(prefix, tools, prompt=True)
    except RowError:
        # A template may refuse an empty conversation, or one that ends like this.
        return None
    if text.startswith(asked):
        return len(asked)
    # A generation prompt may open a <think> that this answer spaces in its own way, or does not have; one that asks for
    # no thinking closes it, and would open it for an answer that has some.
    asked = asked.rstrip()
    header, think, rest = asked.rpartition(THINK)
    if asked.endswith(END_THINK) and rest.strip() != END_THINK:
        header, think, rest = asked.removesuffix(END_THINK), THINK, ""
    open_or_not = (header, header) if END_THINK in rest else (header + think, header)
    return next((len(known) for known in open_or_not if think and text.startswith(known)), None)


def _begins(text: str, start: int, message: Mapping[str, Any]) -> bool:
    """True where the answer's words stand right at ``start``, or cannot be told (it is a call, or nothing)."""
    words = message["content"].strip()[:24]
    return bool(message.get("tool_calls")) or not words or text[start : start + 64].lstrip().startswith(words)


def _asks_nothing(template: ChatTemplate, prefix: Messages, tools: Tools) -> bool:
    """True where the template has no generation prompt: what stands before the answer's words is a header.

    One that writes the prompt whether asked or not has it in its trailer.
    """
    if template.trailer:
        return False
    try:
        return template.render(prefix, tools, prompt=True) == template.render(prefix, tools)
    except RowError:
        return False


def _end(template: ChatTemplate, prefix: Messages, tools: Tools, text: str, *, last: bool) -> int | None:
    """Where the answer at the end of ``prefix`` ends, or ``None`` where ``text`` goes on in another way."""
    try:
        through = text if last else template.conversation(prefix, tools)
    except RowError:
        return None
    through = through.rstrip().removesuffix(template.trailer).rstrip() if template.trailer else through.rstrip()
    return len(through) if text.startswith(through) else None


def _by_mark(
    template: ChatTemplate, messages: Messages, i: int, tools: Tools, text: str, *, before: int
) -> tuple[int, int]:
    """The span of message ``i`` where prefixes do not tell; it begins after ``before``."""
    mark = {"role": "assistant", "content": MARK}
    try:
        marked = template.conversation([*messages[:i], mark, *messages[i + 1 :]], tools)
    except RowError:
        raise _unclear(i) from None
    head, _, after = marked.partition(MARK)
    if marked.count(MARK) != 1 or not text.endswith(after):
        raise _unclear(i)
    content_end = len(text) - len(after)
    same = shared(head, text[:content_end])
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
    tail = _tail(template, messages[:i], tools, text[content_end:])
    if tail is None:
        raise _unclear(i)
    end = content_end + len(tail)
    following = messages[i + 1]["content"].strip() if i + 1 < len(messages) else ""
    if following and following in text[start:end] and following not in str(messages[i]):
        # Some templates write the result of a call between the call and the words of its turn.
        raise _unclear(i)
    return start, end


def _tail(template: ChatTemplate, prefix: Messages, tools: Tools, after: str) -> str | None:
    """What ends the answer to ``prefix``, as the template writes it there or between turns, where ``after`` begins like
    that."""
    try:
        alone = template.render([*prefix, {"role": "assistant", "content": MARK}], tools).partition(MARK)[2]
    except RowError:
        alone = MARK
    tails = [alone.rstrip().removesuffix(template.trailer).rstrip(), template.closing, *template.missing_ends.values()]
    return next((tail for tail in tails if tail and after.startswith(tail)), None if any(tails) else "")


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


def left_out(turns: Sequence[Turn], spans: Mapping[int, Span], text: str) -> list[RowError]:
    """What the row says and the rendered text does not say in its place: of an answer between the answer before it and
    its end, of another turn outside of all answers."""
    found = []
    edges = [0, *(edge for span in spans.values() for edge in (span.start, span.end)), len(text)]
    outside = MARK.join([text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)])
    before = 0
    for i, turn in enumerate(turns):
        span = spans.get(i)
        written = outside if span is None else text[before : span.end]
        before = before if span is None else span.end
        content, whole = turn.content.strip(), turn.content.rstrip()
        if content not in written:
            found.append(_lost_content(turn, i, written, last=i == max(spans)))
        elif span is not None and content and whole not in written:
            words = f"the chat template leaves out the white space that turn {i + 1} begins with"
            found.append(RowError("text_changed", f"turns[{i}]", words, "warning"))
        if turn.reasoning and turn.reasoning.strip() not in written:
            words = f"the chat template leaves out the reasoning of turn {i + 1}"
            found.append(RowError("reasoning_dropped", f"turns[{i}]", words, "warning"))
        if turn.tool_calls:
            called = Counter(call["function"]["name"] for call in turn.tool_calls)
            answer = text[span.start : span.end].replace(content or MARK, "") if span is not None else written
            if any(answer.count(name) < times for name, times in called.items()):
                words = f"the chat template leaves out the calls of turn {i + 1}, or some of them"
                found.append(RowError("tool_calls_dropped", f"turns[{i}]", words, "warning"))
    return found


def _lost_content(turn: Turn, i: int, text: str, *, last: bool) -> RowError:
    place = f"turns[{i}]"
    thought, closed, answer = turn.content.partition(END_THINK)
    if closed and THINK in thought and answer.strip() in text:
        if thought.partition(THINK)[2].strip() in text:
            words = f"the chat template spaces the <think> of turn {i + 1} its own way"
            return RowError("text_changed", place, words, "info")
        words = f"the chat template leaves out the <think> of turn {i + 1}" + ("" if last else " (turns follow it)")
        return RowError("reasoning_dropped", place, words, "warning")
    if turn.role == "system":
        return RowError("system_dropped", place, "the chat template leaves out the system text", "warning")
    words = f"the chat template leaves out or changes text of turn {i + 1} ({turn.role})"
    return RowError("text_dropped", place, words, "warning")
