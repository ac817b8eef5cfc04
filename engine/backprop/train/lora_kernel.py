"""The same LoRA layers with fewer passes over memory.

PEFT computes ``base(x) + scaling * B(A(x))`` as five operations and lets autograd add up the two gradients of ``x``.
On a CPU such operations wait for memory. Here both additions are part of a matrix
product. Weights, names and files stay PEFT's; the numbers are the same up to rounding.

For DoRA (https://arxiv.org/abs/2402.09353) PEFT makes ``B A`` as large as the weight in every pass, to measure the
lengths of the sum's rows, and keeps both parts of the result. Here the lengths come from their squares, in products no
wider than the rank, and one result is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from backprop.train.four_bit import hidden

with hidden():
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora.variants import DoraLinearVariant


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


class _Directed(torch.autograd.Function):
    """``scale (x W^T + scaling (x A^T) B^T) + bias`` for a frozen W: as ``_Adapted``, and scale is [out], float32."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: Any, scaling: float) -> torch.Tensor:  # noqa: PLR0917
        down = x @ a.t()
        whole = functional.linear(x, weight).addmm_(down, b.t(), alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, scale, down, whole)
        ctx.scaling = scaling
        # The scale is near 1: it is rounded after it was multiplied with.
        made = whole * scale
        return (made if bias is None else made.add_(bias)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, scale, down, whole = ctx.saved_tensors
        to_scale = (gradient.float() * whole).sum(0)
        gradient, scaling = (gradient * scale).to(x.dtype), ctx.scaling
        inner = (gradient @ b) * scaling
        to_x = (gradient @ weight).addmm_(inner, a) if ctx.needs_input_grad[0] else None
        return to_x, None, None, inner.t() @ x, (gradient.t() @ down) * scaling, to_scale, None


@torch.no_grad()
def row_lengths(
    weight: torch.Tensor, squares: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Lengths of the rows of ``W + scaling B A`` ([out], in W's type as PEFT's are), without that sum.

    Args:
        squares: of the lengths of W's own rows ([out], float32).
        a, b: in float32.
    """
    mixed = 2 * scaling * (weight @ a.to(weight.dtype).t()).float() + scaling**2 * (b @ (a @ a.t()))
    return (squares + (mixed * b).sum(1)).sqrt().to(weight.dtype)


def fuse(model: torch.nn.Module) -> int:
    """Let the LoRA and DoRA layers of ``model`` compute in the shorter way while they train; how many there are.

    Layers of another kind (DoRA with dropout, quantised, with a bias in the adapter) and every other use of a layer
    (disabled or merged adapters, inference) stay as they are.
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
        and (not module.lora_variant or _is_dora(module, adapters[0]))
        and module.lora_A[adapters[0]].bias is None
        and module.lora_B[adapters[0]].bias is None
    )


def _is_dora(module: Any, name: str) -> bool:
    return type(module.lora_variant[name]) is DoraLinearVariant and not _drops(module.lora_dropout[name])


def _drops(dropout: torch.nn.Module) -> bool:
    return isinstance(dropout, torch.nn.Dropout) and dropout.p > 0


def _shorter(module: Any, plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    (name,) = module.lora_A
    base = module.get_base_layer()
    dropout = module.lora_dropout[name]
    down, up = module.lora_A[name], module.lora_B[name]
    lengths = module.lora_magnitude_vector[name] if module.lora_variant else None
    squares = None if lengths is None else torch.linalg.vector_norm(base.weight.detach().float(), dim=1).square()

    def forward(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if args or options or module.disable_adapters or module.merged or not torch.is_grad_enabled():
            return plain(x, *args, **options)
        kind = base.weight.dtype
        a, b = down.weight.to(kind), up.weight.to(kind)
        scaling = module.scaling[name]
        flat = x.flatten(0, -2).to(kind)
        # The precision is that of the frozen weights: what autocast would choose, without its casts in between.
        with torch.autocast(x.device.type, enabled=False):
            if squares is not None:
                scale = lengths.weight / row_lengths(base.weight, squares, down.weight, up.weight, scaling)
                made = _Directed.apply(flat, base.weight, base.bias, a, b, scale, scaling)
            elif _drops(dropout):
                outer = functional.linear(flat, base.weight, base.bias)
                made = torch.addmm(outer, functional.linear(dropout(flat), a), b.t(), alpha=scaling)
            else:
                made = _Adapted.apply(flat, base.weight, base.bias, a, b, scaling)
        whole: torch.Tensor = made.unflatten(0, x.shape[:-1])
        return whole

    return forward
