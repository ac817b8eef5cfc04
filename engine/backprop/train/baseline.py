"""Did it help: the held-out rows as the untouched model scores them, and as the result does."""

from __future__ import annotations

from pathlib import Path

from backprop.core import events
from backprop.core.events import PhaseChanged
from backprop.core.jobs import EvaluatedRow, Evaluation
from backprop.core.settings import RunConfig
from backprop.runs import evaluations
from backprop.runs.directory import RunDirectory
from backprop.runs.verdict import compare
from backprop.train.dataset import Subset
from backprop.train.evaluate import Evaluator, Sums, Weights
from backprop.train.model import Loaded
from backprop.train.persistence.resume import Beginning
from backprop.train.steering import Steering


class Baseline:
    """Keeps what each held-out row scored before the first step and in the result, and compares the two.

    Args:
        evaluated: the rows, as the run's evaluator takes them.
        steering: emits, and says when somebody wants the run to end.
    """

    def __init__(
        self,
        start: Beginning,
        config: RunConfig,
        directory: RunDirectory,
        loaded: Loaded,
        *,
        evaluated: Subset,
        steering: Steering,
    ) -> None:
        self._start = start
        self._config = config
        self._directory = directory
        self._loaded = loaded
        self._evaluated = evaluated
        self._steering = steering
        self._emit = steering.emit
        self._scored: dict[int, list[EvaluatedRow]] = {}
        """Scores of the rows after the last evaluated step, and after the best one of this stretch."""

    def score(self, evaluator: Evaluator) -> None:
        """Before the first step: the untouched model's loss on the held-out rows, which is then kept for the end."""
        if self._start.checkpoint or not self._config.eval_base or not len(evaluator):
            return
        if self._start.weights and self._config.mode not in ("lora", "qlora"):
            # No adapter to leave out: the base is not in memory any more, but the run that it comes from scored it.
            parent = Path(self._directory.read_record().forked_from).parents[1]
            if (known := evaluations.read(RunDirectory(parent), 0)) is not None:
                self._keep(0, known.rows)
            return
        self._emit(PhaseChanged(phase="evaluating", detail="the untouched model"))
        with self._loaded.mode.base_answers(self._loaded.model):
            result = evaluator.evaluate(0, self._steering.look, base=True)
        self._keep(0, self._scored.pop(0))
        self._emit(result)
        self._emit(PhaseChanged(phase="training"))

    def remember(self, result: events.Evaluated, sums: Sums, weights: Weights) -> None:
        """Remember what each row scored, until it is known of which step the result is."""
        samples = zip(self._evaluated.names(), sums.tolist(), weights.tolist(), strict=True)
        if result.best:
            self._scored.clear()
        elif len(self._scored) > 1:
            self._scored.popitem()
        self._scored[result.step] = evaluations.by_row((*name, *score) for name, *score in samples)

    def judge(self, step: int, evaluator: Evaluator) -> events.Verdict | None:
        """Compare the result, which is that of ``step``, with the base model; ``None`` where one was not evaluated."""
        base = evaluations.read(self._directory, 0)
        if base is None or not len(evaluator):
            return None
        if step not in self._scored:
            if self._steering.stop is not None:
                return None  # who ends a run early does not want to wait
            self._emit(PhaseChanged(phase="evaluating", detail="the result"))
            evaluator.evaluate(step, self._steering.look)
        self._keep(step, self._scored[step])
        return compare(base.rows, self._scored[step])

    def _keep(self, step: int, rows: list[EvaluatedRow]) -> None:
        """Keep the scores of a step in the run's directory; a disk that does not take them ends no run."""
        found = Evaluation(source=self._directory.run_id, step=step, fingerprint=self._evaluated.fingerprint, rows=rows)
        try:
            evaluations.write(evaluations.step_file(self._directory, step), found)
        except OSError as error:
            message = f"the scores of step {step} row by row could not be kept: {error.strerror or error}"
            self._emit(events.Warning(code="SCORES_NOT_KEPT", message=message))
