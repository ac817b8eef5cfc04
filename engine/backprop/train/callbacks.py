"""What happens between two optimizer steps: report, evaluate, save, look at the heat, do what was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from backprop.core import events
from backprop.core.events import BatchHalved, Event, PhaseChanged
from backprop.train.checkpointing import Saver
from backprop.train.evaluate import Evaluator
from backprop.train.liveness import Liveness
from backprop.train.out_of_memory import Recovery
from backprop.train.reporting import Reporter
from backprop.train.steering import Steering
from backprop.train.trainer import StepTrainer


@dataclass
class BetweenSteps(TrainerCallback):
    """The callback of a run's training loop. Whatever takes time here is no part of the next step's time."""

    emit: Callable[[Event], None]
    trainer: StepTrainer
    reporter: Reporter
    steering: Steering
    liveness: Liveness
    saver: Saver
    evaluator: Evaluator
    eval_recovery: Recovery
    eval_steps: int
    patience: int | None
    sample: Callable[[int], None]
    stopped_early: bool = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        step = state.global_step
        measured = self.trainer.measured
        self.reporter.step(step, measured)
        self.liveness.check(step, measured)
        if len(self.evaluator) and (step % self.eval_steps == 0 or step == state.max_steps):
            self.evaluate(step)
        self.saver.after_step(step)
        if self.steering.settle(step) or self.stopped_early:
            control.should_training_stop = True
        self.reporter.start_clock()
        return control

    def evaluate(self, step: int) -> None:
        """Loss on the held-out rows, the samples, and a checkpoint if it is among the best."""
        self.emit(PhaseChanged(phase="evaluating"))
        result = self.eval_recovery.attempt(
            lambda: self.evaluator.evaluate(step, self.steering.look), lambda: None, self._halve_evaluation(step)
        )
        self.emit(result)
        if result.loss is not None:
            self.saver.after_evaluation(step, result.loss)
        self.sample(step)
        if self.patience is not None and self.evaluator.since_best >= self.patience:
            self.stopped_early = True
            best = self.evaluator.best
            self.emit(
                events.Warning(
                    code="EARLY_STOPPING",
                    message=f"no better held-out loss in {self.patience} evaluations: training ends at step {step}",
                    hint="" if best is None else f"the best was {best:.4f}; its checkpoint is kept",
                )
            )
        self.emit(PhaseChanged(phase="training"))

    def _halve_evaluation(self, step: int) -> Callable[[BaseException], bool]:
        def halve(error: BaseException) -> bool:
            spread = self.evaluator.halve()
            if spread is None:
                return False
            self.emit(
                BatchHalved(
                    step=step,
                    batch_size=spread.batch_size,
                    gradient_accumulation=1,
                    message=str(error).splitlines()[0],
                    where="evaluation",
                )
            )
            return True

        return halve
