"""Reasoning traces: the thinking that an answer has in ``<think>…</think>``, or that a message keeps beside it.

With the setting ``reasoning_trace`` each is trained as the row has it, and ``trace_finding`` is the one rule, for
checking, counting, screens and training, on the rows that are left out for theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from backprop.core.methods import Rows
from backprop.data.example import Example, RowError

CHARACTERS_PER_TOKEN = 4
_THINK = re.compile(r"<(/?)think>", re.IGNORECASE)
_WORDS = {
    "no_think": "no answer has a reasoning trace: the row is trained as it stands",
    "unbalanced": "a <think> that does not close, or closes twice: the row is left out",
    "too_short": "the reasoning trace is empty, or shorter than {} tokens: the row is left out",
    "too_long": "the reasoning trace is longer than {} tokens: the row is left out",
}


def estimate_tokens(text: str) -> int:
    """Tokens of a text when no tokenizer is at hand: a quarter of its characters."""
    return len(text) // CHARACTERS_PER_TOKEN


class TraceLimits(Struct, frozen=True):
    """Bounds of a reasoning trace, in estimated tokens."""

    min_tokens: int = 8
    max_tokens: int = 8192

    def reason(self, example: Example) -> str:
        """``no_think``, ``unbalanced``, ``too_short``, ``too_long``, or nothing for a row that stays."""
        turns = [turn for turn in example.turns if turn.role == "assistant"]
        turns = [*turns, *example.chosen, *example.completion]
        apart = [turn.reasoning for turn in turns if turn.reasoning is not None]
        return self.text_reason("\n".join([example.text or "", *(turn.content for turn in turns)]), apart)

    def text_reason(self, text: str, apart: Sequence[str] = ()) -> str:
        """The same for an answer with its ``<think>…</think>`` inside, and thinking that is kept ``apart`` from it."""
        thoughts = [*apart]
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
        if not thoughts:
            return "no_think"
        tokens = estimate_tokens("\n".join(thoughts).strip())
        return "too_short" if tokens < self.min_tokens else "too_long" if tokens > self.max_tokens else ""


def trace_finding(example: Example, rows: Rows) -> RowError | None:
    """What is said of the reasoning trace of a row that training could use otherwise: a warning, with which the row
    is left out but where the code is ``trace_missing``.

    Raw text has no answer that thinks.
    """
    left_out = rows == "conversation" and example.label is False
    if example.text is not None or left_out or example.fault(rows) is not None:
        return None
    limits = TraceLimits()
    reason = limits.reason(example)
    if not reason:
        return None
    code = "trace_missing" if reason == "no_think" else f"trace_{reason}"
    most = limits.max_tokens if reason == "too_long" else limits.min_tokens
    return RowError(code, "", _WORDS[reason].format(most), "warning")
