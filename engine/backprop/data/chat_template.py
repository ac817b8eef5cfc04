"""The model's own chat template: turns → text, as the model will meet it when it answers.

Templates are Jinja programs that come with a model, so they run in ``template_sandbox``.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2

from backprop.core.errors import ModelLoadError
from backprop.data.example import CONTROL_TOKEN, RowError, Turn
from backprop.data.template_sandbox import NeverEndsError, Sandbox, tojson

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a model that brings no template but knows ChatML's two tokens."""

PLAIN = (
    "{{ bos_token }}{% for message in messages %}### {{ message.role | capitalize }}:\n{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""For a model that brings no template and knows no turns: plain headings, each answer ended by its own end token."""

THINK, END_THINK = "<think>", "</think>"
MARK = "\ue0f5\ue0f6"
"""Private-use characters, which no conversation and no template has: they find the place of an answer."""
SECONDS = 10.0
"""Longest time that one conversation may take to render: templates are programs of strangers, and some never end."""


class ChatTemplate:
    """A compiled template with the model's special tokens.

    Args:
        source: the Jinja text.
        tokens: special tokens by name, as ``bos_token`` and ``eos_token``.
        tool_source: another template for conversations with tools, where the model has one.
        ends: the tokens that end generation.
        now: the time that it writes, where it writes the date; the present by default.

    Raises:
        ModelLoadError: the template is not valid Jinja, or it does not come to an end.

    Attributes:
        trailer: what it writes after the last answer though it is no part of that: a text's end, the next header.
        closing: what ends an answer that a question follows.
        last_end: what ends the last answer.
        missing_ends: what the next turn would write to end the last answer, by whether that calls a tool; empty where
            the template ends it itself.
    """

    def __init__(
        self,
        source: str,
        tokens: Mapping[str, str],
        tool_source: str | None = None,
        *,
        ends: Collection[str] = (),
        now: datetime | None = None,
    ) -> None:
        self.source = source
        self.tool_source = tool_source
        self.tokens = dict(tokens)
        self._environment = Sandbox(now or datetime.now())
        try:
            self._template = self._environment.compiled(source)
            self._tool_template = self._environment.compiled(tool_source) if tool_source else self._template
        except jinja2.TemplateError as error:
            raise ModelLoadError(
                f"the model's chat template cannot be read: {error}",
                hint="use the model's instruct version, or repair chat_template.jinja",
            ) from error
        texts = source + (tool_source or "")
        self.knows_reasoning = "reasoning_content" in texts or "message.thinking" in texts or "'thinking'" in texts
        self.knows_calls = "tool_calls" in texts
        self.dated = "strftime_now" in texts
        self.folds_system = self._loses_system()
        self.drops_thinking = self._loses_thinking()
        self.missing_ends: dict[bool, str] = {}
        self.closing = self.last_end = self.trailer = ""
        self._find_ends(ends)

    def _loses_system(self) -> bool:
        """True where a conversation may not start with a system text, or the text would be left out of it."""
        system = {"role": "system", "content": "a text that is looked for"}
        asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            self.render(asked)
        except RowError:
            return False
        try:
            return system["content"] not in self.render([system, *asked])
        except RowError:
            return True

    def _loses_thinking(self) -> bool:
        """True where even the last answer, which is the one to be learned, loses its thinking."""
        words = "a thought that is looked for"
        thought = {"role": "assistant", "content": f"{THINK}\n{words}\n{END_THINK}\n\n{MARK}"}
        try:
            text = self.render([{"role": "user", "content": "a"}, thought])
        except RowError:
            return False
        return MARK in text and words not in text

    def _find_ends(self, ends: Collection[str]) -> None:
        """Compare what follows an answer at the end with what follows it before a question."""
        asked = {"role": "user", "content": "a"}
        last, followed = self._after_answer(), self._after_answer(asked)
        if last is None or followed is None:
            return
        both = last[: shared(last, followed)]
        first = min(((both.find(end), end) for end in ends if end in both), default=None)
        self.closing = self.last_end = (both[: first[0] + len(first[1])] if first else both).rstrip()
        if self.closing:
            self.trailer = last.rstrip()[len(self.closing) :]
            return
        token = CONTROL_TOKEN.match(followed)
        self.closing, self.last_end = token[0] if token else "", last.rstrip()
        if token and token[0] in ends and not last.strip():
            call = {"type": "function", "function": {"name": "a", "arguments": {}}}
            result = self._after_answer({"role": "tool", "content": "a"}, tool_calls=[call])
            ended = next((end for end in ends if result and end in result.partition(MARK)[0]), token[0])
            self.missing_ends = {False: token[0], True: ended}

    def _after_answer(self, *turns: Mapping[str, Any], **answer: Any) -> str | None:
        """What stands after an answer that ``turns`` follow; ``None`` where the template refuses or leaves it out."""
        question = {"role": "user", "content": "a"}
        try:
            text = self.render([question, {"role": "assistant", "content": MARK, **answer}, *turns])
        except RowError:
            return None
        return text.partition(MARK)[2] if MARK in text else None

    def messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """Turns as the template takes them. What it has no place for is written into the content as plain text:
        reasoning as ``<think>``, calls as ``<tool_call>``, a system text before the first question."""
        made: list[dict[str, Any]] = []
        for turn in turns:
            message: dict[str, Any] = {"role": turn.role, "content": turn.content}
            if turn.reasoning:
                if self.knows_reasoning:
                    message["reasoning_content"] = message["thinking"] = turn.reasoning
                else:
                    message["content"] = f"{THINK}\n{turn.reasoning}\n{END_THINK}\n\n{turn.content}"
            if turn.tool_calls:
                if self.knows_calls:
                    message["tool_calls"] = turn.tool_calls
                else:
                    message["content"] = _with_calls(message["content"], turn.tool_calls)
            if turn.name is not None:
                message["name"] = turn.name
            if turn.tool_call_id is not None:
                message["tool_call_id"] = turn.tool_call_id
            made.append(message)
        if self.folds_system and len(made) > 1 and made[0]["role"] == "system" and made[1]["role"] == "user":
            made[1]["content"] = f"{made[0]['content']}\n\n{made[1]['content']}"
            del made[0]
        return made

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: bool = False,
    ) -> str:
        """The text of a conversation; with ``prompt``, followed by what asks the model to answer.

        Raises:
            RowError: ``template_refused``, with the template's own words.
        """
        template = self._tool_template if tools else self._template
        self._environment.until = time.monotonic() + SECONDS
        try:
            return template.render(
                messages=messages, tools=tools or None, documents=None, add_generation_prompt=prompt, **self.tokens
            )
        except NeverEndsError:
            raise ModelLoadError(
                f"the model's chat template does not come to an end: a conversation took more than {SECONDS:g} s",
                hint="repair its loops in chat_template.jinja, or use the model's own template",
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RowError(
                "template_refused", "", f"the model's chat template refuses the conversation: {error}"
            ) from None
        except RecursionError:
            raise RowError("too_deep", "", "the row is nested too deeply for the chat template") from None

    def conversation(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The text of a conversation as it is trained: what the template writes, with what it takes from the last
        answer: its thinking, where the template deletes that of all answers, and its end, where it leaves that to the
        next turn.

        Raises:
            RowError: as ``render``.
        """
        last: Mapping[str, Any] = messages[-1] if messages else {}
        if last.get("role") != "assistant":
            return self.render(messages, tools)
        content: str = last["content"]
        thought, ended, _ = content.partition(END_THINK) if self.drops_thinking else ("", "", "")
        if ended and thought.replace(THINK, "").strip():
            head, _, tail = self.render([*messages[:-1], {**last, "content": MARK}], tools).rpartition(MARK)
            # A prompt that asks for no thinking closes it at once.
            text = head.removesuffix(END_THINK) + content + tail
        else:
            text = self.render(messages, tools)
        return text + self.missing_ends.get(bool(last.get("tool_calls")), "")


def shared(a: str, b: str) -> int:
    """Number of characters that both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def _with_calls(content: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """The content, then each call as JSON between ``<tool_call>`` marks."""
    texts = [f"<tool_call>\n{tojson(call['function'])}\n</tool_call>" for call in calls]
    return "\n".join([content, *texts] if content else texts)


def choose(given: Any) -> tuple[str | None, str | None]:
    """The template and the one for tools, from ``chat_template`` of a tokenizer's configuration (text, or a list of
    named ones)."""
    if isinstance(given, str):
        return given, None
    if isinstance(given, list):
        given = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
    if not isinstance(given, dict):
        return None, None
    return given.get("default"), given.get("tool_use")
