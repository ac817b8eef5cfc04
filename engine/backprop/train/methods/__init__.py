"""Training methods: what is computed of a micro-batch. The step loop is the same for all of them.

A method is one file here and one line of ``core.methods.METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Any, Protocol

import torch

from backprop.core.settings import RunConfig
from backprop.train.dataset import Subset
from backprop.train.loss import Loss
from backprop.train.packing import Batching, MicroBatch


class Method(Protocol):
    """What one training method knows; ``trainer.StepLoop`` does the rest."""

    notes: Sequence[str]
    """What has to be said about choices that the rows made."""

    def collate(self, rows: Sequence[Any], batching: Batching) -> list[MicroBatch]:
        """The micro-batches of ``rows``. Their weights are known before the first of them is computed."""
        ...

    def loss(self, model: torch.nn.Module, batch: MicroBatch) -> Loss:
        """The loss of a micro-batch that is on the model's device, summed and not yet divided by its weight."""
        ...


def method_named(name: str) -> Callable[[torch.nn.Module, RunConfig, Subset], Method]:
    """``METHOD`` of the module called ``name``; called with the loaded model, the configuration, the trained rows."""
    found: Callable[[torch.nn.Module, RunConfig, Subset], Method] = resolve_name(f"{__name__}.{name}:METHOD")
    return found
