"""Kahneman-Tversky optimisation (https://arxiv.org/abs/2402.01306): answers judged one by one, good or bad.

An answer's reward is how much likelier than to the untouched model it became. It is held against the point from which
gains and losses are counted: the divergence KL(trained ‖ untouched), estimated as in the paper from prompts with the
answers of other rows. Ours is the mean over the whole step (of held-out rows, over those that are read at once), each
row with one fixed other answer: no spread over micro-batches changes it, and a resumed run finds it again. Nothing is
learned through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backprop.core.settings import RunConfig
from backprop.train.dataset import Referenced, Subset
from backprop.train.loss import Loss, sequence_logps
from backprop.train.model import Loaded, evaluating
from backprop.train.packing import Batching, MicroBatch, RowBatch

MOST = 10.0
"""The weight of the rarer kind at most."""


def class_weights(good: int, bad: int) -> tuple[float, float]:
    """What a good row and a bad row count, so that all good ones count 1 to 4/3 times as much as all bad ones.

    The range is the paper's (section 4.2). Where one kind is missing nothing can be balanced.
    """
    if not good or not bad or 3 * bad <= 3 * good <= 4 * bad:
        return 1.0, 1.0
    return (min(MOST, bad / good), 1.0) if good < bad else (1.0, min(MOST, 3 * good / (4 * bad)))


class Divergence:
    """The point of reference of all rows that are collated together; computed when the first loss asks for it."""

    def __init__(self) -> None:
        self.others: list[tuple[MicroBatch, torch.Tensor]] = []
        """Prompts with other rows' answers, and the untouched model's log-probabilities of these."""
        self._value: torch.Tensor | None = None

    @torch.no_grad()
    def value(self, loaded: Loaded) -> torch.Tensor:
        """Mean log-ratio over ``others``, at least 0 (a float64 scalar); dropout is off meanwhile."""
        if self._value is None:
            model, device, plain = loaded.model, loaded.device, loaded.traits.plain_head
            with evaluating(model):
                ratios = [
                    sequence_logps(model, batch.to(device), plain_head=plain) - reference.to(device)
                    for batch, reference in self.others
                ]
            self._value = torch.cat(ratios).mean().clamp(min=0)
        return self._value


@dataclass
class JudgedBatch(RowBatch):
    """A sequence for each row, which weighs one whatever it counts: as in the paper that is not divided out."""

    reference: torch.Tensor
    """The untouched model's log-probabilities ([rows], float64)."""
    good: torch.Tensor
    """The labels ([rows], bool)."""
    divergence: Divergence


class KTO:
    """Rows are ``Judged`` within ``Referenced``."""

    def __init__(self, config: RunConfig, rows: Subset) -> None:
        self._beta = config.kto_beta
        good = int(rows.labels.sum())
        self.weights = class_weights(good, len(rows) - good)
        self.notes: Sequence[str] = ()
        if self.weights != (1.0, 1.0):
            told = f"{good} good and {len(rows) - good} bad rows: a good one counts {self.weights[0]:g} times"
            self.notes = [f"{told}, a bad one {self.weights[1]:g} times, so that both kinds are heard"]

    def collate(self, rows: Sequence[Referenced], batching: Batching) -> list[MicroBatch]:
        both = [(each.row.row, each.other) for each in rows if each.other is not None]
        good = [each.row.good for each in rows]
        divergence, batches = Divergence(), []
        for group in batching.groups([max(len(ids), len(other)) for (ids, _), (other, _) in both]):
            known = torch.from_numpy(np.stack([rows[place].reference for place in group]))
            divergence.others.append((batching.join([both[place][1] for place in group]), known[:, 1]))
            batches.append(
                JudgedBatch(
                    **vars(batching.join([both[place][0] for place in group], group)),
                    reference=known[:, 0],
                    good=torch.tensor([good[place] for place in group]),
                    divergence=divergence,
                )
            )
        return list(batches)

    def loss(self, loaded: Loaded, batch: MicroBatch) -> Loss:
        assert isinstance(batch, JudgedBatch)
        divergence = batch.divergence.value(loaded)
        ratios = sequence_logps(loaded.model, batch, plain_head=loaded.traits.plain_head) - batch.reference
        losses, gains = self.judge(ratios, batch.good, divergence)
        rewards = self._beta * ratios.detach()
        metrics = {
            "rewards/accuracies": (gains > 0).double().sum(),
            "rewards/chosen": rewards[batch.good].sum(),
            "rewards/rejected": rewards[~batch.good].sum(),
            "kl": batch.rows * divergence,
        }
        good = int(batch.good.sum())
        counts = {"rewards/chosen": good, "rewards/rejected": batch.rows - good}
        return Loss(losses.sum().float(), metrics, counts, losses.detach().double().cpu().numpy())

    def judge(
        self, ratios: torch.Tensor, good: torch.Tensor, divergence: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each row, and what it gains beside the point of reference (both as ``ratios``).

        Args:
            ratios: log-probability of each answer, less that of the untouched model ([rows], float64).
            good: which of them are ([rows], bool).
            divergence: the point of reference (a scalar).
        """
        gains = self._beta * torch.where(good, ratios - divergence, divergence - ratios)
        return torch.where(good, *self.weights) * (1 - torch.sigmoid(gains)), gains


METHOD = KTO
