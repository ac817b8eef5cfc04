"""Where chat templates run: Jinja's sandbox as transformers sets it up, so that a template does here what it does
there, and with an end to what never ends.

The environment is the one that Hugging Face documents (https://huggingface.co/docs/transformers/chat_templating_writing):
trimmed blocks, loop controls, ``tojson``, ``raise_exception``, ``strftime_now``, nothing that changes a value.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

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
