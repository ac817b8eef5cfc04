"""The optimizers of a run: AdamW in each of its forms, and how weights in bf16 take an update.

A bf16 number has 8 bits: an update of less than about a 256th of a weight is lost when it is rounded to the nearest,
and training stalls. So an update is computed in float32, and rounded up or down by chance, with the probability that
makes the mean right ("Revisiting BFloat16 Training", Zamirai et al. 2020, https://arxiv.org/abs/2010.06192). That takes
no memory, and the chance is a function of step and weight alone: a resumed run rounds as the undisturbed one.

``adamw_8bit`` and ``paged_adamw_8bit`` are bitsandbytes' (https://arxiv.org/abs/2110.02861).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
from torch.optim.adamw import adamw

from backprop.core.errors import InvalidSettingError, MissingDependencyError
from backprop.core.extras import install_command
from backprop.core.settings import RunConfig
from backprop.hardware.estimate import ROUNDED_AT_ONCE
from backprop.train.checkpoint import trained_parameters

Group: TypeAlias = dict[str, Any]


def require_optimizer(config: RunConfig, device: torch.device) -> None:
    """Check, before anything is loaded, that the optimizer can work here.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
        InvalidSettingError: it does not do this on a CPU.
    """
    if config.optim == "adamw":
        return
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"the optimizer {config.optim} needs bitsandbytes, which is not installed",
            hint=f"{install_command('qlora')}, or --optim adamw",
            details={"field": "optim"},
        )
    if config.optim == "paged_adamw_8bit" and device.type != "cuda":
        raise InvalidSettingError(
            "paged_adamw_8bit pages its state between a GPU and the main memory, and this run is on a CPU",
            hint="--optim adamw_8bit, or adamw",
            details={"field": "optim"},
        )


def optimizer_for(model: torch.nn.Module, config: RunConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW over the trainable weights; vectors (biases, norms) are in a group of their own and not decayed."""
    weights = trained_parameters(model).values()
    groups: list[Group] = [
        {"params": [each for each in weights if each.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [each for each in weights if each.ndim < 2], "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    assert rate is not None  # the rule has chosen one
    options: dict[str, Any] = {"lr": rate, "betas": (0.9, 0.999), "eps": 1e-8}
    if config.optim != "adamw":
        paged = config.optim == "paged_adamw_8bit"
        narrow: torch.optim.Optimizer = _eight_bits()(groups, is_paged=paged, **options)
        return narrow
    if any(each.dtype == torch.bfloat16 for each in weights):
        return RoundingAdamW(groups, **options)
    return torch.optim.AdamW(groups, fused=True if device.type == "cuda" else None, **options)


def widened(
    weight: torch.Tensor, step: int, number: int, state: dict[str, Any]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]:
    """The weight, its gradient ([piece], float32) and its state, piece by piece.

    What is done to a piece is rounded into the weight afterwards; the state's tensors are views.

    Args:
        step, number: of the update, and of the weight among the run's: they decide the chances.
    """
    chances = torch.Generator(weight.device).manual_seed(step << 20 | number)
    flat, gradient = weight.view(-1), weight.grad.reshape(-1)  # type: ignore[union-attr]
    for start in range(0, flat.numel(), ROUNDED_AT_ONCE):
        piece, blocks = slice(start, start + ROUNDED_AT_ONCE), slice(start // 256, (start + ROUNDED_AT_ONCE) // 256)
        views = dict(state)
        for name, value in state.items():
            if name.startswith("absmax"):
                views[name] = value[blocks]
            elif name.startswith(("state", "exp_avg")):
                views[name] = value.view(-1)[piece]
                views[name].is_paged = getattr(value, "is_paged", False)
        wide = flat[piece].float()
        yield wide, gradient[piece].float(), views
        round_by_chance(wide, flat[piece], chances)


def round_by_chance(wide: torch.Tensor, target: torch.Tensor, chances: torch.Generator) -> None:
    """Put float32 numbers into bf16 ones: to one of the two neighbours, the nearer the likelier."""
    bits = wide.view(torch.int32)
    bits += torch.randint(2**16, bits.shape, generator=chances, dtype=torch.int32, device=bits.device)
    bits &= -(2**16)
    target.copy_(wide)


class RoundingAdamW(torch.optim.Optimizer):
    """AdamW (https://arxiv.org/abs/1711.05101) on bf16 weights: torch's arithmetic and moments in float32."""

    def __init__(self, params: list[Group], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        numbered = enumerate((group, weight) for group in self.param_groups for weight in group["params"])
        for number, (group, weight) in numbered:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros(())
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros_like(weight, dtype=torch.float32)
            taken = state["step"]
            for wide, gradient, views in widened(weight, int(taken) + 1, number, state):
                adamw(
                    *([wide], [gradient], [views["exp_avg"]], [views["exp_avg_sq"]], [], [taken.clone()]),
                    foreach=False,
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
            taken += 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a state back; torch would give the moments the weights' type."""
        super().load_state_dict(state_dict)
        for number, weight in enumerate(weight for group in self.param_groups for weight in group["params"]):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[weight][name] = value.to("cpu" if name == "step" else weight.device, copy=True)


def _eight_bits() -> Any:
    """bitsandbytes' AdamW whose moments have 8 bits, for weights in float32 and in bf16."""
    optim = import_module("bitsandbytes.optim")

    class EightBitAdamW(optim.AdamW8bit):  # type: ignore[misc, name-defined]
        """With ``is_paged`` the moments may be moved to the main memory, also after a resume."""

        def update_step(self, group: Group, weight: torch.Tensor, gindex: int, pindex: int) -> None:
            if weight.dtype != torch.bfloat16:
                super().update_step(group, weight, gindex, pindex)
                return
            state, number = self.state[weight], pindex + sum(len(each["params"]) for each in self.param_groups[:gindex])
            for wide, gradient, views in widened(weight, state["step"] + 1, number, state):
                wide.grad = gradient
                self.state[wide] = views
                super().update_step(group, wide, gindex, pindex)
                del self.state[wide]
            state["step"] += 1

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            super().load_state_dict(state_dict, move_to_device)
            for gindex, group in enumerate(self.param_groups):
                for pindex, weight in enumerate(group["params"] if self.is_paged else ()):
                    if saved := self.state.pop(weight, None):
                        self.init_state(group, weight, gindex, pindex)
                        for name, value in self.state[weight].items():
                            self.state[weight][name] = value.copy_(saved[name]) if name[:5] == "state" else saved[name]

    EightBitAdamW.__module__ = __name__
    return EightBitAdamW
