"""Training methods: what is computed of a micro-batch. The step loop is the same for all of them.

A method is one file here and one line of ``core.methods.METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Any, Protocol

from backprop.core.settings import RunConfig
from backprop.train.dataset import Subset
from backprop.train.loss import Loss
from backprop.train.model import Loaded
from backprop.train.packing import Batching, MicroBatch


class Method(Protocol):
    """What one training method knows; ``trainer.StepLoop`` does the rest."""

    notes: Sequence[str]
    """What has to be said about choices that the rows made."""

    def collate(self, rows: Sequence[Any], batching: Batching) -> list[MicroBatch]:
        """The micro-batches of ``rows``, each with its ``places``. Their weights are known before any is computed."""
        ...

    def loss(self, loaded: Loaded, batch: MicroBatch) -> Loss:
        """The loss of a micro-batch that is on the model's device, summed and not yet divided by its weight.

        Without gradients (an evaluation) each row's part too, in ``Loss.rows``.
        """
        ...


def method_named(name: str) -> Callable[[RunConfig, Subset], Method]:
    """``METHOD`` of the module called ``name``; called with the configuration and the trained rows."""
    found: Callable[[RunConfig, Subset], Method] = resolve_name(f"{__name__}.{name}:METHOD")
    return found
