"""The loss: cross-entropy of the supervised tokens, with the head evaluated at their positions only.

In chat data half of the positions or more are not supervised, and the logits of a position (one number per word of the
vocabulary) cost more memory than all its hidden states. So the decoder runs over the whole micro-batch, and the
head over the hidden states that predict a supervised token, in pieces. The value is that of the full-logit loss.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from backprop.hardware.estimate import PIECE_BYTES
from backprop.train.packing import MicroBatch, pack


class Loss(NamedTuple):
    """The loss of one micro-batch, summed over what its weight counts (a float32 scalar).

    ``metrics`` are further values by name, each summed over the same, or over as many as ``counts`` says. ``rows`` is
    the part of each row ([rows]), where no gradient is asked for.
    """

    sum: torch.Tensor
    metrics: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    rows: npt.NDArray[np.float64] | None = None


class Metrics:
    """Means of the metrics of several micro-batches, each over all that it was summed over."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor | float] = {}
        self._counts: dict[str, float] = {}

    def add(self, found: Loss, weight: int) -> None:
        """Take in those of a micro-batch of this weight."""
        for name, value in found.metrics.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
            self._counts[name] = self._counts.get(name, 0) + found.counts.get(name, weight)

    def numbers(self) -> dict[str, float]:
        """Sums and counts, which add up over processes; ``of`` makes metrics of them again."""
        sums = {f"sum {name}": float(value) for name, value in self._sums.items()}
        return sums | {f"count {name}": float(value) for name, value in self._counts.items()}

    @classmethod
    def of(cls, numbers: dict[str, float]) -> Metrics:
        """Metrics of what ``numbers`` gave, or of the sums of several."""
        made = cls()
        for key, value in numbers.items():
            kind, _, name = key.partition(" ")
            (made._sums if kind == "sum" else made._counts)[name] = value
        return made

    def means(self) -> dict[str, float]:
        """By name; of rewards on both sides also the margin between them."""
        found = {name: float(value) / self._counts[name] for name, value in self._sums.items() if self._counts[name]}
        if "rewards/chosen" in found and "rewards/rejected" in found:
            return {"rewards/margins": found["rewards/chosen"] - found["rewards/rejected"], **found}
        return found


def summed_loss(model: nn.Module, batch: MicroBatch, *, plain_head: bool) -> torch.Tensor:
    """Cross-entropy summed over the supervised tokens of a micro-batch (a float32 scalar).

    Args:
        model: a causal language model, with adapters or without.
        batch: the micro-batch, on the model's device.
        plain_head: whether logits are the head applied to the decoder's output and nothing else
            (``has_plain_head``). Otherwise the model's own forward makes the logits, scaling and capping included.
    """
    if not batch.supervised:
        return torch.zeros((), device=batch.input_ids.device, requires_grad=True)
    return torch.stack(_by_piece(model, batch, plain_head, "sum")).sum()


def sequence_logps(model: nn.Module, batch: MicroBatch, *, plain_head: bool) -> torch.Tensor:
    """Log-probability of the supervised tokens of each sequence, summed; differentiable; arguments as ``summed_loss``.

    In float64 ([sequences]): of sums of a thousand numbers differences are taken, which float32 leaves few digits of.
    """
    losses = torch.cat(_by_piece(model, batch, plain_head, "none")).double()
    return -torch.stack([each.sum() for each in losses.split(batch.counts)])


@torch.no_grad()
def token_losses(model: nn.Module, batch: MicroBatch, *, plain_head: bool) -> torch.Tensor:
    """Cross-entropy of each supervised token of a micro-batch ([supervised], float32), in the order of its targets.

    For looking at rows, not for training them; arguments as in ``summed_loss``.
    """
    return torch.cat(_by_piece(model, batch, plain_head, "none"))


def _by_piece(model: nn.Module, batch: MicroBatch, plain_head: bool, reduction: str) -> list[torch.Tensor]:
    """Cross-entropy of the supervised tokens, in pieces of as many as may have logits at once."""
    if (own := getattr(model, "losses", None)) is not None:
        return [own(batch, reduction)]
    base = base_model(model)
    if not plain_head:
        return [_cross_entropy(_own_logits(base, batch), batch.targets, reduction)]
    head, parts = _pieces(base, batch)
    if len(parts) == 1:
        return [_head_and_loss(head, *parts[0], reduction)]
    # Recomputed in the backward pass: the logits of all pieces together are what must not exist.
    return [checkpoint(_head_and_loss, head, *part, reduction, use_reentrant=False) for part in parts]


def row_losses(model: nn.Module, batch: MicroBatch, *, plain_head: bool) -> npt.NDArray[np.float64]:
    """Cross-entropy summed over the supervised tokens of each row of a micro-batch ([rows]); as ``token_losses``."""
    if not batch.supervised:
        return np.zeros(batch.rows)
    losses = token_losses(model, batch, plain_head=plain_head).double().cpu()
    return np.array([float(part.sum()) for part in losses.split(batch.counts)])


def _inputs(batch: MicroBatch) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if batch.attention_mask is not None:
        inputs["attention_mask"] = batch.attention_mask
    return inputs


def _own_logits(base: Any, batch: MicroBatch) -> torch.Tensor:
    """The model's own logits at the positions that predict a supervised token."""
    logits: torch.Tensor = base(**_inputs(batch)).logits
    return logits.flatten(0, 1)[batch.predict_at]


def _pieces(base: Any, batch: MicroBatch) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The head, and the hidden states that predict a supervised token ([some, width]) with these tokens ([some]).

    In pieces of as many positions as may have logits at once.
    """
    head = base.get_output_embeddings()
    chosen = decoder(base)(**_inputs(batch)).last_hidden_state.flatten(0, 1)[batch.predict_at]
    size = max(1, PIECE_BYTES // (4 * head.weight.shape[0]))
    return head, list(zip(chosen.split(size), batch.targets.split(size), strict=True))


def _head_and_loss(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    return _cross_entropy(head(hidden), targets, reduction)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction=reduction)


def base_model(model: Any) -> Any:
    """The language model itself, with adapters in its layers but without PEFT's wrapping."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(base: Any) -> Any:
    """The part of a causal language model below its head."""
    return getattr(base, base.base_model_prefix)


@torch.no_grad()
def has_plain_head(model: nn.Module) -> bool:
    """Whether the head applied to the decoder's output gives the model's own logits: tried on a few tokens.

    Architectures that scale or cap their logits (Gemma 2, Granite, Cohere …) answer no.
    """
    base = base_model(model)
    device = next(base.parameters()).device
    ids = _probe_ids(base, 16).to(device)
    try:
        hidden = decoder(base)(input_ids=ids, use_cache=False).last_hidden_state
        ours = base.get_output_embeddings()(hidden).float()
    except (AttributeError, TypeError):
        return False
    theirs = base(input_ids=ids, use_cache=False).logits.float()
    return ours.shape == theirs.shape and _difference(ours, theirs) < 1e-5


@torch.no_grad()
def keeps_rows_apart(model: nn.Module) -> bool:
    """Whether rows that are packed together get the loss that they get alone: tried on two short rows.

    Attention that ignores where positions start again, and layers that carry a state along the sequence, answer no.
    """
    base = base_model(model)
    device = next(base.parameters()).device
    ids = _probe_ids(base, 40)[0].numpy().astype(np.int32)
    mask = np.ones(20, dtype=np.bool_)
    rows = [(ids[:20], mask), (ids[20:], mask)]
    packed = base(**_inputs(pack(rows).to(device))).logits[0, 20:]
    alone = base(**_inputs(pack(rows[1:]).to(device))).logits[0]
    rounding = 2e-2 if packed.dtype != torch.float32 else 1e-3
    return _difference(packed.float(), alone.float()) < rounding


@torch.no_grad()
def sees_what_follows(model: nn.Module) -> bool:
    """Whether the logits of a position depend on later tokens: tried on two rows that differ in their last token."""
    base = base_model(model)
    size = base.get_input_embeddings().weight.shape[0]
    ids = _probe_ids(base, 20).to(next(base.parameters()).device).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % size
    one, other = base(input_ids=ids, use_cache=False).logits[:, :-1]
    rounding = 1e-2 if one.dtype != torch.float32 else 1e-4
    return _difference(one.float(), other.float()) > rounding


def _probe_ids(base: Any, count: int) -> torch.Tensor:
    size = base.get_input_embeddings().weight.shape[0]
    return torch.randint(0, size, (1, count), generator=torch.Generator().manual_seed(0))


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Mean absolute difference in units of the logits' spread."""
    return float((ours - theirs).abs().mean() / theirs.std().clamp(min=1e-6))
