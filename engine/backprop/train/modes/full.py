"""Full fine-tuning: every weight of the language model is trained, in float32 under autocast or in bf16.

Weights in bf16 are for where float32 does not fit: ``train.optimizers`` has how they take updates that are too small
for their type.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
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
        self._fp8 = config.fp8
        self._dtype = getattr(torch, config.weights_dtype or "float32")
        self.targets: list[str] = []
        self.notes: list[str] = []

    def load(self, base: Callable[..., Any]) -> Any:
        model = base(dtype=self._dtype)
        for weight in model.parameters():
            weight.requires_grad_(weight.is_floating_point())
        if self._fp8:
            self.notes = [f"{multiply_in_8_bits(model)} linear layers multiply in 8-bit floats"]
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


def multiply_in_8_bits(model: Any, *, emulate: bool = False) -> int:
    """Have the linear layers below the head multiply in 8-bit floats (torchao's ``convert_to_float8_training``), and
    count them. Weights keep their type and names, and their gradients are computed in it.

    Each token is scaled by itself, so that rows that share a pass do not reach each other.

    Args:
        emulate: on a device without such numbers, for tests.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    head, chosen = model.get_output_embeddings(), []

    def fits(layer: torch.nn.Linear, name: str) -> bool:
        if layer is head or layer.in_features % 16 or layer.out_features % 16:
            return False
        chosen.append(name)
        return True

    recipe = replace(Float8LinearConfig.from_recipe_name("rowwise_with_gw_hp"), emulate=emulate)
    convert_to_float8_training(model, config=recipe, module_filter_fn=fits)
    return len(chosen)


MODE = Full
