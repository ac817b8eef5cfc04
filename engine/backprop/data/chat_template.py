"""The model's own chat template: turns → text, as the model will meet it when it answers.

Templates are Jinja programs that come with a model, so they run sandboxed. The environment is the one that
Hugging Face documents for them (https://huggingface.co/docs/transformers/chat_templating_writing): trimmed blocks,
loop controls, ``tojson`` that keeps characters as they are, ``raise_exception``, ``strftime_now``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backprop.core.errors import ModelLoadError
from backprop.data.example import RowError, Turn

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


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}``: some templates mark answers with it; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class ChatTemplate:
    """A compiled template with the model's special tokens.

    Args:
        source: the Jinja text.
        tokens: special tokens by name, as ``bos_token`` and ``eos_token``.
        tool_source: another template for conversations with tools, where the model has one.

    Raises:
        ModelLoadError: the template is not valid Jinja.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], tool_source: str | None = None) -> None:
        self.source = source
        self.tool_source = tool_source
        self.tokens = dict(tokens)
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self._tool_template = environment.from_string(tool_source) if tool_source else self._template
        except jinja2.TemplateError as error:
            raise ModelLoadError(
                f"the model's chat template cannot be read: {error}",
                hint="use the model's instruct version, or repair chat_template.jinja",
            ) from error
        texts = source + (tool_source or "")
        self.knows_reasoning = "reasoning_content" in texts or "message.thinking" in texts or "'thinking'" in texts
        self.knows_calls = "tool_calls" in texts
        self.knows_tools = "tools" in texts
        self.dated = "strftime_now" in texts
        self.folds_system = self._loses_system()

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
        try:
            return template.render(
                messages=messages, tools=tools or None, documents=None, add_generation_prompt=prompt, **self.tokens
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RowError(
                "template_refused", "", f"the model's chat template refuses the conversation: {error}"
            ) from None
        except RecursionError:
            raise RowError("too_deep", "", "the row is nested too deeply for the chat template") from None


def _with_calls(content: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """The content, then each call as JSON between ``<tool_call>`` marks."""
    texts = [f"<tool_call>\n{_tojson(call['function'])}\n</tool_call>" for call in calls]
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
