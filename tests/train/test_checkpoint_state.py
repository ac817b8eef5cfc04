"""A checkpoint holds the complete state, and putting it back gives the same bits."""

from __future__ import annotations

import copy
import functools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from backprop.core.errors import CheckpointError
from backprop.train.checkpoint import (
    capture,
    difference,
    flatten,
    load_weights,
    restore,
    restore_random,
    trained_parameters,
    unflatten,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR


def model(seed: int = 0, hidden: int = 8) -> torch.nn.Module:
    torch.manual_seed(seed)
    made = torch.nn.Sequential(
        torch.nn.Linear(4, hidden), torch.nn.Dropout(0.2), torch.nn.Linear(hidden, hidden), torch.nn.Linear(hidden, 1)
    )
    made[0].weight.requires_grad = False
    return made


def _warm(step: int, *, over: int) -> float:
    return min(1.0, (step + 1) / over)


def scheduler(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, functools.partial(_warm, over=5))


def trained(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return list(trained_parameters(module).values())


def take_steps(module: torch.nn.Module, optimizer: torch.optim.Optimizer, rates: LambdaLR, count: int) -> list[float]:
    losses = []
    module.train()
    for _ in range(count):
        loss = module(torch.randn(16, 4) + random.random() + np.random.rand()).square().mean()
        loss.backward()
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


OPTIMIZERS = {
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=1e-2),
    "two groups": lambda weights: torch.optim.AdamW([{"params": weights[:2]}, {"params": weights[2:], "lr": 1e-3}]),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=1e-2, momentum=0.9),
    "amsgrad": lambda weights: torch.optim.Adam(weights, lr=torch.tensor(1e-2), amsgrad=True),
    "adafactor": lambda weights: torch.optim.Adafactor(weights, lr=1e-2),
    "rprop": lambda weights: torch.optim.Rprop(weights, lr=1e-3),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_after_a_restore_every_loss_and_weight_is_the_same_to_the_last_bit(tmp_path: Path, kind: str) -> None:
    first = model()
    optimizer = OPTIMIZERS[kind](trained(first))
    rates = scheduler(optimizer)
    take_steps(first, optimizer, rates, 3)
    capture(first, optimizer, rates, step=3, progress={"tokens": 48}).write(tmp_path)
    expected = take_steps(first, optimizer, rates, 7)

    second = model(seed=0)
    fresh = OPTIMIZERS[kind](trained(second))
    other_rates = scheduler(fresh)
    restored = restore(tmp_path, second, fresh, other_rates)
    restore_random(restored["random"])
    assert (restored["step"], restored["progress"]) == (3, {"tokens": 48})
    assert take_steps(second, fresh, other_rates, 7) == expected
    assert difference(dict(first.state_dict()), dict(second.state_dict())) == ""
    assert difference(optimizer.state_dict(), fresh.state_dict()) == ""


def test_eight_bit_adam_is_put_back_exactly(tmp_path: Path) -> None:
    import bitsandbytes

    first, second = model(hidden=128), model(hidden=128)
    optimizer, fresh = (
        bitsandbytes.optim.AdamW8bit(trained(each), lr=1e-2, min_8bit_size=64) for each in (first, second)
    )
    rates, other_rates = scheduler(optimizer), scheduler(fresh)
    take_steps(first, optimizer, rates, 3)
    capture(first, optimizer, rates, step=3).write(tmp_path)
    expected = take_steps(first, optimizer, rates, 5)
    restore_random(restore(tmp_path, second, fresh, other_rates)["random"])
    assert take_steps(second, fresh, other_rates, 5) == expected
    assert difference(dict(first.state_dict()), dict(second.state_dict())) == ""


def test_training_on_does_not_change_what_was_captured(tmp_path: Path) -> None:
    trainee = model()
    optimizer = OPTIMIZERS["adamw"](trained(trainee))
    rates = scheduler(optimizer)
    take_steps(trainee, optimizer, rates, 3)
    snapshot = capture(trainee, optimizer, rates, step=3)
    weights = {name: weight.clone() for name, weight in trained_parameters(trainee).items()}
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    take_steps(trainee, optimizer, rates, 2)
    assert difference(dict(snapshot.weights), {name: weight.detach() for name, weight in weights.items()}) == ""
    assert difference(unflatten(snapshot.state, snapshot.tensors)["optimizer"]["state"]["state"], moments) == ""


def test_only_trained_weights_are_saved_and_no_pickle(tmp_path: Path) -> None:
    trainee = model()
    optimizer = OPTIMIZERS["adamw"](trained(trainee))
    rates = scheduler(optimizer)
    take_steps(trainee, optimizer, rates, 1)
    snapshot = capture(trainee, optimizer, rates, step=1)
    assert "0.weight" not in snapshot.weights
    snapshot.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"weights.safetensors", "state.safetensors", "state.json"}
    assert snapshot.bytes >= sum(path.stat().st_size for path in tmp_path.iterdir())


def saved_by_adamw(folder: Path, **options: Any) -> None:
    trainee = model()
    optimizer = torch.optim.AdamW(trained(trainee), **options)
    rates = scheduler(optimizer)
    take_steps(trainee, optimizer, rates, 2)
    capture(trainee, optimizer, rates, step=2, progress={"rows": 8}).write(folder)


def test_a_foreign_optimizer_is_refused_by_name(tmp_path: Path) -> None:
    saved_by_adamw(tmp_path)
    other = model()
    optimizer = torch.optim.SGD(trained(other), lr=0.1)
    with pytest.raises(CheckpointError, match=r"adamw\.AdamW in the checkpoint, torch\.optim\.sgd\.SGD here"):
        restore(tmp_path, other, optimizer, scheduler(optimizer))


def test_an_optimizer_over_weights_in_another_order_is_refused(tmp_path: Path) -> None:
    saved_by_adamw(tmp_path)
    other = model()
    optimizer = torch.optim.AdamW(list(reversed(trained(other))))
    with pytest.raises(CheckpointError, match="order of trained weights"):
        restore(tmp_path, other, optimizer, scheduler(optimizer))


def test_a_state_that_loading_would_change_is_refused(tmp_path: Path) -> None:
    class Forgetful(torch.optim.AdamW):
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            kept = {**state_dict, "state": {index: dict(each) for index, each in state_dict["state"].items()}}
            del kept["state"][0]["exp_avg"]
            super().load_state_dict(kept)

    Forgetful.__module__, Forgetful.__qualname__ = torch.optim.AdamW.__module__, torch.optim.AdamW.__qualname__
    saved_by_adamw(tmp_path)
    other = model()
    optimizer = Forgetful(trained(other))
    with pytest.raises(CheckpointError, match="cannot be put back exactly"):
        restore(tmp_path, other, optimizer, scheduler(optimizer))


def test_another_scheduler_is_an_error_and_not_a_silent_start(tmp_path: Path) -> None:
    saved_by_adamw(tmp_path)
    other = model()
    optimizer = torch.optim.AdamW(trained(other))
    with pytest.raises(CheckpointError, match=r"scheduler is another one.*LambdaLR in the checkpoint"):
        restore(tmp_path, other, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    saved_by_adamw(tmp_path)
    with pytest.raises(CheckpointError, match=r"0\.bias is float32 \[8\] in the checkpoint and float32 \[16\] here"):
        load_weights(tmp_path, model(hidden=16))
    with pytest.raises(CheckpointError, match="trains other weights"):
        load_weights(tmp_path, torch.nn.Linear(4, 1))


@pytest.mark.parametrize("name", ["weights.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_named_and_not_a_traceback(tmp_path: Path, name: str, damage: str) -> None:
    saved_by_adamw(tmp_path)
    if damage == "gone":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    other = model()
    optimizer = torch.optim.AdamW(trained(other))
    with pytest.raises(CheckpointError, match=name):
        restore(tmp_path, other, optimizer, scheduler(optimizer))


def test_what_cannot_be_saved_without_pickle_says_where_it_is() -> None:
    with pytest.raises(CheckpointError, match=r"state\.groups\.0\.rule is a function"):
        flatten({"groups": [{"rule": _warm}]})


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.sampled_from(["$tensor", "$x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(TREES)
def test_any_nested_state_survives_json(tree: Any) -> None:
    plain, tensors = flatten(tree)
    assert difference(unflatten(orjson.loads(orjson.dumps(plain)), tensors), tree) == ""


def test_bits_are_compared_and_not_values() -> None:
    zeros = torch.zeros(2)
    assert difference({"a": [zeros]}, {"a": [-zeros]}) == "state.a.0"
    assert difference({"a": math.nan}, {"a": math.nan}) == ""
    assert difference((1, 2), (1, 3)) == "state.1"
    assert difference({"a": 1}, {"a": 1.0}) == "state.a"
