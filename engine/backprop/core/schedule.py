"""How long a run is and its learning rates: for the step loop, and for whoever wants to know before the start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from backprop.core import rules
from backprop.core.settings import RunConfig

FLOOR = 0.1
"""The learning rate decays to this share of its peak, not to zero: the last steps still learn."""


@dataclass
class Schedule:
    """How long a run is, and its learning rates: ``steps`` optimizer steps over ``rows`` rows, ``rows_per_step`` each.

    Warm-up is linear and its first step already learns; decay goes down to ``FLOOR``.
    """

    rows: int
    rows_per_step: int
    steps: int
    warmup_steps: int
    kind: Literal["cosine", "linear", "constant"]

    @classmethod
    def of(cls, config: RunConfig, rows: int) -> Schedule:
        """Of a configuration whose batch size is chosen, on ``rows`` usable rows."""
        assert config.batch_size != "auto"
        rows_per_step = config.batch_size * (config.gradient_accumulation or rules.accumulation(config.batch_size))
        epochs = rules.epochs(rows) if config.epochs == "auto" else config.epochs or 1.0
        steps = config.steps or math.ceil(-(-rows // rows_per_step) * epochs)
        warmup = rules.warmup(steps) if config.warmup_steps == "auto" else config.warmup_steps
        if warmup is None:  # in the record of an earlier version
            warmup = min(100, round(0.05 * steps))
        return cls(rows, rows_per_step, steps, min(warmup, steps - 1), config.scheduler)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.rows_per_step)

    def factor(self, step: int) -> float:
        """Share of the peak learning rate that optimizer step ``step`` (from 0) uses."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.kind == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps - 1))
        left = 1.0 - done if self.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return FLOOR + (1.0 - FLOOR) * left
