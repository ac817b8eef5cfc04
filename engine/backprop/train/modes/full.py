"""Full fine-tuning: every weight of the language model is trained, in float32 under autocast or in bf16.

Weights in bf16 are for where float32 does not fit: ``train.optimizers`` has how they take updates that are too small
for their type.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from backprop.core.errors import TrainingError
from backprop.core.settings import RunConfig
from backprop.train.checkpoint import trained_parameters


class Full:
    """Tied weights are one, and stay tied; there is no other model left that could answer as the base.

    Args:
        config: as resolved.
        base_name: as for every mode; a whole model needs no base.
    """

    def __init__(self, config: RunConfig, base_name: str) -> None:
        self._dtype = getattr(torch, config.weights_dtype or "float32")
        self.targets: list[str] = []
        self.notes: list[str] = []

    def load(self, base: Callable[..., Any]) -> Any:
        model = base(dtype=self._dtype)
        for weight in model.parameters():
            weight.requires_grad_(weight.is_floating_point())
        return model

    def trainable(self, model: Any) -> dict[str, torch.nn.Parameter]:
        found = trained_parameters(model)
        left = [name for name, each in model.named_parameters() if each.is_floating_point() and name not in found]
        kinds = {str(each.dtype) for each in found.values()}
        if left or kinds != {str(self._dtype)}:
            raise TrainingError(
                f"the weights in memory are not what was asked for: {len(left)} are not trained, in {kinds}",
                hint="this is a defect; the versions of torch and transformers are in `backprop info`",
            )
        return found

    def save(self, model: Any, target: Path) -> None:
        model.save_pretrained(target)

    def base_answers(self, model: Any) -> AbstractContextManager[Any]:
        return nullcontext()  # asked before the first step alone, when they still are the base's


MODE = Full
