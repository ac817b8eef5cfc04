"""What a row of any format becomes: turns of a conversation, with what the row says about training on them."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

Role = Literal["system", "user", "assistant", "tool"]
Format = Literal["sharegpt", "alpaca", "openai", "chatml", "prompt_completion", "text", "preference", "kto"]


class RowError(Exception):
    """One row that cannot be used: collected by readers into their counts, never shown as an exception.

    Args:
        code: stable, lower case with underscores (``missing_field``, ``no_assistant`` …).
        field: where in the row, as ``messages[2].content``; empty when it is the row as a whole.
        message: what is wrong, in words, without the line number (the reader knows it).
    """

    def __init__(self, code: str, field: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message


class Turn(Struct):
    """One message of a conversation."""

    role: Role
    content: str
    reasoning: str | None = None
    """Thinking that the row keeps apart from the answer."""
    tool_calls: list[dict[str, Any]] | None = None
    """OpenAI shape: ``{"type": "function", "function": {"name", "arguments"}}``, arguments parsed where they are JSON."""
    name: str | None = None
    tool_call_id: str | None = None
    train: bool | None = None
    """The row's own word on whether this turn is in the loss; ``None`` where it says nothing."""


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
    """What was understood but is not trained as it stands: empty content, unknown keys of a turn …"""
