"""Supervised fine-tuning: cross-entropy of the supervised tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backprop.train.loss import Loss, has_plain_head, summed_loss
from backprop.train.model import evaluating
from backprop.train.packing import Batching, MicroBatch, Row


class SFT:
    """Rows are conversations or texts with a loss mask; the weight of a micro-batch is its supervised tokens."""

    notes: Sequence[str] = ()

    def __init__(self, model: torch.nn.Module, *_: object) -> None:
        with evaluating(model):
            self._plain_head = has_plain_head(model)

    def collate(self, rows: Sequence[Row], batching: Batching) -> list[MicroBatch]:
        groups = batching.groups([len(ids) for ids, _ in rows])
        return [batching.join([rows[place] for place in group]) for group in groups]

    def loss(self, model: torch.nn.Module, batch: MicroBatch) -> Loss:
        return Loss(summed_loss(model, batch, plain_head=self._plain_head))


METHOD = SFT
