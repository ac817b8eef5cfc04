"""A run's complete state: copied out of the training loop, written as safetensors and JSON, put back bit by bit.

Files of a checkpoint, beside the manifest of ``runs.checkpoints``::

    weights.safetensors   the trained parameters, by the model's own names
    state.safetensors     tensors of optimizer, scheduler and random generators
    state.json            everything else of these, and how far the run is (``flatten``)

No pickle anywhere. A checkpoint is taken between two optimizer steps, so no gradient is being accumulated and none is
saved.
"""

from __future__ import annotations

import errno
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LRScheduler

from backprop.core.errors import CheckpointError, some

SCHEMA = 1
WEIGHTS = "weights.safetensors"
TENSORS = "state.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class Snapshot:
    """The state after ``step`` optimizer steps, in CPU memory: training can go on while it is written."""

    step: int
    weights: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Size on disk, headers and JSON estimated."""
        held = [*self.weights.values(), *self.tensors.values()]
        return sum(tensor.nbytes + 256 for tensor in held) + 2**16

    def write(self, folder: Path) -> None:
        """Write the files into ``folder``.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        _save_tensors(self.weights, folder / WEIGHTS)
        _save_tensors(self.tensors, folder / TENSORS)
        (folder / STATE).write_bytes(orjson.dumps(self.state))


def capture(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    *,
    step: int,
    progress: dict[str, Any] | None = None,
) -> Snapshot:
    """Copy the complete state to CPU memory. The training loop stands still for this, and for nothing else.

    Args:
        model: parameters with ``requires_grad`` are saved.
        step: optimizer steps taken.
        progress: how far the run is, in plain values: data position, tokens seen, batch size in force.

    Raises:
        CheckpointError: the optimizer holds something that cannot be saved without pickle.
    """
    state, tensors = flatten(
        {
            "schema": SCHEMA,
            "step": step,
            "optimizer": {
                "kind": _kind(optimizer),
                "parameters": _parameter_names(model, optimizer),
                "state": optimizer.state_dict(),
            },
            "scheduler": {"kind": _kind(scheduler), "state": scheduler.state_dict()},
            "random": capture_random(),
            "progress": progress or {},
        }
    )
    return Snapshot(
        step=step,
        weights={name: _copy(parameter) for name, parameter in trained_parameters(model).items()},
        tensors={name: _copy(tensor) for name, tensor in tensors.items()},
        state=state,
    )


def optimizer_part(optimizer: torch.optim.Optimizer) -> tuple[Any, dict[str, torch.Tensor]]:
    """What ``optimizer`` keeps for single weights, as ``capture`` names and writes it; nothing is copied."""
    return flatten(optimizer.state_dict()["state"], "state.optimizer.state.state")


def add_optimizer_part(snapshot: Snapshot, kept: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Complete ``snapshot`` with the part that another process keeps; its tensors are taken over."""
    state = snapshot.state["optimizer"]["state"]
    pairs = state["state"].get("$pairs", []) + kept.get("$pairs", [])
    state["state"] = {"$pairs": sorted(pairs, key=lambda pair: int(pair[0]))}
    snapshot.tensors.update(tensors)


def restore(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    *,
    owned: Callable[[torch.Tensor], bool] = lambda weight: True,
) -> dict[str, Any]:
    """Put the state of the checkpoint at ``path`` into model, optimizer and scheduler, and check that it is in them.

    Verify the checkpoint first (``runs.checkpoints``). The random generators are left alone.

    Args:
        owned: whether this process keeps the optimizer's state of a weight.

    Returns:
        ``step``, ``progress`` and ``random``: the last is for ``restore_random``, right before the next step, for
        anything may draw from the generators.

    Raises:
        CheckpointError: the checkpoint is of another model, optimizer or scheduler; the message says how they differ.
    """
    load_weights(path, model)
    state = _read_state(path)
    saved = state["optimizer"]
    _require_same(path, "optimizer", saved["kind"], _kind(optimizer))
    _require_same(path, "order of trained weights", saved["parameters"], _parameter_names(model, optimizer))
    numbered = enumerate(weight for group in optimizer.param_groups for weight in group["params"])
    here = {number for number, weight in numbered if owned(weight)}
    saved["state"]["state"] = {number: each for number, each in saved["state"]["state"].items() if number in here}
    _load_state(path, "optimizer", optimizer, saved["state"])
    _require_same(path, "scheduler", state["scheduler"]["kind"], _kind(scheduler))
    _load_state(path, "scheduler", scheduler, state["scheduler"]["state"])
    return {name: state[name] for name in ("step", "progress", "random")}


def load_weights(path: Path, model: torch.nn.Module, *, any_dtype: bool = False) -> None:
    """Put the trained weights of the checkpoint at ``path`` into ``model``.

    Args:
        any_dtype: whether they may be of another type, and are converted.

    Raises:
        CheckpointError: names, shapes or types of the parameters differ.
    """
    saved = _load_tensors(path / WEIGHTS)
    parameters = trained_parameters(model)
    if any_dtype:
        saved = {name: each.to(parameters[name].dtype) if name in parameters else each for name, each in saved.items()}
    theirs = {name: _describe(tensor) for name, tensor in saved.items()}
    ours = {name: _describe(parameter) for name, parameter in parameters.items()}
    differing = [
        f"{name} is {theirs.get(name, 'missing')} in the checkpoint and {ours.get(name, 'missing')} here"
        for name in sorted(theirs | ours)
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        message = f"{path.name} trains other weights: {some(differing)}"
        raise CheckpointError(message, code="STATE_IDENTITY_MISMATCH")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters that training changes, by name; a tied one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _read_state(path: Path) -> dict[str, Any]:
    try:
        document = orjson.loads((path / STATE).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise CheckpointError(f"{path / STATE} cannot be read: {error}") from error
    state: dict[str, Any] = unflatten(document, _load_tensors(path / TENSORS))
    if state.get("schema") != SCHEMA:
        raise CheckpointError(f"{path / STATE} was written by another version (schema {state.get('schema')})")
    return state


def _load_state(path: Path, name: str, part: Any, saved: dict[str, Any]) -> None:
    """Load, then compare with what was saved: loading may leave keys out or change types without a word."""
    try:
        part.load_state_dict(saved)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path.name}: the {name}'s state does not fit: {error}") from error
    if place := difference(saved, part.state_dict(), name):
        raise CheckpointError(f"{path.name}: the {name}'s state cannot be put back exactly ({place} differs)")


def _require_same(path: Path, what: str, saved: Any, here: Any) -> None:
    if saved != here:
        shown = "" if isinstance(saved, list) else f": {saved} in the checkpoint, {here} here"
        raise CheckpointError(f"{path.name}: the {what} is another one{shown}", code="STATE_IDENTITY_MISMATCH")


def _kind(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _parameter_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Names of the parameters of each group, in the order in which the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(parameter), "?") for parameter in group["params"]] for group in optimizer.param_groups]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise system_error(error, path) from error


def system_error(error: SafetensorError, path: Path) -> OSError:
    """What the system refused while ``path`` was written: the library gives its error as text alone."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]) if number else errno.EIO, f"{path.name}: {error}")


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return loaded


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def seed_random(seed: int) -> None:
    """Start every generator that training draws from at ``seed``."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def capture_random() -> dict[str, Any]:
    """State of every generator, as nested plain values and tensors on the CPU."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        # Not asked before CUDA is in use: asking would start it and take its memory.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_random(state: dict[str, Any]) -> None:
    """Put every generator back. Devices that this machine lacks are left out."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, device)


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
    return torch.equal(same_memory(a), same_memory(b))


def same_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, of any type, as a vector that shares them."""
    return tensor.view(-1).view(torch.uint8)
