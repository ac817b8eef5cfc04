"""Talking to a model: the conversation's lines and the replies."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from backprop.core.events import RunFailed


class ChatRequest(Struct, kw_only=True):
    """Load a model and stay: ``ChatTurn`` and ``StopReply`` follow, one a line, until standard input ends."""

    source: str
    """A run's directory, or a folder with an adapter or a whole model."""
    step: int | None = None
    """The run's checkpoint to talk to; the result where none is named."""
    model: str | None = None
    """Where the base model is now, if it is no longer where the run or the adapter names it."""


class Sampling(Struct, kw_only=True, frozen=True):
    """How the next token is chosen."""

    max_tokens: int = 512
    temperature: float = 0.0
    """0: always the most likely token."""
    top_p: float = 1.0
    """Only the most likely tokens that have this share together."""
    seed: int = 0
    """The same for both models: what differs between their answers is not chance."""


class ChatTurn(Struct, kw_only=True, tag_field="type", tag="turn"):
    """Ask for the next reply; each model has its own conversation. Answered by ``reply``s and one ``turn_ended``."""

    turn: int
    """Its number, larger than any before."""
    tuned: list[dict[str, str]] = []
    """The conversation so far as ``role`` and ``content``, the user's message last; empty: not asked."""
    base: list[dict[str, str]] = []
    """The same for the model without the adapter."""
    sampling: Sampling = Sampling()


class StopReply(Struct, kw_only=True, tag_field="type", tag="stop"):
    """End the replies of ``turn`` where they are."""

    turn: int


ChatLine: TypeAlias = ChatTurn | StopReply


class ChatReady(Struct, kw_only=True, tag_field="type", tag="chat_ready"):
    """The model is loaded."""

    model: str
    device: str
    has_base: bool
    """Whether it can be asked without the adapter too."""
    on_texts: bool
    """Whether it was trained on plain texts, so that it goes on with what it is told."""
    context: int | None = None
    """Tokens that it can look back on, where its configuration says."""


class Delta(Struct, kw_only=True, tag_field="type", tag="delta"):
    """A piece of a reply to turn ``index``, as it comes; the whole follows as ``reply``."""

    index: int
    tuned: bool
    text: str


class Reply(Struct, kw_only=True, tag_field="type", tag="reply"):
    """A whole reply to turn ``index``."""

    index: int
    tuned: bool
    text: str
    tokens: int
    ended: Literal["end", "length", "stopped"]
    """Whether the model ended it, ``max_tokens`` or the context did, or the person."""


class TurnEnded(Struct, kw_only=True, tag_field="type", tag="turn_ended"):
    """Nothing more comes for turn ``index``; the model waits for the next."""

    index: int
    failed: RunFailed | None = None


ChatMessage: TypeAlias = ChatReady | Delta | Reply | TurnEnded
