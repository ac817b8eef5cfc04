"""From the trainer's numbers to events: one ``step`` event for each optimizer step."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable

import torch

from backprop.core.errors import TrainingError
from backprop.core.events import Event, Step, StepSkipped
from backprop.train.trainer import Measured, Plan

SKIPS_IN_A_ROW = 5
"""Steps without a finite gradient after which a run gives up."""


def finite(value: float) -> float | None:
    """``value``, or ``None`` where it is no number: events carry ``null`` then."""
    return value if math.isfinite(value) else None


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far, of the GPU where one is used, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Reporter:
    """Counts what a run has seen and emits its steps.

    ``tokens_seen`` and ``samples_seen`` go on where a resumed run stood: set them before the first step.
    """

    def __init__(self, emit: Callable[[Event], None], schedule: Plan, device: torch.device) -> None:
        self._emit = emit
        self._schedule = schedule
        self._device = device
        self._since = time.perf_counter()
        self._skipped = 0
        self.tokens_seen = 0
        self.samples_seen = 0
        self.last_loss: float | None = None

    def start_clock(self) -> None:
        """The next step's time counts from here: called after whatever was no part of a step (a pause, a save)."""
        self._since = time.perf_counter()

    def step(self, number: int, measured: Measured) -> None:
        """Report optimizer step ``number``.

        Raises:
            TrainingError: ``RUNTIME_NOT_FINITE`` after too many skipped steps in a row.
        """
        seconds = time.perf_counter() - self._since
        self.tokens_seen += measured.tokens
        self.samples_seen += measured.rows
        self.last_loss = finite(measured.loss)
        self._emit(
            Step(
                step=number,
                total_steps=self._schedule.steps,
                loss=self.last_loss,
                learning_rate=measured.learning_rate,
                grad_norm=finite(measured.grad_norm),
                tokens_per_second=measured.tokens / max(seconds, 1e-9),
                tokens_seen=self.tokens_seen,
                epoch=number / self._schedule.steps_per_epoch,
                trained_tokens=measured.trained_tokens,
                samples_seen=self.samples_seen,
                seconds=seconds,
                memory=peak_memory(self._device),
            )
        )
        self._count_skips(number, measured)

    def _count_skips(self, number: int, measured: Measured) -> None:
        if not measured.skipped:
            self._skipped = 0
            return
        self._skipped += 1
        self._emit(StepSkipped(step=number, reason="the gradient is not finite", in_a_row=self._skipped))
        if self._skipped >= SKIPS_IN_A_ROW:
            raise TrainingError(
                f"{self._skipped} steps in a row had a gradient that is not finite (the last was step {number})",
                hint="lower the learning rate with --lr, or look at the rows with `backprop validate`",
                code="RUNTIME_NOT_FINITE",
            )
