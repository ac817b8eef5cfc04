"""The model's own chat template: turns → text, as the model will meet it when it answers.

Templates are Jinja programs that come with a model, so they run in a sandbox, with an end to what never ends. It is
set up as transformers does it, so that a template does here what it does there: trimmed blocks, loop controls,
``tojson``, ``raise_exception``, ``strftime_now``, nothing that changes a value
(https://huggingface.co/docs/transformers/chat_templating_writing).
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from backprop.core.errors import ModelLoadError
from backprop.data.example import CONTROL_TOKEN, RowError, Turn

THINK, END_THINK = "<think>", "</think>"
OPENED = r"(?:<think>|<seed:think>|\[THINK\]|<\|START_THINKING\|>)"
CLOSED = r"(?:</think>|</seed:think>|\[/THINK\]|<\|END_THINKING\|>)"
"""What the families write around thinking."""
KEPT_THINKING = "trained as far as the model's chat template keeps them"
"""What ``ChatTemplate.trained_thinking`` says where no template was asked."""
MARK = "\ue0f5\ue0f6"
"""Private-use characters, which no conversation and no template has: they find the place of an answer."""
_PUT_ASIDE = "\ue0f5\ue0f7"
"""Stands for an answer that the template does not see; its number among the turns, and ``MARK``, follow."""
_THINKING_BEFORE = re.compile(rf"(?:{OPENED}\s*)?(?:{CLOSED}\s*)?(?={_PUT_ASIDE})")
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
        self._verbatim = False
        self.folds_system = self._loses_system()
        self.drops_thinking = self._loses_thinking()
        self.missing_ends: dict[bool, str] = {}
        self.closing = self.last_end = self.trailer = ""
        self._find_ends(ends)

    def with_traces(self) -> ChatTemplate:
        """The same with the ``<think>…</think>`` of every answer as the row has it, which the template does not see."""
        found = copy.copy(self)
        found._verbatim, found.drops_thinking = True, False
        return found

    def trained_thinking(self) -> str:
        """How much of the thinking in a row's answers is trained, in words."""
        asked = {"role": "user", "content": "a"}
        first, last = ({"role": "assistant", "content": thought(f"{each} idea", "b")} for each in ("first", "last"))
        try:
            text = self.conversation([asked, first, asked, last])
        except RowError:
            return KEPT_THINKING
        if "last idea" not in text:
            return "not trained: the chat template leaves them out"
        return "trained whole" if "first idea" in text else "trained in the last answer of a row and left out before it"

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
        answer = {"role": "assistant", "content": thought(words, MARK)}
        try:
            text = self.render([{"role": "user", "content": "a"}, answer])
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
                    message["content"] = thought(turn.reasoning, turn.content)
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
        aside: list[tuple[str, str]] = []
        if self._verbatim:
            messages, aside = _put_aside(messages)
        self._environment.until = time.monotonic() + SECONDS
        try:
            text = template.render(
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
        text = _THINKING_BEFORE.sub("", text) if aside else text
        for mark, content in aside:
            text = text.replace(mark, content)
        return text

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
        idea, ended, _ = content.partition(END_THINK) if self.drops_thinking else ("", "", "")
        if ended and idea.replace(THINK, "").strip():
            head, _, tail = self.render([*messages[:-1], {**last, "content": MARK}], tools).rpartition(MARK)
            # A prompt that asks for no thinking closes it at once.
            text = head.removesuffix(END_THINK) + content + tail
        else:
            text = self.render(messages, tools)
        return text + self.missing_ends.get(bool(last.get("tool_calls")), "")


def thought(reasoning: str, content: str) -> str:
    """An answer with its thinking as plain text."""
    return f"{THINK}\n{reasoning}\n{END_THINK}\n\n{content}"


def _put_aside(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[tuple[str, str]]]:
    """The messages with a mark for each answer that thinks in its text, and those answers by their marks."""
    marked, aside = list(messages), []
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and END_THINK in message["content"].lower():
            mark = f"{_PUT_ASIDE}{i}{MARK}"
            marked[i] = {**message, "content": mark}
            aside.append((mark, message["content"]))
    return marked, aside


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


_LONGEST = 10_000_000
"""Longest text or list that a template may make by repeating one, and most bits of a power."""
_LOOKED_AT = 1 << 14
"""Rounds of a template's loops between two looks at the clock."""


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}``: some templates mark answers with it; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class NeverEndsError(Exception):
    """A conversation took longer than it may."""


class _Names(Namespace):
    """``namespace(…)`` that keeps a template from what begins with an underscore, as transformers' does."""

    def __init__(*args: Any, **values: Any) -> None:
        self, given = args[0], dict(*args[1:], **values)
        for name in given:
            _plain_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _plain_name(name)
        super().__setitem__(name, value)


def _plain_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no place for {name!r}")


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON that keeps characters as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates, and runs them with an end to loops and to repetition.

    Args:
        now: the time that ``strftime_now`` writes.

    Attributes:
        until: when the conversation that is rendered must be done, on the monotonic clock.
    """

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, now: datetime) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = tojson
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = now.strftime
        self.globals["namespace"] = _Names
        self.rounds, self.until = 0, 0.0

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        loops: list[nodes.For | nodes.Macro] = [*tree.find_all(nodes.For), *tree.find_all(nodes.Macro)]
        for loop in loops:
            loop.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("one_round"), lineno=loop.lineno))
        return tree

    def compiled(self, source: str) -> jinja2.Template:
        """The template, its globals as one dictionary: a chain of them is slow to copy for each conversation."""
        template = self.from_string(source)
        template.globals = dict(template.globals)
        return template

    @property
    def one_round(self) -> None:
        """Evaluated by templates in each round of a loop."""
        self.rounds += 1
        if self.rounds % _LOOKED_AT == 0 and time.monotonic() > self.until:
            raise NeverEndsError

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        times = [each for each in (left, right) if isinstance(each, int)]
        repeated = [len(each) for each in (left, right) if isinstance(each, str | list | tuple)]
        if operator == "**" and len(times) == 2:
            repeated = [left.bit_length()]
        if repeated and times and repeated[0] * times[-1] > _LONGEST:
            raise jinja2.TemplateError(f"{operator} makes more than {_LONGEST} of it")
        return super().call_binop(context, operator, left, right)
