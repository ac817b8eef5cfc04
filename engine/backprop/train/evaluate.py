"""Loss on held-out rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from backprop.core.events import Evaluated
from backprop.train.dataset import Subset
from backprop.train.loss import summed_loss
from backprop.train.model import Loaded, evaluating
from backprop.train.packing import Spread

PIECE = 64
"""Rows that are read at once."""


class Evaluator:
    """Loss on held-out rows, weighted by supervised tokens, in passes as large as the training ones.

    Logits are never kept: only their loss is.
    """

    def __init__(self, loaded: Loaded, rows: Subset, spread: Spread, *, plain_head: bool) -> None:
        self._loaded = loaded
        self._rows = rows
        self.spread = spread
        self._plain_head = plain_head
        self.best: float | None = None
        self.since_best = 0
        """Evaluations since the best one."""

    def __len__(self) -> int:
        return len(self._rows)

    def halve(self) -> Spread | None:
        """Evaluate in passes half as large from now on; ``None`` where each holds one row already."""
        rows = [self._rows.row(i) for i in range(min(len(self._rows), PIECE))]
        smaller = self.spread.halved(self.spread.passes(rows))
        if smaller is not None:
            self.spread = smaller
        return smaller

    @torch.no_grad()
    def evaluate(self, step: int, between_passes: Callable[[], object]) -> Evaluated:
        """Evaluate after ``step``; dropout is off during it and the mode is put back, also after an error."""
        began = time.perf_counter()
        total, count = 0.0, 0
        device = self._loaded.device
        mixed = self._loaded.dtype == torch.bfloat16
        with evaluating(self._loaded.model):
            # A piece at a time, so that only its rows are read from disk.
            for start in range(0, len(self._rows), PIECE):
                rows = [self._rows.row(i) for i in range(start, min(start + PIECE, len(self._rows)))]
                for one in self.spread.passes(rows):
                    between_passes()
                    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
                        loss = summed_loss(self._loaded.model, one.to(device), plain_head=self._plain_head)
                    total += float(loss)
                    count += one.trained
        mean = total / count if count and math.isfinite(total) else math.nan
        best = self.record(mean)
        return Evaluated(
            step=step,
            loss=mean if math.isfinite(mean) else None,
            tokens=count,
            rows=len(self._rows),
            seconds=time.perf_counter() - began,
            best=best,
        )

    def record(self, loss: float) -> bool:
        """Compare with the best so far (never with the last); a loss that is not finite is never the best."""
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            self.best, self.since_best = loss, 0
            return True
        self.since_best += 1
        return False
