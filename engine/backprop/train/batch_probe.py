"""How many rows a forward pass takes on this card, settled by measuring it before the first step.

The rows of a step stay the same, and so do loss and gradient: only how they are spread over passes is chosen. What the
estimate began with is doubled while it fits, and halved until it does.
"""

from __future__ import annotations

import gc

import torch

from backprop.hardware.estimate import state_on_card
from backprop.train.checkpoint import capture_random, restore_random, trained_parameters
from backprop.train.out_of_memory import is_out_of_memory
from backprop.train.packing import Batching, MicroBatch, Row
from backprop.train.trainer import StepLoop, batch_loss, budget_for

ROOM = 0.95
"""Share of the card that may be used: what is left is for gaps between tensors."""


class Card:
    """The memory of the card that torch works on, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def usable(self) -> int:
        """What this process may have: its own, and what is free."""
        return torch.cuda.mem_get_info(self._device)[0] + torch.cuda.memory_reserved(self._device)

    def reset(self) -> None:
        """Begin to look for a peak, with nothing kept in reserve."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """The most that was allocated since."""
        return torch.cuda.max_memory_allocated(self._device)


def card_of(device: torch.device) -> Card | None:
    """The card to measure on; ``None`` on a CPU."""
    return Card(device) if device.type == "cuda" else None


def settle(loop: StepLoop, card: Card) -> None:
    """Set ``loop.batching`` to the largest micro-batches that fit, measured at the longest row; nothing is learned.

    Where not even one row fits, that is left to the first step, which says what can be done.
    """
    longest = loop.rows.row(int(loop.rows.lengths.argmax()))
    before = capture_random()
    loop.loaded.model.train()
    batching = loop.batching
    if _fits(loop, _largest(loop, batching, longest), card):
        while (more := _doubled(loop, batching)) is not None:
            micro_batch = _largest(loop, more, longest)
            if micro_batch.tokens <= _largest(loop, batching, longest).tokens or not _fits(loop, micro_batch, card):
                break
            batching = more
    else:
        while (less := batching.halved([_largest(loop, batching, longest)])) is not None:
            batching = less
            if _fits(loop, _largest(loop, batching, longest), card):
                break
    loop.batching = batching
    restore_random(before)
    card.reset()  # the run's own peak is looked for from here


def _doubled(loop: StepLoop, batching: Batching) -> Batching | None:
    """Batching twice as large; ``None`` where a pass takes all rows of a step already."""
    size = 2 * batching.batch_size
    if size > loop.schedule.rows_per_step:
        return None
    return batching.resized(size, budget_for(loop.loaded, loop.config, loop.rows, size))


def _largest(loop: StepLoop, batching: Batching, longest: Row) -> MicroBatch:
    """The micro-batch with most tokens that rows of the longest kind make."""
    rows = [longest] * loop.schedule.rows_per_step
    return max(loop.method.collate(rows, batching), key=lambda each: each.tokens)


def _fits(loop: StepLoop, micro_batch: MicroBatch, card: Card) -> bool:
    """Whether a pass over the micro-batch leaves room for the gradients and the optimizer's state to come."""
    weights = trained_parameters(loop.loaded.model).values()
    owned = loop.sharding.most if loop.sharding else sum(weight.numel() for weight in weights)
    to_come = sum(weight.nbytes for weight in weights) + state_on_card(loop.config.optim, owned)
    card.reset()
    try:
        batch_loss(loop.loaded, loop.method, micro_batch).sum.backward()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        loop.optimizer.zero_grad()
        gc.collect()
    return card.peak() + to_come <= ROOM * card.usable()
