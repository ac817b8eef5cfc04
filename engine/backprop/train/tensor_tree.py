"""Nested Python state as JSON and tensors, without pickle.

The state of optimizers, schedulers and random generators is made of dictionaries, lists, tuples, numbers, text and
tensors. ``flatten`` turns it into plain JSON, in which what JSON cannot say is an object with one key that starts with
``$``, and a dictionary of tensors by name. ``unflatten`` gives back an equal state: same types, same bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from backprop.core.errors import CheckpointError


def flatten(value: Any, place: str = "state") -> tuple[Any, dict[str, torch.Tensor]]:
    """``value`` as JSON and the tensors in it, named by their place; tensors are not copied.

    Raises:
        CheckpointError: something in it cannot be saved without pickle; the message says what and where.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _flatten(value, place, tensors), tensors


def _flatten(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else {"$int": str(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, torch.Tensor):
        tensors[place] = value
        return {"$tensor": place}
    if isinstance(value, tuple):
        return {"$tuple": [_flatten(item, f"{place}.{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [_flatten(item, f"{place}.{index}", tensors) for index, item in enumerate(value)]
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _flatten(item, f"{place}.{key}", tensors) for key, item in value.items()}
        return {
            "$pairs": [
                [_flatten(key, f"{place}.key", tensors), _flatten(item, f"{place}.{key}", tensors)]
                for key, item in value.items()
            ]
        }
    raise CheckpointError(
        f"{place} is a {type(value).__name__}, which cannot be saved as JSON or as a tensor",
        hint="choose another optimizer or scheduler",
    )


def unflatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The state that ``flatten`` was given.

    Raises:
        CheckpointError: a tensor is missing or a mark is not known.
    """
    if isinstance(value, list):
        return [unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    mark = next(iter(value), "")
    if len(value) != 1 or not mark.startswith("$"):
        return {key: unflatten(item, tensors) for key, item in value.items()}
    inner = value[mark]
    if mark == "$tensor":
        if inner not in tensors:
            raise CheckpointError(f"the tensor {inner} is missing from the checkpoint")
        return tensors[inner]
    if mark in ("$float", "$int"):
        return float(inner) if mark == "$float" else int(inner)
    if mark == "$tuple":
        return tuple(unflatten(item, tensors) for item in inner)
    if mark == "$pairs":
        return {unflatten(key, tensors): unflatten(item, tensors) for key, item in inner}
    raise CheckpointError(f"the checkpoint has a part that is not known: {mark}")


def difference(a: Any, b: Any, place: str = "state") -> str:
    """Where two nested states first differ, to the last bit; empty where they do not. Devices are not compared."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return "" if same_bits(a, b) else place
    if type(a) is not type(b):
        return place
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return place
        return next((found for key in a if (found := difference(a[key], b[key], f"{place}.{key}"))), "")
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return place
        pairs = enumerate(zip(a, b, strict=True))
        return next((found for index, (x, y) in pairs if (found := difference(x, y, f"{place}.{index}"))), "")
    return "" if a == b or (a != a and b != b) else place  # noqa: PLR0124 - NaN


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits; NaN and signed zeros are told apart as bits are."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
