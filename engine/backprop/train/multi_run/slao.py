"""SLAO: continual learning with one LoRA by asymmetric merging (Qiao & Mahdavi 2025, arXiv:2512.23017).

Between runs the next A starts from an orthonormal basis of the last fine-tuned A and B goes on (``State.start``). After
run i the merged A is the fine-tuned A, and the merged B moves by 1/sqrt(i) towards the fine-tuned B (``State.merged``).
Training goes on from the fine-tuned pair; what is used and exported is the merged one.

Nothing here knows models, files or runs: a layer's factors are tensors by name, A [r, in] and B [out, r], and every
function returns new ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch

from backprop.core.errors import SLAOMergeError

Weights: TypeAlias = Mapping[str, torch.Tensor]


class Adapter(NamedTuple):
    """The factors of every adapted layer, by the layer's name: ``a`` [r, in] and ``b`` [out, r]."""

    a: Weights
    b: Weights


@dataclass(frozen=True)
class State:
    """What the next run and the next merge need; its size does not grow with the number of runs.

    Attributes:
        count: merged runs. One that failed, or was kept out, is not counted.
        tuned: the adapter as the last merged run left it; training goes on from it.
        b: the merged B. The merged A is ``tuned.a``.
        runs: ids of the merged runs, in order.
        a: the merged A where another way of merging makes one (``merging``).
    """

    count: int
    tuned: Adapter
    b: Weights
    runs: tuple[str, ...] = ()
    a: Weights | None = None

    @property
    def result(self) -> Adapter:
        """The merged adapter."""
        return Adapter(self.tuned.a if self.a is None else self.a, self.b)

    def start(self) -> Adapter:
        """The adapter that the next run starts from: (Q^T, B), with Q R = A^T (eq. 13)."""
        return Adapter(
            {name: orthonormal_rows(a, name) for name, a in self.tuned.a.items()},
            {name: b.clone() for name, b in self.tuned.b.items()},
        )


def merge(state: State | None, tuned: Adapter, run_id: str) -> State:
    """The state after run ``run_id``, which fine-tuned to ``tuned``; ``None`` is the state before the first run.

    Raises:
        SLAOMergeError: a weight is not finite, layers or shapes are not those of the state, or the run was merged
            already. The state stays as it is.
    """
    require_finite(tuned)
    new = Adapter(_float32(tuned.a), _float32(tuned.b))
    if state is None:
        return State(1, new, _float32(tuned.b), (run_id,))
    if run_id in state.runs:
        raise SLAOMergeError(f"run {run_id} is merged already", hint="a run counts once, however often it is merged")
    require_same_layers(state.tuned, new)
    share = step_size(state.count + 1)
    b = {name: torch.lerp(state.b[name].double(), new.b[name].double(), share).float() for name in new.b}
    return State(state.count + 1, new, b, (*state.runs, run_id))


def step_size(i: int) -> float:
    """How far the merged B moves with the i-th merged run (eq. 14): 1/sqrt(i), ``i`` from 1.

    Raises:
        SLAOMergeError: ``i`` is no such number.
    """
    if type(i) is not int or i < 1:
        raise SLAOMergeError(f"merges are counted from 1, not {i!r}")
    return 1 / math.sqrt(i)


def orthonormal_rows(a: torch.Tensor, name: str = "") -> torch.Tensor:
    """Orthonormal rows [r, in] that span those of ``a``, each turned to its side; float32.

    Householder's method in float64: rows stay orthonormal where ``a`` has not its full rank. Without the turn the basis
    would be about -A, and the adapter of the next run would begin negated.

    Raises:
        SLAOMergeError: there are more rows than columns, or a value is not finite.
    """
    rank, width = a.shape
    if rank > width:
        raise SLAOMergeError(f"{name or 'A'}: rank {rank} is more than the {width} inputs of the layer")
    if not bool(a.isfinite().all()):
        raise SLAOMergeError(f"{name or 'A'} has values that are not finite")
    q, r = torch.linalg.qr(a.detach().cpu().double().T)
    turned = torch.where(torch.diagonal(r) < 0, -1.0, 1.0)
    rows: torch.Tensor = (q * turned).T.float().contiguous()
    return rows.to(a.device)


def similarity(one: Adapter, other: Adapter) -> float:
    """Cosine of the two adapters' updates, B A of all layers together; 0 where one of them is zero."""
    require_same_layers(one, other)
    dot = first = second = 0.0
    for name in one.a:
        a, b, c, d = (each[name].double() for each in (one.a, one.b, other.a, other.b))
        dot += float(torch.sum((b.T @ d) * (a @ c.T)))
        first += float(torch.sum((b.T @ b) * (a @ a.T)))
        second += float(torch.sum((d.T @ d) * (c @ c.T)))
    return dot / math.sqrt(first * second) if first > 0 and second > 0 else 0.0


def require_finite(adapter: Adapter) -> None:
    """Refuse an adapter that has diverged.

    Raises:
        SLAOMergeError: it names the first layer and factor.
    """
    for factor, weights in zip("AB", adapter, strict=True):
        for name, weight in weights.items():
            if not bool(weight.isfinite().all()):
                raise SLAOMergeError(
                    f"{name}.{factor} has values that are not finite: the run diverged and is not merged",
                    hint="lower the learning rate of that run; what was merged before it is unchanged",
                )


def require_same_layers(old: Adapter, new: Adapter) -> None:
    """Refuse factors that do not belong to the same layers: torch would stretch a rank of 1 over any other.

    Raises:
        SLAOMergeError: it names the layer and both shapes.
    """
    for factor, before, now in (("A", old.a, new.a), ("B", old.b, new.b)):
        if before.keys() != now.keys():
            missing, extra = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
            named = [
                f"{what} {', '.join(names[:3])}" for what, names in (("without", missing), ("new", extra)) if names
            ]
            raise SLAOMergeError("the adapters are on other layers than before: " + "; ".join(named))
        for name, weight in now.items():
            if weight.shape != before[name].shape:
                raise SLAOMergeError(
                    f"{name}.{factor} is {list(weight.shape)} and was {list(before[name].shape)}",
                    hint="runs that are merged share rank, alpha, target modules and base model",
                )


def _float32(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: weight.detach().to(torch.float32, copy=True) for name, weight in weights.items()}
