"""Loss on held-out rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from backprop.core.events import Evaluated
from backprop.train.dataset import Subset, now_and_then
from backprop.train.loss import Metrics
from backprop.train.methods import Method
from backprop.train.model import Loaded, evaluating
from backprop.train.out_of_memory import Recovery
from backprop.train.packing import Batching, MicroBatch
from backprop.train.trainer import batch_loss

Sums = npt.NDArray[np.float64]
Weights = npt.NDArray[np.int64]
PROGRESS_SECONDS = 5.0
PIECE = 64
"""Rows that are read at once."""


@dataclass
class Evaluator:
    """Loss on held-out rows, weighted as in training, in micro-batches as large as the training ones.

    Logits are never kept: only their loss is. An evaluation that runs out of memory begins again in smaller
    micro-batches; training's are not changed.
    """

    loaded: Loaded
    method: Method
    rows: Subset
    batching: Batching
    recovery: Recovery
    on_halved: Callable[[int, Batching, BaseException], object] = lambda step, batching, error: None
    """Called with the step, the batching from now on and the error."""
    on_progress: Callable[[int, int], object] = lambda done, total: None
    """Called now and then with how many of the rows are done, where that takes long."""
    on_scored: Callable[[Evaluated, Sums, Weights], object] = lambda result, sums, weights: None
    """Called with each result and, for every row, its summed loss and what that weighs."""
    best: float | None = None
    since_best: int = 0
    """Evaluations since the best one."""

    def __len__(self) -> int:
        return len(self.rows)

    def evaluate(self, step: int, between: Callable[[], object], *, base: bool = False) -> Evaluated:
        """Evaluate after ``step``; dropout is off during it and the mode is put back, also after an error.

        Args:
            between: called before each micro-batch that is computed; may raise.
            base: it is the untouched model that answers: what training is compared with, and no result of it. What it
                was asked before (``Loaded.base_scores``) is not computed again, and counted with the time that it took.

        Raises:
            GPUMemoryError: not even small micro-batches fit.
        """
        began = time.perf_counter()

        def take(smaller: Batching, error: BaseException) -> None:
            self.batching = smaller
            self.on_halved(step, smaller, error)

        sums, weights, tokens, metrics, earlier = self.recovery.attempt(
            lambda: self._sums(between, base), lambda: None, lambda: self.batching.halved(self._micro_batches(0)), take
        )
        total, weight = float(sums.sum()), int(weights.sum())
        mean = total / weight if weight and math.isfinite(total) else math.nan
        result = Evaluated(
            step=step,
            loss=mean if math.isfinite(mean) else None,
            tokens=tokens,
            rows=len(self.rows),
            seconds=time.perf_counter() - began + earlier,
            best=not base and self.record(mean),
            base=base,
            metrics={name: value for name, value in metrics.means().items() if math.isfinite(value)},
        )
        self.on_scored(result, sums, weights)
        return result

    @torch.no_grad()
    def _sums(self, between: Callable[[], object], base: bool) -> tuple[Sums, Weights, int, Metrics, float]:
        """Each row's summed loss, what it weighs, the number of supervised tokens of all, and the metrics.

        And the seconds that what was known already took.
        """
        sums, weights = np.zeros(len(self.rows)), np.zeros(len(self.rows), dtype=np.int64)
        tokens, done, metrics, earlier = 0, 0, Metrics(), 0.0
        show = now_and_then(self.on_progress, PROGRESS_SECONDS)
        known, rows = (self.loaded.base_scores, self.rows.fingerprint) if base else ({}, "")
        with evaluating(self.loaded.model):
            # A piece at a time, so that only its rows are read from disk.
            for start in range(0, len(self.rows), PIECE):
                for batch in self._micro_batches(start):
                    key = (rows, self.batching, start, tuple(batch.places))
                    if key in known:
                        found, seconds = known[key]
                        earlier += seconds
                    else:
                        between()
                        began = time.perf_counter()
                        found = batch_loss(self.loaded, self.method, batch)
                        known[key] = found, time.perf_counter() - began
                    metrics.add(found, batch.weight)
                    places = start + np.array(batch.places)
                    sums[places], weights[places] = found.rows, batch.row_weights
                    tokens += batch.supervised
                    done += batch.rows
                    show(done, len(self.rows))
        return sums, weights, tokens, metrics, earlier

    def _micro_batches(self, start: int) -> list[MicroBatch]:
        """Those of the piece of rows that begins at ``start``."""
        rows = [self.rows.row(i) for i in range(start, min(start + PIECE, len(self.rows)))]
        return self.method.collate(rows, self.batching)

    def record(self, loss: float) -> bool:
        """Compare with the best so far (never with the last); a loss that is not finite is never the best."""
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            self.best, self.since_best = loss, 0
            return True
        self.since_best += 1
        return False
