"""Reasons to leave a row out: too short, too long, nobody answers, thinking that is empty or endless."""

from __future__ import annotations

import re

from msgspec import Struct

from backprop.data.example import Example
from backprop.data.examples import answer_text, whole_text

CHARACTERS_PER_TOKEN = 4
_THINK = re.compile(r"<(/?)think>", re.IGNORECASE)


def estimate_tokens(text: str) -> int:
    """Tokens of a text when no tokenizer is at hand: a quarter of its characters."""
    return len(text) // CHARACTERS_PER_TOKEN


class LengthLimits(Struct, frozen=True):
    """Bounds of a useful conversation, lengths in estimated tokens."""

    min_tokens: int = 50
    max_tokens: int = 4096
    min_turns: int = 2
    need_assistant: bool = True

    def reason(self, example: Example) -> str:
        """``empty``, ``few_turns``, ``no_assistant``, ``short``, ``long``, or nothing for a row that stays."""
        text = whole_text(example)
        if not text.strip():
            return "empty"
        if example.text is None:
            turns = [*example.turns, *example.chosen, *example.completion]
            spoken = [turn for turn in turns if turn.role != "system"]
            if len(spoken) < self.min_turns:
                return "few_turns"
            if self.need_assistant and not any(turn.role == "assistant" for turn in turns):
                return "no_assistant"
        tokens = estimate_tokens(text)
        if tokens < self.min_tokens:
            return "short"
        return "long" if tokens > self.max_tokens else ""


class TraceLimits(Struct, frozen=True):
    """Bounds of a reasoning trace, in estimated tokens."""

    min_tokens: int = 8
    max_tokens: int = 8192

    def reason(self, example: Example) -> str:
        """``no_think``, ``unbalanced``, ``too_short``, ``too_long``, or nothing for a row that stays."""
        kept_apart = [turn.reasoning for turn in [*example.turns, *example.chosen] if turn.reasoning]
        if kept_apart:
            return self._by_length("\n".join(kept_apart))
        return self.text_reason(answer_text(example))

    def text_reason(self, text: str) -> str:
        """The same for an answer with its ``<think>…</think>`` inside."""
        thoughts: list[str] = []
        opened: int | None = None
        for tag in _THINK.finditer(text):
            closing = bool(tag[1])
            if closing != (opened is not None):
                return "unbalanced"
            if opened is not None:
                thoughts.append(text[opened : tag.start()])
                opened = None
            else:
                opened = tag.end()
        if opened is not None:
            return "unbalanced"
        return self._by_length("\n".join(thoughts)) if thoughts else "no_think"

    def _by_length(self, thought: str) -> str:
        tokens = estimate_tokens(thought.strip())
        if tokens < self.min_tokens:
            return "too_short"
        return "too_long" if tokens > self.max_tokens else ""
