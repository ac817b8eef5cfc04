"""Linear, TIES and DARE on values that can be followed by hand."""

from __future__ import annotations

import pytest
import torch
from backprop.core.errors import InvalidSettingError, SLAOMergeError
from backprop.core.settings import MultiConfig
from backprop.train.multi_run import strategies as merging
from backprop.train.multi_run.slao import Adapter
from backprop.train.multi_run.strategies import dare, linear, ties
from torch import tensor


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of(a: float, b: float) -> Adapter:
    return Adapter({"q": tensor([[a]])}, {"q": tensor([[b]])})


def test_linear_lies_between_the_old_and_the_new_by_its_weight() -> None:
    old, new = tensor([0.0, 2.0]), tensor([4.0, 6.0])
    assert linear(old, new, 0.5).tolist() == [2, 4]
    assert torch.equal(linear(old, new, 0.0), old)
    assert torch.equal(linear(old, new, 1.0), new)


def test_linear_takes_one_over_the_root_of_the_run_where_no_weight_is_named() -> None:
    state = None
    for b in (0.0, 0.0, 0.0, 4.0):
        state = merging.merge(state, of(b, b), f"run {b} {state and state.count}", MultiConfig(merge_mode="linear"), 0)
    assert [part["q"].item() for part in state.result] == [2, 2]
    assert [part["q"].item() for part in state.tuned] == [4, 4]


@pytest.mark.parametrize(
    ("old", "new", "drop", "merged"),
    [
        ([10, 0.01, 8, 0.02], [9, 0.01, 7, 0.02], 0.5, [9.5, 0, 7.5, 0]),
        ([5, 5, 1, -2], [-1, 5, -1, 2], 0.0, [5, 5, 0, 0]),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, -6], 0.2, [0, 2, 3, 4, -6]),
    ],
)
def test_ties_drops_the_smallest_elects_a_sign_and_averages_what_agrees(
    old: list[float], new: list[float], drop: float, merged: list[float]
) -> None:
    assert ties(tensor(old), tensor(new).float(), drop).tolist() == pytest.approx(merged)


def test_dare_leaves_changes_out_by_chance_and_makes_the_rest_larger() -> None:
    old, new = torch.ones(1000), torch.full((1000,), 3.0)
    assert torch.equal(dare(old, new, 0.0, random()), new)
    before = torch.get_rng_state()
    once = dare(old, new, 0.5, random(7))
    assert torch.equal(once, dare(old, new, 0.5, random(7)))
    assert torch.equal(torch.get_rng_state(), before)
    assert set(once.tolist()) == {1.0, 5.0}
    assert abs(once.mean().item() - 3) < 0.2


@pytest.mark.parametrize("drop", [1.0, -0.1, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(drop: float) -> None:
    for merge in (lambda x: ties(x, x, drop), lambda x: dare(x, x, drop, random())):
        with pytest.raises(InvalidSettingError, match="merge_drop"):
            merge(torch.ones(3))


def test_how_far_b_moved_is_a_share_of_its_length() -> None:
    assert merging.moved(None, of(1, 1)) is None
    assert merging.moved(of(1, 1), of(1, 4)) == 0.75
    assert merging.moved(of(1, 0), of(1, 0)) is None


@pytest.mark.parametrize(
    "name",
    [
        "x.lora_magnitude_vector.default.weight",
        "x.lora_embedding_A.default",
        "x.modules_to_save.default.weight",
        "x.bias",
    ],
)
def test_what_is_trained_beside_the_factors_is_refused_by_name(name: str) -> None:
    with pytest.raises(SLAOMergeError, match=name):
        merging.adapter_of({"x.lora_A.default.weight": torch.ones(1, 2), name: torch.ones(2, 2)})


def test_a_convolutions_factors_are_refused() -> None:
    with pytest.raises(SLAOMergeError):
        merging.adapter_of({"x.lora_A.default.weight": torch.ones(1, 2, 3, 3)})


def test_factors_go_to_parameters_and_back() -> None:
    there = merging.parameters_of(of(1, 2))
    assert sorted(there) == ["q.lora_A.default.weight", "q.lora_B.default.weight"]
    assert merging.adapter_of(there) == of(1, 2)
