"""The acceptance cases of SLAO's merge (arXiv:2512.23017), one promise each."""

from __future__ import annotations

import math

import pytest
import torch
from backprop.core.errors import SLAOMergeError
from backprop.train.multi_run.slao import Adapter, State, merge, orthonormal_rows, similarity, step_size
from torch import tensor


def adapter(seed: int, rank: int = 4, width: int = 16, height: int = 12) -> Adapter:
    random = torch.Generator().manual_seed(seed)
    return Adapter(
        {name: torch.randn(rank, width, generator=random) for name in ("q", "v")},
        {name: torch.randn(height, rank, generator=random) for name in ("q", "v")},
    )


def of(b: float) -> Adapter:
    """One layer of one number."""
    return Adapter({"q": tensor([[1.0]])}, {"q": tensor([[b]])})


def merged(adapters: list[Adapter]) -> State:
    state = None
    for number, each in enumerate(adapters):
        state = merge(state, each, f"run{number}")
    assert state is not None
    return state


def same(one: State, other: State) -> bool:
    parts = ((one.tuned.a, other.tuned.a), (one.tuned.b, other.tuned.b), (one.b, other.b))
    return (one.count, one.runs) == (other.count, other.runs) and all(
        torch.equal(x[name], y[name]) for x, y in parts for name in x
    )


def test_the_step_is_one_over_the_root_of_the_number_of_merges_without_a_floor() -> None:
    assert [round(step_size(i), 4) for i in (1, 2, 3, 4, 9, 16, 100, 10_000)] == [
        *(1.0, 0.7071, 0.5774, 0.5, 0.3333, 0.25, 0.1, 0.01)
    ]


@pytest.mark.parametrize("i", [0, -1, 1.0, True])
def test_merges_are_counted_from_one_in_whole_numbers(i: int) -> None:
    with pytest.raises(SLAOMergeError):
        step_size(i)


def test_the_first_run_is_the_result_as_it_is() -> None:
    first = adapter(0)
    state = merged([first])
    assert all(torch.equal(state.result.a[name], first.a[name]) for name in first.a)
    assert all(torch.equal(state.result.b[name], first.b[name]) for name in first.b)


@pytest.mark.parametrize("rank", [4, 8, 16, 32, 64])
def test_the_next_a_is_an_orthonormal_basis_of_the_same_rows_each_on_its_own_side(rank: int) -> None:
    a = adapter(0, rank, width=256).a["q"]
    q = orthonormal_rows(a)
    assert torch.allclose(q @ q.T, torch.eye(rank), atol=1e-6)
    assert (torch.diagonal(a @ q.T) > 0).all()
    assert torch.allclose(a @ q.T @ q, a, atol=1e-4)
    assert torch.allclose(q[0], a[0] / a[0].norm(), atol=1e-6)
    assert torch.allclose(orthonormal_rows(q), q, atol=1e-6)
    assert torch.allclose(orthonormal_rows(3 * q), q, atol=1e-6)
    assert torch.allclose(orthonormal_rows(-a), -q, atol=1e-6)
    assert torch.allclose(orthonormal_rows(tensor([[3.0, 0, 0], [4, 5, 0]])), tensor([[1.0, 0, 0], [0, 1, 0]]))


@pytest.mark.parametrize(
    "a", [tensor([[1.0, 2, 3], [0, 0, 0]]), tensor([[1.0, 2, 3], [1, 2, 3]]), torch.zeros(2, 3)], ids=repr
)
def test_rows_that_are_not_independent_still_give_an_orthonormal_basis(a: torch.Tensor) -> None:
    q = orthonormal_rows(a)
    assert q.isfinite().all()
    assert torch.allclose(q @ q.T, torch.eye(2), atol=1e-6)


def test_a_rank_above_the_width_is_refused_with_the_layer() -> None:
    with pytest.raises(SLAOMergeError, match="q: rank 4 is more than the 3"):
        orthonormal_rows(torch.ones(4, 3), "q")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_kind_of_number_gives_an_orthonormal_basis_in_float32(kind: torch.dtype) -> None:
    q = orthonormal_rows(adapter(0).a["q"].to(kind))
    assert q.dtype == torch.float32
    assert torch.allclose(q @ q.T, torch.eye(4), atol=1e-6)


def test_b_goes_on_from_the_last_fine_tuned_one_and_not_from_the_merged_one() -> None:
    state = merged([adapter(0), adapter(1)])
    assert torch.equal(state.start().b["q"], adapter(1).b["q"])
    assert not torch.equal(state.start().b["q"], state.b["q"])


def test_values_worked_out_by_hand() -> None:
    first = merged([of(0)])
    second = merge(first, of(1), "b")
    third = merge(second, Adapter({"q": tensor([[5.0]])}, {"q": tensor([[-1.0]])}), "c")
    assert [round(float(state.b["q"]), 4) for state in (first, second, third)] == [0, 0.7071, -0.2785]
    assert float(third.result.a["q"]) == 5
    # Beginning with 1, then 2, 3, 0.
    values, state = [], merged([of(1)])
    for number, b in enumerate((2, 3, 0)):
        state = merge(state, of(b), f"x{number}")
        values.append(round(float(state.b["q"]), 5))
    assert values == [1.70711, 2.45356, 1.22678]


def test_the_merged_b_is_the_weighted_sum_of_all_fine_tuned_ones() -> None:
    weights = [step_size(j) * math.prod(1 - step_size(k) for k in range(j + 1, 6)) for j in range(1, 6)]
    assert [round(each, 4) for each in weights] == [0.0342, 0.0826, 0.1596, 0.2764, 0.4472]
    runs = [adapter(seed) for seed in range(5)]
    expected = sum(weight * run.b["q"].double() for weight, run in zip(weights, runs, strict=True))
    assert torch.allclose(merged(runs).b["q"].double(), expected, atol=1e-6)


def test_equal_adapters_stay_what_they_are_and_order_matters() -> None:
    assert torch.allclose(merged([adapter(3)] * 4).b["q"], adapter(3).b["q"], atol=1e-6)
    forth, back = merged([adapter(0), adapter(1), adapter(2)]), merged([adapter(0), adapter(2), adapter(1)])
    assert not torch.allclose(forth.b["q"], back.b["q"], atol=1e-2)


def test_scaling_before_the_merge_is_scaling_after_it() -> None:
    runs = [adapter(seed) for seed in range(4)]
    scaled = [Adapter(run.a, {name: 2 * b for name, b in run.b.items()}) for run in runs]
    assert torch.allclose(merged(scaled).b["q"], 2 * merged(runs).b["q"], atol=1e-5)


def test_what_is_given_is_not_changed_and_what_is_returned_is_not_shared() -> None:
    one, two = adapter(0), adapter(1)
    state = merge(merged([one]), two, "second")
    for each in (*state.tuned.a.values(), *state.tuned.b.values(), *state.b.values(), *state.start().b.values()):
        each.zero_()
    for kept, seed in ((one, 0), (two, 1)):
        assert torch.equal(kept.a["q"], adapter(seed).a["q"])
        assert torch.equal(kept.b["q"], adapter(seed).b["q"])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (adapter(1, rank=8), r"q\.A is \[8, 16\] and was \[4, 16\]"),
        (adapter(1, width=17), r"q\.A is \[4, 17\]"),
        (adapter(1, height=13), r"q\.B is \[13, 4\]"),
        (adapter(1, rank=1), r"q\.A is \[1, 16\]"),
        (Adapter({"q": adapter(1).a["q"]}, {"q": adapter(1).b["q"]}), "without v"),
        (Adapter({**adapter(1).a, "k": adapter(1).a["q"]}, {**adapter(1).b, "k": adapter(1).b["q"]}), "new k"),
    ],
)
def test_other_layers_and_shapes_are_refused_by_name_and_change_nothing(other: Adapter, words: str) -> None:
    state = merged([adapter(0)])
    with pytest.raises(SLAOMergeError, match=words):
        merge(state, other, "other")
    assert same(state, merged([adapter(0)]))


@pytest.mark.parametrize("factor", ["a", "b"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("earlier", [[], [adapter(0)]], ids=["first", "second"])
def test_a_diverged_run_is_named_and_changes_nothing(factor: str, value: float, earlier: list[Adapter]) -> None:
    state, broken = (merged(earlier) if earlier else None), adapter(1)
    getattr(broken, factor)["v"][1, 1] = value
    with pytest.raises(SLAOMergeError, match=rf"v\.{factor.upper()} has values that are not finite"):
        merge(state, broken, "broken")
    assert state is None or same(state, merged(earlier))


def test_a_run_is_merged_once() -> None:
    state = merged([adapter(0), adapter(1)])
    with pytest.raises(SLAOMergeError, match="run1 is merged already"):
        merge(state, adapter(1), "run1")


def test_small_steps_in_bf16_do_not_stall() -> None:
    def stream(b: float) -> Adapter:
        return Adapter({"q": tensor([[1.0]], dtype=torch.bfloat16)}, {"q": tensor([[b]], dtype=torch.bfloat16)})

    one_bit_more = 1 + 2**-7
    state = merged([stream(1.0)] * 5 + [stream(one_bit_more)] * 20)
    assert 1.005 < float(state.b["q"]) <= one_bit_more


def test_the_state_does_not_grow_with_the_number_of_runs() -> None:
    sizes = [
        sum(each.numel() for part in (s.tuned.a, s.tuned.b, s.b) for each in part.values())
        for s in (merged([adapter(0)]), merged([adapter(i) for i in range(6)]))
    ]
    assert sizes[0] == sizes[1]


def test_similarity_is_the_cosine_of_the_updates() -> None:
    one = Adapter({"q": tensor([[1.0, 0]])}, {"q": tensor([[1.0], [1]])})
    other = Adapter({"q": tensor([[1.0, 0]])}, {"q": tensor([[1.0], [0]])})
    assert [round(similarity(*pair), 4) for pair in ((one, one), (one, other))] == [1, 0.7071]
    assert round(similarity(one, Adapter(one.a, {"q": -one.b["q"]})), 4) == -1
    assert similarity(one, Adapter({"q": tensor([[0.0, 1]])}, one.b)) == 0
    assert similarity(one, Adapter(one.a, {"q": torch.zeros(2, 1)})) == 0
    update = {
        seed: torch.cat([(a.b[n] @ a.a[n]).flatten() for n in a.a]) for seed, a in ((s, adapter(s)) for s in (4, 5))
    }
    assert math.isclose(
        similarity(adapter(4), adapter(5)), float(torch.cosine_similarity(update[4], update[5], dim=0)), abs_tol=1e-5
    )
