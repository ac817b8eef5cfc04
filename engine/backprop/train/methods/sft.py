"""Supervised fine-tuning: cross-entropy of the supervised tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backprop.train.loss import Loss, row_losses, summed_loss
from backprop.train.model import Loaded
from backprop.train.packing import Batching, MicroBatch, Row


class SFT:
    """Rows are conversations or texts with a loss mask; the weight of a micro-batch is its supervised tokens."""

    notes: Sequence[str] = ()

    def __init__(self, *_: object) -> None:
        """Neither configuration nor rows decide about anything."""

    def collate(self, rows: Sequence[Row], batching: Batching) -> list[MicroBatch]:
        groups = batching.groups([len(ids) for ids, _ in rows])
        return [batching.join([rows[place] for place in group], group) for group in groups]

    def loss(self, loaded: Loaded, batch: MicroBatch) -> Loss:
        if torch.is_grad_enabled():
            return Loss(summed_loss(loaded.model, batch, plain_head=loaded.traits.plain_head))
        rows = row_losses(loaded.model, batch, plain_head=loaded.traits.plain_head)
        return Loss(torch.tensor(rows.sum()), rows=rows)


METHOD = SFT
