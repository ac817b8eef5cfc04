"""What happens after each optimizer step: report it, see that something is learned, evaluate, save, obey."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from backprop.core import events
from backprop.core.errors import TrainingError, some
from backprop.core.events import Event, PhaseChanged, Step, StepSkipped
from backprop.core.schedule import Schedule
from backprop.train.evaluate import Evaluator
from backprop.train.gpu_guard import Guard
from backprop.train.model import Loaded
from backprop.train.persistence.checkpointing import Saver
from backprop.train.persistence.output import Output
from backprop.train.steering import Steering
from backprop.train.trainer import StepLoop, StepMetrics

SKIPS_IN_A_ROW = 5
"""Steps without a finite gradient after which a run gives up."""

STEPS_WITHOUT_MARGIN = 10
"""Steps after warm-up by which a preference must show: adapters begin at nothing, and bf16 rounds small changes off."""


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

    def __init__(self, emit: Callable[[Event], None], schedule: Schedule, loaded: Loaded, rate: float) -> None:
        """``rate``: the run's learning rate, of which a failure names a lower one."""
        self._rate = rate
        self._emit = emit
        self._schedule = schedule
        self._loaded = loaded
        self._since = time.perf_counter()
        self._skipped = 0
        self.tokens_seen = 0
        self.samples_seen = 0
        self.last_loss: float | None = None

    def start_clock(self) -> None:
        """The next step's time counts from here: called after whatever was no part of a step (a pause, a save)."""
        self._since = time.perf_counter()

    def step(self, number: int, metrics: StepMetrics) -> None:
        """Report optimizer step ``number``.

        Raises:
            TrainingError: ``RUNTIME_NOT_FINITE`` after too many skipped steps in a row.
        """
        seconds = time.perf_counter() - self._since
        self.tokens_seen += metrics.tokens
        self.samples_seen += metrics.rows
        self.last_loss = finite(metrics.loss)
        self._emit(
            Step(
                step=number,
                total_steps=self._schedule.steps,
                loss=self.last_loss,
                learning_rate=metrics.learning_rate,
                grad_norm=finite(metrics.grad_norm),
                tokens_per_second=metrics.tokens / max(seconds, 1e-9),
                tokens_seen=self.tokens_seen,
                epoch=number / self._schedule.steps_per_epoch,
                trained_tokens=metrics.supervised,
                samples_seen=self.samples_seen,
                seconds=seconds,
                memory=peak_memory(self._loaded.device),
                metrics={name: value for name, value in metrics.by_name.items() if math.isfinite(value)},
            )
        )
        if not metrics.skipped:
            self._skipped = 0
            return
        self._skipped += 1
        self._emit(StepSkipped(step=number, reason="the gradient is not finite", in_a_row=self._skipped))
        if self._skipped >= SKIPS_IN_A_ROW:
            remedy = {"learning_rate": float(f"{self._rate / 3:.1g}")} if self._rate else {}
            hint = "lower the learning rate with --lr, or look at the rows with `backprop validate`"
            frozen = ((name, each) for name, each in self._loaded.model.named_parameters() if not each.requires_grad)
            if broken := [name for name, each in frozen if not each.isfinite().all()]:
                path, remedy = self._loaded.path, {}
                hint = f"the model in {path} has weights that are not finite, {some(broken)}: fetch or copy it again"
            raise TrainingError(
                f"{self._skipped} steps in a row had a gradient that is not finite (the last was step {number})",
                hint=hint,
                code="RUNTIME_NOT_FINITE",
                details={"remedy": remedy} if remedy else {},
            )


class Liveness:
    """Is anything being learned? Looked at on the first steps, before hours are spent on nothing.

    Compares the trained weights before and after the first step that had a learning rate and a finite gradient. And
    looks at the margins between chosen and rejected answers for some steps after ``warmup`` ones.
    """

    def __init__(self, model: torch.nn.Module, warmup: int = 0) -> None:
        self._model = model
        self._margins_until = warmup + STEPS_WITHOUT_MARGIN
        self._before: list[torch.Tensor] | None = self._sums()

    def _sums(self) -> list[torch.Tensor]:
        trained = [p.detach() for p in self._model.parameters() if p.requires_grad]
        return [torch.stack([p.double().sum(), p.double().abs().sum()]) for p in trained]

    def check(self, step: int, metrics: StepMetrics) -> None:
        """Look at what step ``step`` did; does nothing after the first step that counts.

        Raises:
            TrainingError: ``RUNTIME_NOTHING_IS_TRAINING``.
        """
        margin = metrics.by_name.get("rewards/margins")
        if margin:
            self._margins_until = 0
        elif margin == 0 and step == self._margins_until:
            raise TrainingError(
                f"nothing is training: after {step} steps the margin between chosen and rejected answers is still "
                "exactly 0",
                hint="look at both sides of a row with `backprop validate`, and at --lr",
                code="RUNTIME_NOTHING_IS_TRAINING",
            )
        if self._before is None or metrics.skipped or metrics.learning_rate == 0:
            return
        same = all(torch.equal(old, new) for old, new in zip(self._before, self._sums(), strict=True))
        if same or metrics.grad_norm == 0:
            what = "changed no trained weight" if metrics.grad_norm else "had a gradient of exactly zero"
            raise TrainingError(
                f"nothing is training: step {step} {what}",
                hint="look at the trained tokens of a row with `backprop validate`, and at --lr and --target-modules",
                code="RUNTIME_NOTHING_IS_TRAINING",
            )
        self._before = None


@dataclass
class Callbacks:
    """Called by the step loop between two steps. Whatever takes time here is no part of the next step's time."""

    emit: Callable[[Event], None]
    loop: StepLoop
    reporter: Reporter
    steering: Steering
    guard: Guard
    evaluator: Evaluator
    eval_steps: int
    """Steps between two evaluations; the last step is evaluated as well."""
    patience: int | None
    """Evaluations in a row without a better one after which the run ends; ``None`` is never."""
    sample: Callable[[int], bool]
    """Answers the configured prompts, given the number of the last step; whether it answered all of them."""
    output: Output
    saver: Saver = field(init=False)
    """Set once there is one: what it saves is in part kept here."""
    stopped_early: bool = False
    """Whether patience has run out, in this stretch of the run or in an earlier one."""
    _owes_samples: bool = False
    """Whether a stop left samples of an evaluated step out: they are asked again when the run goes on."""

    def __post_init__(self) -> None:
        self._liveness = Liveness(self.loop.loaded.model, self.loop.schedule.warmup_steps)

    def after_step(self, step: int) -> bool:
        """Everything that follows step ``step``; whether the run is to end.

        Raises:
            TrainingError: nothing is learned, or too many steps were skipped.
            TrainingAbortedError, GPUTemperatureError: see ``Steering.settle``.
        """
        self.reporter.step(step, self.loop.metrics)
        self._liveness.check(step, self.loop.metrics)
        self.output.require_place(step, self.saver)
        if len(self.evaluator) and (step % self.eval_steps == 0 or step == self.loop.schedule.steps):
            self._evaluate(step)
        self.saver.after_step(step)
        ends = self.steering.settle(step) or self.stopped_early
        self.reporter.start_clock()
        return ends

    def _evaluate(self, step: int) -> None:
        """Loss on the held-out rows, the samples, and a checkpoint if it is among the best."""
        self.emit(PhaseChanged(phase="evaluating"))
        result = self.evaluator.evaluate(step, self.steering.look)
        self.emit(result)
        self._owes_samples = not self.sample(step)
        if result.loss is not None:
            self.saver.after_evaluation(step, result.loss)
        if self._out_of_patience:
            self.stopped_early = True
            best = self.evaluator.best
            message = f"no better held-out loss in {self.patience} evaluations: training ends at step {step}"
            hint = "" if best is None else f"the best was {best:.4f}"
            self.emit(events.Warning(code="EARLY_STOPPING", message=message, hint=hint))
        self.emit(PhaseChanged(phase="training"))

    @property
    def _out_of_patience(self) -> bool:
        return self.patience is not None and self.evaluator.since_best >= self.patience

    def progress(self) -> dict[str, Any]:
        """How far the run is beside weights and optimizer: kept in its checkpoints, for ``restore``."""
        training, evaluation = self.loop.batching, self.evaluator.batching
        return {
            "tokens_seen": self.reporter.tokens_seen,
            "samples_seen": self.reporter.samples_seen,
            "batch_size": training.batch_size,
            "capacity": training.token_budget,
            "eval_batch_size": evaluation.batch_size,
            "eval_capacity": evaluation.token_budget,
            "halvings": self.loop.recovery.halvings,
            "last_loss": self.reporter.last_loss,
            "owes_samples": self._owes_samples,
            "best": self.evaluator.best,
            "since_best": self.evaluator.since_best,
            "energy": self.guard.energy,
        }

    def restore(self, saved: dict[str, Any], *, new_end: bool = False) -> None:
        """Put back what an earlier stretch of the run had come to.

        Args:
            new_end: the run is given another end, and patience with it.
        """
        loop, evaluator = self.loop, self.evaluator
        self.reporter.tokens_seen, self.reporter.samples_seen = saved["tokens_seen"], saved["samples_seen"]
        # Not in checkpoints of earlier versions.
        self.reporter.last_loss, self._owes_samples = saved.get("last_loss"), saved.get("owes_samples", False)
        loop.batching = loop.batching.resized(saved["batch_size"], saved["capacity"])
        evaluator.batching = evaluator.batching.resized(saved["eval_batch_size"], saved["eval_capacity"])
        loop.recovery.halvings = saved["halvings"]
        evaluator.best, evaluator.since_best = saved["best"], saved["since_best"]
        if new_end and self._out_of_patience:
            evaluator.since_best = 0
        self.stopped_early = self._out_of_patience
        self.guard.earlier_energy = saved["energy"]

    def begin(self) -> bool:
        """Before the first step: give what a resumed run still owes; whether a step is to follow."""
        if self._owes_samples:
            self._owes_samples = not self.sample(self.loop.step)
        return not (self.stopped_early or self._owes_samples)
