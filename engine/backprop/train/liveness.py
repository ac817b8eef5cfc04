"""Is anything being learned? Looked at on the first step, before hours are spent on nothing."""

from __future__ import annotations

import torch

from backprop.core.errors import TrainingError
from backprop.train.trainer import Measured


class Liveness:
    """Compares the trained weights before and after the first step that had a learning rate and a finite gradient."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._before: list[torch.Tensor] | None = self._sums()

    def _sums(self) -> list[torch.Tensor]:
        trained = [p.detach() for p in self._model.parameters() if p.requires_grad]
        return [torch.stack([p.double().sum(), p.double().abs().sum()]) for p in trained]

    def check(self, step: int, measured: Measured) -> None:
        """Look at what step ``step`` did; does nothing after the first step that counts.

        Raises:
            TrainingError: ``RUNTIME_NOTHING_IS_TRAINING``.
        """
        if self._before is None or measured.skipped or measured.learning_rate == 0:
            return
        if measured.grad_norm == 0:
            raise _dead(f"step {step} had a gradient of exactly zero")
        if all(torch.equal(old, new) for old, new in zip(self._before, self._sums(), strict=True)):
            raise _dead(f"step {step} changed no trained weight")
        self._before = None


def _dead(what: str) -> TrainingError:
    return TrainingError(
        f"nothing is training: {what}",
        hint="look at the trained tokens of a row with `backprop validate`, and at --lr and --target-modules",
        code="RUNTIME_NOTHING_IS_TRAINING",
    )
