"""Of several processes each keeps the optimizer's state of its own weights, and updates those alone.

That is ZeRO's first stage (https://arxiv.org/abs/1910.02054): every rank computes with the whole model, and has the
gradients of its own micro-batches for all of it. They are added up where a weight is updated, and the new weight goes
from there to the others. The optimizer of each rank is over all weights, and leaves alone those without a gradient; so
their numbers, and the chances by which bf16 weights are rounded, are those of one process, and so is a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import distributed
from torch.nn.utils import clip_grads_with_norm_

from backprop.core.errors import CheckpointError
from backprop.train.checkpoint import Snapshot, add_optimizer_part, optimizer_part, same_memory
from backprop.train.out_of_memory import is_out_of_memory
from backprop.train.ranks import HAND_OVER, Ranks

BUCKET = 2**26
"""Numbers that are exchanged at once: 256 MB in float32."""


def shares(sizes: list[int], ranks: int) -> list[list[int]]:
    """Which weights each rank updates, by their places: the largest first, each to the rank with least so far."""
    found: list[list[int]] = [[] for _ in range(ranks)]
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        min(found, key=lambda share: sum(sizes[each] for each in share)).append(place)
    return [sorted(share) for share in found]


class Sharding:
    """The weights of a run, each with the rank that updates it.

    Args:
        ranks: the processes, seen from this one.
        weights: those that are trained, in one order on every rank.
    """

    def __init__(self, ranks: Ranks, weights: Iterable[torch.nn.Parameter]) -> None:
        self.ranks = ranks
        self._weights = list(weights)
        places = shares([weight.numel() for weight in self._weights], ranks.size)
        self._shares = [[self._weights[place] for place in share] for share in places]
        self._own = {id(weight) for weight in self._shares[ranks.rank]}

    def owns(self, weight: torch.Tensor) -> bool:
        """Whether this rank updates ``weight``."""
        return id(weight) in self._own

    @property
    def most(self) -> int:
        """Numbers in the weights of the rank that has most."""
        return max(sum(weight.numel() for weight in share) for share in self._shares)

    def add_up(self, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Do ``work`` on every rank, then add up what it returned and the gradients that it left.

        A gradient is left where its weight is updated, and nowhere else.

        Raises:
            RuntimeError: one of the ranks ran out of memory; all of them raise.
        """
        failed: RuntimeError | None = None
        found: dict[str, float] | None = None
        have: list[int] = []
        try:
            found = work()
            have = [place for place, weight in enumerate(self._weights) if weight.grad is not None]
            # All memory is taken before the ranks agree: from there on none may fail alone.
            for weight in self._weights:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            flat = self._bucket(torch.float32)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = error
        told: list[Any] = [None] * self.ranks.size
        self.ranks.together(lambda: distributed.all_gather_object(told, (found, have)))
        if failed is not None:
            raise failed
        sums: dict[str, float] = {}
        for rank, (values, _) in enumerate(told):
            if values is None:
                raise torch.OutOfMemoryError(f"rank {rank} ran out of memory")
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        with_gradient = {place for _, places in told for place in places}
        for place, weight in enumerate(self._weights):
            if place not in with_gradient:
                weight.grad = None
        for owner, weights in enumerate(self._shares):
            for some in _filling(flat, [weight for weight in weights if weight.grad is not None]):
                gradients = [weight.grad for weight in some if weight.grad is not None]
                self._exchange(flat, gradients, lambda each, owner=owner: distributed.reduce(each, owner))  # type: ignore[misc]
                for weight in some if owner != self.ranks.rank else ():
                    weight.grad = None
        return sums

    def clip(self, most: float) -> float:
        """Scale the gradients so that their norm, that of all ranks' together, is at most ``most``; what it was."""
        norms = torch.zeros(len(self._weights), dtype=self._weights[0].dtype, device=self._weights[0].device)
        for place, weight in enumerate(self._weights):
            if weight.grad is not None:
                norms[place] = torch.linalg.vector_norm(weight.grad)
        self.ranks.together(lambda: distributed.all_reduce(norms))
        norm = torch.linalg.vector_norm(norms)
        clip_grads_with_norm_(self._weights, most, norm)
        return float(norm)

    @torch.no_grad()
    def spread(self) -> None:
        """Give every rank the weights that others have updated."""
        flat = self._bucket(self._weights[0].dtype)
        for owner, weights in enumerate(self._shares):
            for some in _filling(flat, weights):
                self._exchange(flat, some, lambda each, owner=owner: distributed.broadcast(each, owner))  # type: ignore[misc]

    def collect(self, snapshot: Snapshot) -> None:
        """On rank 0: complete its ``snapshot`` with the state that the other ranks keep.

        Raises:
            CheckpointError: there is no memory for it. The others know, and training can go on.
        """
        self.ranks.announce([HAND_OVER, 0, 0, 0])
        for rank, (kept, layout) in enumerate(self._told(None)[1:], 1):
            try:
                tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in layout.items()}
            except (MemoryError, RuntimeError) as error:
                self.ranks.announce([False])
                raise CheckpointError(f"rank {rank}'s state has no room: {error}", code="RUNTIME_IO_FAILED") from error
            self.ranks.announce([True])
            for tensor in tensors.values():
                self.ranks.together(lambda rank=rank, tensor=tensor: distributed.recv(same_memory(tensor), rank))  # type: ignore[misc]
            add_optimizer_part(snapshot, kept, tensors)

    def hand_over(self, optimizer: torch.optim.Optimizer) -> None:
        """On another rank: give rank 0 what this one keeps."""
        kept, tensors = optimizer_part(optimizer)
        self._told((kept, {name: (tuple(each.shape), each.dtype) for name, each in tensors.items()}))
        for rank in range(1, self.ranks.size):
            wanted = self.ranks.announce([False])
            if not wanted[0]:
                return
            for tensor in tensors.values() if rank == self.ranks.rank else ():
                given = tensor.detach().cpu().contiguous()
                self.ranks.together(lambda given=given: distributed.send(same_memory(given), 0))  # type: ignore[misc]

    def _told(self, told: Any) -> list[Any]:
        heard: list[Any] = [None] * self.ranks.size
        self.ranks.together(lambda: distributed.all_gather_object(heard, told))
        return heard

    def _bucket(self, dtype: torch.dtype) -> torch.Tensor:
        """Room for the largest weight, and for as much of a share as is exchanged at once."""
        largest = max(weight.numel() for weight in self._weights)
        return torch.empty(max(largest, min(BUCKET, self.most)), dtype=dtype, device=self._weights[0].device)

    def _exchange(self, flat: torch.Tensor, tensors: list[Any], collective: Callable[[torch.Tensor], object]) -> None:
        """Do ``collective`` with all of ``tensors`` at once, through ``flat``."""
        sizes = [each.numel() for each in tensors]
        used = flat[: sum(sizes)]
        parts = used.split(sizes)
        for part, tensor in zip(parts, tensors, strict=True):
            part.copy_(tensor.flatten())
        self.ranks.together(lambda: collective(used))
        for part, tensor in zip(parts, tensors, strict=True):
            tensor.copy_(part.view_as(tensor))


def _filling(flat: torch.Tensor, weights: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """The weights, as many at once as ``flat`` holds."""
    some: list[torch.nn.Parameter] = []
    for weight in weights:
        if sum(each.numel() for each in some) + weight.numel() > len(flat):
            yield some
            some = []
        some.append(weight)
    if some:
        yield some
