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
            (``Traits``). Otherwise the model's own forward makes the logits, scaling and capping included.
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


def _by_piece(model: nn.Module, batch: MicroBatch, plain_head: bool, reduction: str) -> list[torch.Tensor]:
    """Cross-entropy of the supervised tokens, in pieces of as many as may have logits at once."""
    if (own := getattr(model, "losses", None)) is not None:
        return [own(batch, reduction)]
    base = base_model(model)
    if not plain_head:
        logits = base(**_inputs(batch)).logits.flatten(0, 1)[batch.predict_at]
        return [_cross_entropy(logits, batch.targets, reduction)]
    head, parts = _pieces(base, batch)
    if len(parts) == 1:
        return [_head_and_loss(head, *parts[0], reduction)]
    # Recomputed in the backward pass: the logits of all pieces together are what must not exist.
    return [checkpoint(_head_and_loss, head, *part, reduction, use_reentrant=False) for part in parts]


@torch.no_grad()
def row_losses(model: nn.Module, batch: MicroBatch, *, plain_head: bool) -> npt.NDArray[np.float64]:
    """Cross-entropy summed over the supervised tokens of each row of a micro-batch ([rows]), not to be trained.

    Arguments as in ``summed_loss``.
    """
    if not batch.supervised:
        return np.zeros(batch.rows)
    losses = torch.cat(_by_piece(model, batch, plain_head, "none")).double().cpu()
    return np.array([float(part.sum()) for part in losses.split(batch.counts)])


def _inputs(batch: MicroBatch) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if batch.attention_mask is not None:
        inputs["attention_mask"] = batch.attention_mask
    return inputs


def _pieces(base: Any, batch: MicroBatch) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The head, and the hidden states that predict a supervised token ([some, width]) with these tokens ([some]).

    In pieces of as many positions as may have logits at once.
    """
    head = base.get_output_embeddings()
    decoder = getattr(base, base.base_model_prefix)
    chosen = decoder(**_inputs(batch)).last_hidden_state.flatten(0, 1)[batch.predict_at]
    size = max(1, PIECE_BYTES // (4 * head.weight.shape[0]))
    return head, list(zip(chosen.split(size), batch.targets.split(size), strict=True))


def _head_and_loss(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    return _cross_entropy(head(hidden), targets, reduction)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction=reduction)


def base_model(model: Any) -> Any:
    """The language model itself, with adapters in its layers but without PEFT's wrapping."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Traits(NamedTuple):
    """What a model's forward pass is like (``traits_of``)."""

    plain_head: bool
    """Logits are the head applied to the decoder's output and nothing else; architectures that scale or cap them, as
    Gemma 2, Granite and Cohere, say no."""
    keeps_rows_apart: bool
    """Rows that are packed together get the loss that they get alone; attention that ignores where positions start
    again, and layers that carry a state along the sequence, say no."""
    sees_what_follows: bool
    """The logits of a position depend on later tokens."""


@torch.no_grad()
def traits_of(model: nn.Module) -> Traits:
    """Try a model whose dropout is off on two short rows: packed in one pass; in another the second of them alone,
    beside itself with another last token."""
    base = base_model(model)
    size, device = base.get_input_embeddings().weight.shape[0], next(base.parameters()).device
    ids = torch.randint(0, size, (40,), generator=torch.Generator().manual_seed(0)).numpy().astype(np.int32)
    other, mask = ids[20:].copy(), np.ones(20, dtype=np.bool_)
    other[-1] = (other[-1] + 1) % size
    packed = pack([(ids[:20], mask), (ids[20:], mask)]).to(device)
    together = base(**_inputs(packed)).logits[0, 20:].float()
    pair = torch.from_numpy(np.stack([ids[20:], other]).astype(np.int64)).to(device)
    logits, hidden = _with_hidden(base, pair)
    ours = None if hidden is None else base.get_output_embeddings()(hidden).float()
    exact, (alone, changed) = logits.dtype == torch.float32, logits.float()
    return Traits(
        plain_head=ours is not None and ours.shape == logits.shape and _difference(ours, logits.float()) < 1e-5,
        keeps_rows_apart=_difference(together, alone) < (1e-3 if exact else 2e-2),
        sees_what_follows=_difference(alone[:-1], changed[:-1]) > (1e-4 if exact else 1e-2),
    )


def _with_hidden(base: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The model's own logits, and what its decoder answers to ``ids`` alone, ``None`` where it cannot be asked so.

    That is seen in the same pass where the model itself asks for nothing else.
    """
    seen = []

    def look(_: nn.Module, unnamed: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
        if [id(each) for each in (*unnamed, *named.values()) if isinstance(each, torch.Tensor)] == [id(ids)]:
            seen.append(made)

    decoder = getattr(base, getattr(base, "base_model_prefix", ""), base)
    watch = decoder.register_forward_hook(look, with_kwargs=True)
    try:
        logits = base(input_ids=ids, use_cache=False).logits
    finally:
        watch.remove()
    try:
        made = seen[0] if len(seen) == 1 else decoder(input_ids=ids, use_cache=False)
        return logits, made.last_hidden_state
    except (AttributeError, TypeError):
        return logits, None


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Mean absolute difference in units of the logits' spread."""
    return float((ours - theirs).abs().mean() / theirs.std().clamp(min=1e-6))
