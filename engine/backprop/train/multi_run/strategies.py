"""Ways to merge a run's adapter with what was merged before, beside SLAO (``slao``): linear, TIES and DARE.

They take A and B each by itself, value by value. That presumes factors of one trajectory, so runs go on from the
adapter of the run before. Every function returns new tensors; the others stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from backprop.core.errors import InvalidSettingError, SLAOMergeError
from backprop.core.settings import MultiConfig
from backprop.train.multi_run import slao
from backprop.train.multi_run.slao import Adapter, State, Weights


def merge(state: State | None, tuned: Adapter, run_id: str, multi: MultiConfig, seed: int) -> State:
    """The state after run ``run_id``, merged in the mode that ``multi`` names.

    Args:
        seed: of what DARE draws.

    Raises:
        SLAOMergeError: as ``slao.merge``.
    """
    new = slao.merge(state, tuned, run_id)
    if state is None or multi.merge_mode == "slao":
        return new
    random = torch.Generator().manual_seed(seed)

    def mix(old: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
        match multi.merge_mode:
            case "ties":
                return ties(old, now, multi.merge_drop)
            case "dare":
                return dare(old, now, multi.merge_drop, random)
        weight = slao.step_size(new.count) if multi.merge_weight is None else multi.merge_weight
        return linear(old, now, weight)

    a, b = (_each(mix, old, now) for old, now in zip(state.result, new.tuned, strict=True))
    return State(new.count, new.tuned, b, new.runs, a)


def start(state: State, mode: str) -> Adapter:
    """The adapter that the next run starts from: SLAO's, or the last run's own."""
    return state.start() if mode == "slao" else state.tuned


def linear(old: torch.Tensor, new: torch.Tensor, weight: float) -> torch.Tensor:
    """From ``old`` (weight 0) to ``new`` (1)."""
    return torch.lerp(old.double(), new.double(), weight).to(new.dtype)


def ties(old: torch.Tensor, new: torch.Tensor, drop: float) -> torch.Tensor:
    """Of both the largest values alone; where they disagree about the sign, those on the side of their sum; their mean
    (Yadav et al. 2023, arXiv:2306.01708). Where the sum is 0, or neither has a value left, it is 0.

    Args:
        drop: share of each one's smallest values that count as 0.
    """
    both = torch.stack([_largest(each.double(), drop) for each in (old, new)])
    side = both.sum(dim=0).sign()
    agreeing = (both.sign() == side) & (side != 0)
    mean = (both * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
    return mean.to(new.dtype)


def dare(old: torch.Tensor, new: torch.Tensor, drop: float, random: torch.Generator) -> torch.Tensor:
    """``old`` and the change to ``new``, of which the share ``drop`` is left out by chance and the rest made larger by
    as much (Yu et al. 2024, arXiv:2311.03099)."""
    _require_share(drop)
    kept = torch.rand(new.shape, generator=random) >= drop
    return (old.double() + (new.double() - old.double()) * kept / (1 - drop)).to(new.dtype)


def _largest(values: torch.Tensor, drop: float) -> torch.Tensor:
    """``values`` without the smallest ones by size, of equal ones the first."""
    _require_share(drop)
    flat = values.flatten().clone()
    flat[flat.abs().argsort(stable=True)[: int(drop * flat.numel())]] = 0.0
    return flat.view_as(values)


def _require_share(drop: float) -> None:
    if not 0 <= drop < 1:
        raise InvalidSettingError(
            f"merge_drop: a share from 0 to below 1 is needed, not {drop}", details={"field": "merge_drop"}
        )


def _each(mix: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], old: Weights, new: Weights) -> Weights:
    return {name: mix(old[name], new[name]) for name in sorted(new)}  # in one order, whatever is drawn by chance


def moved(before: Adapter | None, after: Adapter) -> float | None:
    """How far the merged B moved, as a share of its length afterwards; ``None`` of the first merge."""
    if before is None:
        return None
    way = sum(float((after.b[name].double() - before.b[name].double()).square().sum()) for name in after.b)
    length = sum(float(b.double().square().sum()) for b in after.b.values())
    return (way / length) ** 0.5 if length else None


def adapter_of(weights: Weights) -> Adapter:
    """The factors among a model's trained parameters, or those of a checkpoint, by layer.

    Raises:
        SLAOMergeError: something else is trained too: a vector of lengths, a bias, an embedding, a convolution.
    """
    found: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    for name, weight in weights.items():
        layer, _, factor = name.partition(".lora_")
        if factor not in _FACTORS or weight.ndim != 2:
            raise SLAOMergeError(
                f"{name} is trained beside the factors of LoRA, and cannot be merged",
                hint="train adapters on linear layers alone",
            )
        found[_FACTORS.index(factor)][layer] = weight.detach().cpu()
    return Adapter(*found)


def parameters_of(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The other way round: by the names of the model's parameters."""
    pairs = zip(_FACTORS, adapter, strict=True)
    return {f"{layer}.lora_{factor}": weight for factor, of in pairs for layer, weight in of.items()}


_FACTORS = ("A.default.weight", "B.default.weight")
