"""What a model scores on rows, one by one."""

from __future__ import annotations

import math
from typing import TypeAlias

from msgspec import Struct

from backprop.core.events import Problem
from backprop.core.jobs.chat import ChatRequest


class RowScore(Struct, frozen=True):
    """One row: ``loss`` is the mean over its ``tokens`` trained tokens, in nats."""

    line: int
    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e to the loss; 8e307 where that would be more."""
        return math.exp(min(self.loss, 709.0))


class RowScores(Struct, kw_only=True, tag_field="type", tag="row_scores"):
    """Scores of some rows, in no order; each row comes once."""

    rows: list[RowScore]


class Scored(Struct, kw_only=True, tag_field="type", tag="scored"):
    """The end of a scoring: every row is counted, with a score or without."""

    rows: int
    scored: int
    cut: int
    """Scored rows whose beginning was left out to fit ``max_length``."""
    max_length: int
    answer_lost: int = 0
    """Rows without a score, because their answer does not fit ``max_length``."""
    dropped: int = 0
    """Rows without a score, because they cannot be used, nothing of them is trained, or their loss is not finite."""
    problems: list[Problem] = []
    """The first of both, with their lines."""
    cached: bool = False


class EvalRequest(Struct, kw_only=True):
    """Score a model on rows."""

    model: ChatRequest
    """Which model."""
    base: bool = False
    """Whether it is scored without its adapter too."""
    run: str = ""
    """Directory of the run whose rows, length and mask are taken."""
    data: str = ""
    """A dataset, all of whose rows are taken instead."""
    trained: bool = False
    """The rows that the run trained, not those that it held out."""
    generate: bool = False
    """Whether answers are generated and measured."""
    regex: str = ""
    max_tokens: int = 128
    """Longest answer."""


class EvaluatedRow(Struct, kw_only=True, omit_defaults=True):
    """What a model scored on one row."""

    line: int
    content: int
    """Hash of what the row says, the same under each model and length (``data.token_cache``)."""
    loss: float | None
    """Mean over its supervised tokens, in nats; ``None`` where it is not finite."""
    tokens: int
    """Supervised tokens; where a method weighs rows by something else, that."""
    bytes: int = 0
    """UTF-8 bytes of what these tokens say."""
    prompt: str = ""
    expected: str = ""
    """The row's last answer."""
    answer: str | None = None
    """What the model said to the prompt instead."""
    metrics: dict[str, float] = {}


class Evaluation(Struct, kw_only=True):
    """What a model scored on some rows: the answer of an evaluation, and a file of a run's ``evaluations``."""

    schema: int = 1
    source: str
    """The run's id, or the folder of the model."""
    step: int | None = None
    """0: the base model; ``None``: what is in the folder."""
    fingerprint: str = ""
    """Names the rows as tokens: losses per token compare under the same alone."""
    rows: list[EvaluatedRow]

    @property
    def loss(self) -> float | None:
        """Weighted by supervised tokens; ``None`` where it is not finite."""
        if not self.rows or any(row.loss is None for row in self.rows):
            return None
        return sum((row.loss or 0.0) * row.tokens for row in self.rows) / max(1, sum(row.tokens for row in self.rows))


class Evaluations(Struct, kw_only=True, tag_field="type", tag="evaluations"):
    """The answer: the model's scores, and its base model's where these were asked for."""

    sides: list[Evaluation]


ScoringMessage: TypeAlias = RowScores | Scored | Evaluations
