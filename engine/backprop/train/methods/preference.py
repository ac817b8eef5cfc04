"""What dpo, orpo and simpo share: pairs of a chosen and a rejected answer, compared by their log-probabilities.

The loss is a mean over pairs, so the weight of a micro-batch is its pairs; both sides of one are in the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from backprop.core.settings import RunConfig
from backprop.train.dataset import Referenced
from backprop.train.loss import Loss, sequence_logps
from backprop.train.model import Loaded
from backprop.train.packing import Batching, MicroBatch, Row, RowBatch


@dataclass
class PairBatch(RowBatch):
    """Sequences are chosen, rejected, chosen, rejected …; ``rows`` counts pairs."""

    reference: torch.Tensor | None
    """The untouched model's log-probabilities ([pairs, 2], float64), where the method compares with them."""


class Compared(NamedTuple):
    """Of each pair the loss ([pairs]), the rewards of both sides ([pairs, 2]), and further metrics ([pairs])."""

    losses: torch.Tensor
    rewards: torch.Tensor
    metrics: dict[str, torch.Tensor] = {}


class Preference:
    """Rows are ``Pair``s, within ``Referenced`` where the method has a reference."""

    notes: Sequence[str] = ()

    def __init__(self, config: RunConfig, *_: object) -> None:
        self.config = config

    def collate(self, rows: Sequence[Any], batching: Batching) -> list[MicroBatch]:
        pairs = [row.row if isinstance(row, Referenced) else row for row in rows]
        groups = batching.groups([len(pair.chosen[0]) + len(pair.rejected[0]) for pair in pairs])
        batches: list[MicroBatch] = []
        for group in groups:
            sides: list[Row] = [side for place in group for side in (pairs[place].chosen, pairs[place].rejected)]
            known = [row.reference for row in (rows[place] for place in group) if isinstance(row, Referenced)]
            reference = torch.from_numpy(np.stack(known)) if known else None
            batches.append(PairBatch(**{**vars(batching.join(sides, group)), "rows": len(group)}, reference=reference))
        return batches

    def loss(self, loaded: Loaded, batch: MicroBatch) -> Loss:
        assert isinstance(batch, PairBatch)
        logps = sequence_logps(loaded.model, batch, plain_head=loaded.traits.plain_head).view(-1, 2)
        lengths = torch.tensor(batch.counts, device=logps.device).view(-1, 2)
        losses, rewards, metrics = self.compare(logps, lengths, batch.reference)
        rewards = rewards.detach()
        found = {
            "rewards/accuracies": (rewards[:, 0] > rewards[:, 1]).double(),
            "rewards/chosen": rewards[:, 0],
            "rewards/rejected": rewards[:, 1],
            **metrics,
        }
        rows = losses.detach().double().cpu().numpy()
        return Loss(losses.sum().float(), {name: value.detach().sum() for name, value in found.items()}, rows=rows)

    def compare(self, logps: torch.Tensor, lengths: torch.Tensor, reference: torch.Tensor | None) -> Compared:
        """What each pair comes to.

        Args:
            logps: log-probability of each side, summed over its supervised tokens ([pairs, 2], float64).
            lengths: supervised tokens of each side ([pairs, 2]).
            reference: ``logps`` of the untouched model.
        """
        raise NotImplementedError


def at_least(margins: torch.Tensor) -> torch.Tensor:
    """The loss of margins: minus the log-probability, by Bradley and Terry, that the chosen side wins ([pairs])."""
    return -functional.logsigmoid(margins)
