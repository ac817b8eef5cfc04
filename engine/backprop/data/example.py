"""What a row of any format becomes: turns of a conversation, with what the row says about training on them."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct, field

Format: TypeAlias = Literal["sharegpt", "alpaca", "openai", "chatml", "prompt_completion", "text", "preference", "kto"]
Severity: TypeAlias = Literal["error", "warning", "info"]
ROLES = frozenset({"system", "user", "assistant", "tool"})
"""The roles that templates know. A row's other role is kept as it is, with a warning."""


class RowError(Exception):
    """One finding about one row: collected by readers into their counts, never shown as an exception.

    Args:
        code: stable, lower case with underscores (``missing_field``, ``no_assistant`` …).
        field: where in the row, as ``messages[2].content``; empty when it is the row as a whole.
        message: what is wrong, in words, without the line number (the reader knows it).
        severity: ``error`` when the row cannot be used; those that are raised always are.
    """

    def __init__(self, code: str, field: str, message: str, severity: Severity = "error") -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message
        self.severity: Severity = severity


class Turn(Struct):
    """One message of a conversation."""

    role: str
    content: str
    reasoning: str | None = None
    """Thinking that the row keeps apart from the answer."""
    tool_calls: list[dict[str, Any]] | None = None
    """``{"type": "function", "function": {"name", "arguments"}}`` each, arguments parsed where they are JSON."""
    name: str | None = None
    tool_call_id: str | None = None
    train: bool | None = None
    """The row's own word on whether this turn is in the loss; ``None`` where it says nothing."""

    def blank(self) -> bool:
        """True when there is nothing in it to learn."""
        return not (self.tool_calls or self.content.strip() or (self.reasoning and self.reasoning.strip()))


def as_context(turns: list[Turn]) -> list[Turn]:
    """The turns as a prompt: answers in it are not trained unless the row says so."""
    return [
        msgspec.structs.replace(turn, train=False) if turn.role == "assistant" and turn.train is None else turn
        for turn in turns
    ]


class Example(Struct, kw_only=True):
    """A row, whatever its format.

    ``turns`` is the conversation; for preference rows it is the prompt, with ``chosen`` and ``rejected`` as its two
    continuations; for feedback rows it is the prompt and ``completion`` its continuation, judged by ``label``.
    Raw text has no turns but ``text``.
    """

    format: Format
    turns: list[Turn] = field(default_factory=list)
    text: str | None = None
    chosen: list[Turn] = field(default_factory=list)
    rejected: list[Turn] = field(default_factory=list)
    completion: list[Turn] = field(default_factory=list)
    label: bool | None = None
    tools: list[dict[str, Any]] | None = None
    warnings: list[RowError] = field(default_factory=list)
    """What was understood but is not trained as it stands, or looks wrong: empty content, odd order of roles …"""

    def supervised(self) -> list[Turn]:
        """The conversation that supervised fine-tuning learns from.

        Preference rows give prompt and chosen answer, feedback rows prompt and completion.

        Raises:
            RowError: ``label_false`` for an answer that the row calls bad.
        """
        if self.format == "preference":
            return [*as_context(self.turns), *self.chosen]
        if self.format == "kto":
            if not self.label:
                raise RowError("label_false", "label", "the answer is labelled bad: supervised training leaves it out")
            return [*as_context(self.turns), *self.completion]
        return self.turns
