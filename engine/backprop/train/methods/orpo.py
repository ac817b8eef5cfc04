"""Odds ratio preference optimisation (https://arxiv.org/abs/2403.07691): fine-tuning and preference in one."""

from __future__ import annotations

import torch

from backprop.train.methods.preference import Compared, Preference, at_least

_CERTAIN = -1e-7
"""A mean log-probability is taken for this at most: of a sure token the odds are infinite."""


class ORPO(Preference):
    """The chosen side is learned as by sft, and its odds are to be above the rejected side's.

    Both parts take a side's log-probability as the mean over its tokens, and the loss the mean over pairs: the paper's
    expectation, which no spread over micro-batches changes. (TRL's mean over the tokens of a micro-batch is the same
    where it holds one pair.)
    """

    def compare(self, logps: torch.Tensor, lengths: torch.Tensor, reference: torch.Tensor | None) -> Compared:
        means = logps / lengths
        likely = means.clamp(max=_CERTAIN)
        log_odds = likely - torch.log(-torch.expm1(likely))
        nll = -means[:, 0]
        losses = nll + self.config.orpo_beta * at_least(log_odds[:, 0] - log_odds[:, 1])
        return Compared(losses, self.config.orpo_beta * means, {"nll": nll})


METHOD = ORPO
