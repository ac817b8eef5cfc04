"""The same LoRA layers with fewer passes over memory.

PEFT computes ``base(x) + scaling * B(A(x))`` as five operations and lets autograd add up the two gradients of ``x``.
On a CPU such operations wait for memory. Here both additions are part of a matrix
product. Weights, names and files stay PEFT's; the numbers are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from backprop.train.four_bit import hidden

with hidden():
    from peft.tuners.lora import Linear as LoraLinear


class _Adapted(torch.autograd.Function):
    """``x W^T + bias + scaling (x A^T) B^T`` for a frozen W: x is [rows, in], A [r, in], B [out, r]."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> torch.Tensor:  # noqa: PLR0917
        down = x @ a.t()
        ctx.save_for_backward(x, weight, a, b, down)
        ctx.scaling = scaling
        return functional.linear(x, weight, bias).addmm_(down, b.t(), alpha=scaling)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, down = ctx.saved_tensors
        scaling = ctx.scaling
        inner = (gradient @ b) * scaling
        to_x = (gradient @ weight).addmm_(inner, a) if ctx.needs_input_grad[0] else None
        return to_x, None, None, inner.t() @ x, (gradient.t() @ down) * scaling, None


def fuse(model: torch.nn.Module) -> int:
    """Let the plain LoRA layers of ``model`` compute in the shorter way while they train; how many there are.

    Layers of another kind (DoRA, quantised, with a bias in the adapter) and every other use of a layer (disabled or
    merged adapters, inference) stay as they are.
    """
    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and _is_plain(module):
            module.forward = _shorter(module, module.forward)  # type: ignore[method-assign]
            fused += 1
    return fused


def _is_plain(module: Any) -> bool:
    adapters = list(module.lora_A)
    return (
        len(adapters) == 1
        and type(module.get_base_layer()) is torch.nn.Linear
        and not module.get_base_layer().weight.requires_grad
        and not module.lora_variant
        and module.lora_A[adapters[0]].bias is None
        and module.lora_B[adapters[0]].bias is None
    )


def _shorter(module: Any, plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    (name,) = module.lora_A
    base = module.get_base_layer()
    dropout = module.lora_dropout[name]
    down, up = module.lora_A[name], module.lora_B[name]

    def forward(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if args or options or module.disable_adapters or module.merged or not torch.is_grad_enabled():
            return plain(x, *args, **options)
        kind = base.weight.dtype
        a, b = down.weight.to(kind), up.weight.to(kind)
        scaling = module.scaling[name]
        flat = x.flatten(0, -2).to(kind)
        # The precision is that of the frozen weights: what autocast would choose, without its casts in between.
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(dropout, torch.nn.Dropout) and dropout.p > 0:
                outer = functional.linear(flat, base.weight, base.bias)
                made = torch.addmm(outer, functional.linear(dropout(flat), a), b.t(), alpha=scaling)
            else:
                made = _Adapted.apply(flat, base.weight, base.bias, a, b, scaling)
        whole: torch.Tensor = made.unflatten(0, x.shape[:-1])
        return whole

    return forward
