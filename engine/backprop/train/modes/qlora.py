"""QLoRA: LoRA on frozen weights in 4 bits (https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backprop.train.modes.lora import LoRA


class QLoRA(LoRA):
    """As ``LoRA``, adapters in float32 too; ``train.four_bit`` has the rest."""

    def load(self, base: Callable[..., Any]) -> Any:
        return super().load(lambda: base(nf4=True))


MODE = QLoRA
