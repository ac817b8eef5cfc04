"""What a run is given: the model as loaded, and the rows as counted before the first step."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct, field

from backprop.core.events.base import Count, Event


class ModelLoading(Event):
    """Progress of getting the weights: ``done`` of ``total`` bytes (``total`` 0 when not known)."""

    model: str
    stage: Literal["download", "convert", "load"]
    done: Count = 0
    total: Count = 0


class ModelLoaded(Event):
    """What is really in memory, measured on the loaded weights."""

    model: str
    path: str
    device: str
    mode: str
    dtype: str
    parameters: Count
    trainable_parameters: Count
    targets: list[str] = field(default_factory=list)
    """Kinds of layer that carry an adapter, such as ``q_proj``."""
    notes: list[str] = field(default_factory=list)
    share_4bit: float = 0.0
    """How much of the frozen weights' bytes is in 4 bits: of 1."""


class TokenSpan(Struct):
    """A piece of a rendered row; ``trained`` when its tokens are in the loss."""

    text: str
    trained: bool


class Problem(Struct, kw_only=True):
    """One finding about one row of the data (SPEC section 13, ``validate``)."""

    line: Count
    code: str
    message: str
    field: str = ""
    severity: Literal["error", "warning", "info"] = "error"
    excerpt: str = ""


def with_place(field: str, message: str) -> str:
    """What is wrong in a row, after the field where it is wrong unless the words name that (or what holds it)."""
    holder = field.rpartition(".")[0] or field
    return message if field in message or message.startswith(holder) else f"{field}: {message}"


class LengthLimit(Struct, frozen=True):
    """What one limit on the length of rows costs: how many are whole, cut, split (texts), or lose their answer."""

    max_length: Count
    whole: Count
    cut: Count = 0
    split: Count = 0
    answer_lost: Count = 0


LEFT_OUT = ("label_false", "trace_too_short", "trace_too_long", "trace_unbalanced")
"""Findings about rows that are left out on purpose: answers that are labelled bad, reasoning traces of no use."""


class DatasetPrepared(Event):
    """The counted pre-flight: what will be trained, before the first step."""

    path: str
    format: str
    rows: Count
    kept: Count
    unit: str = "line"
    """What ``line`` of a finding counts: ``row`` where the data has no lines."""
    cut: Count = 0
    """Kept rows whose beginning was cut to fit ``max_length``."""
    answer_lost: Count = 0
    """Rows whose answer could not be kept whole within ``max_length``."""
    dropped: Count = 0
    """Rows that are not trained; the reasons are in ``problems`` and ``problem_counts``."""
    duplicated: Count = 0
    tokens: Count = 0
    trained_tokens: Count = 0
    max_length: Count = 0
    p50: Count = 0
    """Tokens of a row to the end of its last answer, before anything is cut: half of the rows have no more."""
    p90: Count = 0
    p99: Count = 0
    longest: Count = 0
    limits: list[LengthLimit] = field(default_factory=list)
    """What is lost at ``max_length``, and would be at p50, p90, p99 and ``longest``."""
    answers_fit: Count = 0
    """The smallest ``max_length`` at which no answer is lost."""
    held_out: Count = 0
    problem_counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    """The first findings; ``backprop validate`` lists all."""
    first_row: list[TokenSpan] = field(default_factory=list)
    """As it is trained: without what ``max_length`` cuts; of a pair, the chosen side."""
    first_rejected: list[TokenSpan] = field(default_factory=list)
    """The other side of a pair."""
    cached: bool = False
    notes: list[str] = field(default_factory=list)
    """Choices made for the person, each with its reason: a field mapping that was found, for instance."""

    @property
    def unusable(self) -> int:
        """Rows that would train nothing. What is left out on purpose is none of them."""
        return self.dropped + self.answer_lost - sum(self.problem_counts.get(code, 0) for code in LEFT_OUT)


InputEvent: TypeAlias = ModelLoading | ModelLoaded | DatasetPrepared
