"""How adapters begin: with the main directions of the weights (PiSSA), or with what 4 bits lose of them (LoftQ).

PiSSA (https://arxiv.org/abs/2404.02948) trains the r main directions of W and holds the rest. Elsewhere the rest takes
the place of W in memory, and the base model is gone. Here W stays, and the start stands beside what is trained with the
opposite sign: ``W + s (B A - B0 A0)`` is one adapter of rank 2r, whose second half gets no gradient. So its checkpoints
are exact, its file is a plain LoRA for the model that was named, and switched off it leaves that model.

LoftQ (https://arxiv.org/abs/2310.08659), one step of it: the 4-bit weights Q stay, and the adapter begins with the main
directions of W - Q.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from backprop.core.errors import InvalidSettingError
from backprop.core.models import weight_files
from backprop.train import four_bit

_OVERSAMPLED, _ROUNDS = 16, 4
"""Of the randomised decomposition (Halko et al. 2011, https://arxiv.org/abs/0909.4061)."""


def begin(model: Any, start: str) -> list[str]:
    """Put the start called ``start`` into the adapters of ``model``; what has to be said of it.

    Raises:
        InvalidSettingError: the weights before their quantisation are not to be found.
    """
    layers = {name: each for name, each in model.named_modules() if hasattr(each, "lora_A") and each.lora_A}
    if start == "pissa":
        for layer in layers.values():
            _hold_start(layer)
        rank = next(iter(layers.values())).lora_A["default"].out_features
        return [f"PiSSA: rank {rank // 2} is trained; with its start beside it the adapter has rank {rank}"]
    if start == "loftq":
        originals, lost, left = _Originals(Path(model.config._name_or_path)), 0.0, 0.0
        for name, layer in layers.items():
            before, after = _make_up(layer, originals.read(name.removeprefix("base_model.model."), layer))
            lost, left = lost + before, left + after
        return [f"LoftQ: the adapters begin with {1 - left / max(lost, 1e-30):.0%} of what 4 bits lose, in squares"]
    return []


def main_directions(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors [r, in] and [out, r] of the product of rank r nearest to ``weight`` [out, in], r as far as it goes."""
    most = min(rank + _OVERSAMPLED, *weight.shape)
    left, values, right = torch.svd_lowrank(weight, q=most, niter=_ROUNDS)
    root = values[:rank].sqrt()
    return root[:, None] * right[:, :rank].T, left[:, :rank] * root


@torch.no_grad()
def _hold_start(layer: Any) -> None:
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight, rank = layer.get_base_layer().weight.float(), down.shape[0] // 2
    a, b = _scaled(layer, main_directions(weight.T if layer.fan_in_fan_out else weight, rank))
    for first in (0, rank):
        down[first : first + len(a)] = a
        up[:, first : first + len(a)] = b if first == 0 else -b
    down.register_hook(lambda gradient: _first(gradient, rank, 0))
    up.register_hook(lambda gradient: _first(gradient, rank, 1))


def _first(gradient: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    """The gradient of the half that is trained; 0 in the other, where AdamW then changes nothing."""
    kept = torch.zeros_like(gradient)
    kept.narrow(axis, 0, rank).copy_(gradient.narrow(axis, 0, rank))
    return kept


@torch.no_grad()
def _make_up(layer: Any, original: torch.Tensor) -> tuple[float, float]:
    """Begin with what 4 bits lose of ``original``: the squares of that, and of what is still lost then."""
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    lost = original.to(down.device, torch.float32) - four_bit.dequantised(layer.get_base_layer())
    a, b = main_directions(lost, down.shape[0])
    left = lost - b @ a
    a, b = _scaled(layer, (a, b))
    down[: len(a)], up[:, : len(a)] = a, b
    return float(lost.square().sum()), float(left.square().sum())


def _scaled(layer: Any, factors: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """So that they make their product once the layer has multiplied it with its scale."""
    root = layer.scaling["default"] ** 0.5
    return factors[0] / root, factors[1] / root


class _Originals:
    """The weights of a model's folder as they are stored, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in weight_files(folder):
            with safe_open(path, "pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def read(self, module: str, layer: Any) -> torch.Tensor:
        """The weight [out, in] of the layer called ``module``."""
        path = self._files.get(f"{module}.weight")
        if path is None:
            raise InvalidSettingError(
                f"init_lora_weights loftq: the model's files have {module}.weight under another name",
                hint="--init-lora-weights default begins adapters as usual",
                details={"field": "init_lora_weights"},
            )
        with safe_open(path, "pt") as file:
            weight: torch.Tensor = file.get_tensor(f"{module}.weight")
        return weight.T if weight.shape != (layer.out_features, layer.in_features) else weight
