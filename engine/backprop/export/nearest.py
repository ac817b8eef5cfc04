"""What the adapter of a QLoRA run is merged into: the original weights, or what came back of them from 4 bits.

It was trained beside weights in NF4. Added to those (dequantised) it gives the model that was trained; added to the
original weights, another one, of which nobody knows before how near it is. So both are asked beside the trained one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backprop.core.errors import MergeError
from backprop.core.jobs import Comparison
from backprop.export.answers import held_out_rows
from backprop.export.compare_models import difference, distributions, load_trained, rendered_prompts
from backprop.export.sharded import Progress
from backprop.export.source import Source
from backprop.export.weights import ALL, Weights
from backprop.runs.directory import RunDirectory
from backprop.train import four_bit, generate
from backprop.train import model as models

if TYPE_CHECKING:
    import torch

_ROWS, _LONGEST = 8, 256
"""Rows that are asked, and tokens of each: all logits of three models are kept."""


class Dequantised:
    """The tensors of ``base``, those in 4 bits as they came back from there; the last of these is kept.

    Args:
        modules: layers in 4 bits, by their names in memory.
        across: weights of layers are stored as (in, out).

    Raises:
        MergeError: one of them is not in the file under its name.
    """

    def __init__(self, base: Weights, modules: set[str], device: torch.device, *, across: bool) -> None:
        from backprop.export.merge import places

        found = places(base.names(), [f"{module}.weight" for module in modules])
        if lost := [name for name, place in found.items() if not place]:
            raise MergeError(
                f"the model's files have {lost[0]} under another name: what it is in 4 bits cannot be written",
                hint="export the adapter alone: --format lora",
            )
        self._base, self._changed, self._device, self._across = base, set(found.values()), device, across
        self._last: tuple[str, NDArray[np.float32]] = "", np.empty(0, np.float32)

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> str:
        return self._base.dtype(name)

    def stored(self, name: str, rows: slice = ALL) -> NDArray[Any] | None:
        return None if name in self._changed else self._base.stored(name, rows)

    def read(self, name: str, rows: slice = ALL) -> NDArray[np.float32]:
        if name not in self._changed:
            return self._base.read(name, rows)
        if self._last[0] != name:
            import torch

            weight = torch.from_numpy(self._base.read(name)).to(self._device, models.choose_dtype(self._device))
            self._last = name, _back(weight, self._across).float().cpu().numpy()
        return self._last[1][rows].copy()


def settle(source: Source, ask: bool, progress: Progress) -> Comparison:
    """Let ``source`` be merged into the weights that give the model nearest to the trained one, and say which.

    Args:
        ask: whether they are compared; else it is the dequantised ones.
    """
    progress("asking the model in 4 bits", 0, 3)
    model = load_trained(source)
    in_4_bit = {name.removeprefix("base_model.model.").removesuffix(".base_layer") for name in four_bit.layers(model)}
    device = next(model.parameters()).device
    source.base_weights = Dequantised(source.stored, in_4_bit, device, across=source.is_transposed)
    if not ask:
        told = "merged into the dequantised weights; not compared with the original ones: not asked for"
        return Comparison(name="base", passed=True, detail=told)
    rows: list[tuple[list[int], list[bool]]] = []
    if source.state is not None:
        rows = held_out_rows(RunDirectory(Path(source.state.path)), source.base)[:_ROWS]
        rows = [(ids[:_LONGEST], trained[:_LONGEST]) for ids, trained in rows]
    asked = rows or [(ids, [True] * len(ids)) for ids in rendered_prompts(source)]
    prompts = [ids for ids, _ in asked]
    as_trained = distributions(model, prompts)
    del model
    progress("asking it with the original weights", 1, 3)
    assert source.adapter is not None
    model = generate.load_model(source.base, source.adapter.folder, source.backend, source.trust_remote_code)
    found = {"original": distributions(model, prompts)}
    progress("asking it with the dequantised weights", 2, 3)
    for name in in_4_bit:
        weight = _layer(model, name).weight.data
        weight.copy_(_back(weight, source.is_transposed))
    found["dequantised"] = distributions(model, prompts)
    apart = {name: difference(as_trained, logits)[0] for name, logits in found.items()}
    nearest = min(("dequantised", "original"), key=lambda name: apart[name])
    if nearest == "original":
        source.base_weights = None
    losses = {name: _loss(logits, asked) for name, logits in {"as trained": as_trained, **found}.items()}
    told = f"{len(rows)} held-out rows: loss {losses['as trained']:.4f} as trained" if rows else f"{len(asked)} prompts"
    for name in found:
        loss = f"{losses[name]:.4f}, " if rows else ""
        told += f"; {loss}{apart[name]:.2g} nats away, with the {name} weights"
    return Comparison(name="base", passed=True, detail=f"{told}. Merged into the {nearest} weights")


def _back(weight: torch.Tensor, across: bool) -> torch.Tensor:
    return four_bit.there_and_back(weight.T).T if across else four_bit.there_and_back(weight)


def _layer(model: Any, name: str) -> Any:
    """The layer called ``name`` in the base model, below its adapter where it has one."""
    layer = model.get_submodule(f"base_model.model.{name}")
    return getattr(layer, "base_layer", layer)


def _loss(logits: list[torch.Tensor], asked: list[tuple[list[int], list[bool]]]) -> float:
    """The mean loss of the trained tokens."""
    import torch

    losses = [
        torch.nn.functional.cross_entropy(each[:-1], torch.tensor(ids[1:]), reduction="none")[torch.tensor(trained[1:])]
        for each, (ids, trained) in zip(logits, asked, strict=True)
    ]
    return float(torch.cat(losses).mean())
