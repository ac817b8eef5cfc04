"""Direct preference optimisation (https://arxiv.org/abs/2305.18290)."""

from __future__ import annotations

import torch

from backprop.train.methods.preference import Compared, Preference, at_least


class DPO(Preference):
    """A side's reward is how much likelier than to the untouched model it became, times ``dpo_beta``."""

    def compare(self, logps: torch.Tensor, lengths: torch.Tensor, reference: torch.Tensor | None) -> Compared:
        assert reference is not None
        rewards = self.config.dpo_beta * (logps - reference)
        return Compared(at_least(rewards[:, 0] - rewards[:, 1]), rewards)


METHOD = DPO
