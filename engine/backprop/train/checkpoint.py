"""A run's complete state: copied out of the training loop, written as safetensors and JSON, put back bit by bit.

Files of a checkpoint, beside the manifest of ``runs.checkpoints``::

    weights.safetensors   the trained parameters, by the model's own names
    state.safetensors     tensors of optimizer, scheduler and random generators
    state.json            everything else of these, and how far the run is (``tensor_tree``)

plus what the training loop adds (``documents``). No pickle anywhere. A checkpoint is taken between two optimizer steps,
so no gradient is being accumulated and none is saved.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from backprop.core.errors import CheckpointError
from backprop.train.random_state import capture_random, restore_random
from backprop.train.tensor_tree import difference, flatten, unflatten

SCHEMA = 1
WEIGHTS = "weights.safetensors"
TENSORS = "state.safetensors"
STATE = "state.json"


class Stateful(Protocol):
    """A scheduler or a loss scale."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Snapshot:
    """The state after ``step`` optimizer steps, in CPU memory: training can go on while it is written."""

    step: int
    weights: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    documents: dict[str, bytes] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size on disk, headers and JSON estimated."""
        held = [*self.weights.values(), *self.tensors.values()]
        texts = sum(map(len, self.documents.values()))
        return sum(tensor.nbytes + 256 for tensor in held) + texts + 2**16

    def write(self, folder: Path) -> None:
        """Write the files into ``folder``.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        _save_tensors(self.weights, folder / WEIGHTS)
        _save_tensors(self.tensors, folder / TENSORS)
        (folder / STATE).write_bytes(orjson.dumps(self.state))
        for name, content in self.documents.items():
            (folder / name).write_bytes(content)


@dataclass(frozen=True)
class RestoredState:
    """What ``restore`` found besides the state it has put into model, optimizer and scheduler."""

    path: Path
    step: int
    progress: dict[str, Any]
    random: dict[str, Any]

    def restore_random(self) -> None:
        """Put the random generators back: the last thing before the next step, for anything may draw from them."""
        restore_random(self.random)


def capture(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Stateful | None,
    *,
    step: int,
    progress: dict[str, Any] | None = None,
    documents: dict[str, bytes] | None = None,
    scaler: Stateful | None = None,
) -> Snapshot:
    """Copy the complete state to CPU memory. The training loop stands still for this, and for nothing else.

    Args:
        model: parameters with ``requires_grad`` are saved.
        step: optimizer steps taken.
        progress: how far the run is, in plain values: data position, tokens seen, batch size in force.
        documents: further files by name.
        scaler: loss scale of fp16 training.

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
            "scheduler": scheduler and {"kind": _kind(scheduler), "state": scheduler.state_dict()},
            "scaler": scaler and scaler.state_dict(),
            "random": capture_random(),
            "progress": progress or {},
        }
    )
    return Snapshot(
        step=step,
        weights={name: _copy(parameter) for name, parameter in trained_parameters(model).items()},
        tensors={name: _copy(tensor) for name, tensor in tensors.items()},
        state=state,
        documents=documents or {},
    )


def restore(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Stateful | None,
    *,
    scaler: Stateful | None = None,
) -> RestoredState:
    """Put the state of the checkpoint at ``path`` into model, optimizer and scheduler, and check that it is in them.

    The random generators are left alone; see ``RestoredState.restore_random``. Verify the checkpoint first
    (``runs.checkpoints``).

    Raises:
        CheckpointError: the checkpoint is of another model, optimizer or scheduler; the message says how they differ.
    """
    load_weights(path, model)
    return restore_optimizer(path, model, optimizer, scheduler, scaler=scaler)


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Put the trained weights of the checkpoint at ``path`` into ``model``.

    Raises:
        CheckpointError: names, shapes or types of the parameters differ.
    """
    saved = _load_tensors(path / WEIGHTS)
    parameters = trained_parameters(model)
    if saved.keys() != parameters.keys():
        only_saved, only_here = sorted(saved.keys() - parameters.keys()), sorted(parameters.keys() - saved.keys())
        raise CheckpointError(
            f"{path.name} trains other weights: {_some(only_saved)} only in the checkpoint, "
            f"{_some(only_here)} only in the model",
            code="STATE_IDENTITY_MISMATCH",
        )
    for name, parameter in parameters.items():
        if saved[name].shape != parameter.shape or saved[name].dtype != parameter.dtype:
            raise CheckpointError(
                f"{path.name}: {name} is {_describe(saved[name])} in the checkpoint and {_describe(parameter)} here",
                code="STATE_IDENTITY_MISMATCH",
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def restore_optimizer(
    path: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Stateful | None,
    *,
    scaler: Stateful | None = None,
) -> RestoredState:
    """As ``restore``, without the weights.

    Raises:
        CheckpointError: as there.
    """
    state = _read_state(path)
    saved = state["optimizer"]
    _require_same(path, "optimizer", saved["kind"], _kind(optimizer))
    _require_same(path, "order of trained weights", saved["parameters"], _parameter_names(model, optimizer))
    _load_state(path, "optimizer", optimizer, saved["state"])
    for name, part, kept in (("scheduler", scheduler, state["scheduler"]), ("loss scale", scaler, state["scaler"])):
        if (part is None) != (kept is None):
            raise CheckpointError(f"{path.name}: a {name} is {'not ' * (kept is None)}in the checkpoint")
        if part is not None and name == "scheduler":
            _require_same(path, name, kept["kind"], _kind(part))
            kept = kept["state"]
        if part is not None:
            _load_state(path, name, part, kept)
    return RestoredState(path, state["step"], state["progress"], state["random"])


def read_progress(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and progress of the checkpoint at ``path``, before there is a model to restore.

    Raises:
        CheckpointError: its state cannot be read.
    """
    state = _read_state(path)
    return state["step"], state["progress"]


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


def _unwrapped(part: Any) -> Any:
    """The optimizer inside accelerate's wrapper."""
    return getattr(part, "optimizer", part) if type(part).__module__.startswith("accelerate.") else part


def _kind(part: Any) -> str:
    inner = type(_unwrapped(part))
    return f"{inner.__module__}.{inner.__qualname__}"


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
        # The library reports the system's error as text alone.
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, f"{path.name}: {error}") from error


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return loaded


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _some(names: list[str]) -> str:
    return (", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")) or "none"
