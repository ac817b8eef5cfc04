"""Simple preference optimisation (https://arxiv.org/abs/2405.14734): no reference, and long answers weigh no more."""

from __future__ import annotations

import torch

from backprop.train.methods.preference import Compared, Preference, at_least


class SimPO(Preference):
    """A side's reward: its mean log-probability a token, times ``simpo_beta``. Chosen is to win by ``simpo_gamma``."""

    def compare(self, logps: torch.Tensor, lengths: torch.Tensor, reference: torch.Tensor | None) -> Compared:
        rewards = self.config.simpo_beta * logps / lengths
        return Compared(at_least(rewards[:, 0] - rewards[:, 1] - self.config.simpo_gamma), rewards)


METHOD = SimPO
