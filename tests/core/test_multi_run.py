"""Rates, patience and what a session refuses, before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from backprop.core.errors import InvalidSettingError
from backprop.core.multi_run import advice, learning_rates, out_of_patience, require_mergeable, runs_of
from backprop.core.resolve import resolve
from backprop.core.settings import MultiConfig, RunConfig


@pytest.mark.parametrize(
    ("first", "last", "decay", "rates"),
    [
        (2e-4, 5e-5, "linear", [2e-4, 1.625e-4, 1.25e-4, 0.875e-4, 0.5e-4]),
        (1e-3, 1e-4, "cosine", [1e-3, 0.8682e-3, 0.55e-3, 0.2318e-3, 0.1e-3]),
    ],
)
def test_the_learning_rate_falls_from_the_first_run_to_the_last(
    first: float, last: float, decay: str, rates: list[float]
) -> None:
    assert learning_rates(first, last, 5, decay) == pytest.approx(rates, rel=1e-4)
    assert learning_rates(first, last, 1, decay) == [first]


def test_patience_compares_with_the_best_and_never_ends_at_the_first_run() -> None:
    losses = [1, 0.9, 0.95, 0.92]
    assert [out_of_patience(losses[: n + 1], 2) for n in range(4)] == [False, False, False, True]
    assert not out_of_patience([1], 1)
    assert not out_of_patience([], 1)


def test_how_many_runs_there_are() -> None:
    assert runs_of(MultiConfig(tasks=["a"])) == 5
    assert runs_of(MultiConfig(tasks=["a", "b", "c"])) == 3
    assert runs_of(MultiConfig(tasks=["a"], runs=2)) == 2
    assert resolve({"preset": "fast", "tasks": ["a"]}).multi().runs == 3
    assert resolve({"preset": "fast", "tasks": ["a", "b"]}).multi().runs is None
    assert resolve({"preset": "fast", "tasks": ["a"], "runs": "7"}).multi().runs == 7


@pytest.mark.parametrize(
    ("field", "config", "multi"),
    [
        ("mode", {"mode": "full"}, {}),
        ("method", {"method": "dpo"}, {}),
        ("backend", {"backend": "mlx"}, {}),
        ("use_dora", {"use_dora": True}, {}),
        ("init_lora_weights", {"init_lora_weights": "pissa"}, {}),
        ("init_lora_weights", {"init_lora_weights": "loftq"}, {}),
        ("held_out", {"held_out": "some/file.jsonl"}, {}),
        ("runs", {}, {"tasks": ["a", "b"], "runs": 3}),
        ("merge_weight", {}, {"merge_weight": 0.5}),
        ("final_lr", {}, {"final_lr": 1e-5}),
        ("run_patience", {"held_out": "none"}, {"run_patience": 2}),
    ],
)
def test_what_cannot_be_merged_is_refused_by_its_setting(
    field: str, config: dict[str, Any], multi: dict[str, Any]
) -> None:
    require_mergeable(RunConfig(data="d"), MultiConfig(tasks=["d"]))
    with pytest.raises(InvalidSettingError, match=f"^{field}: ") as caught:
        require_mergeable(RunConfig(data="d", **config), MultiConfig(**multi))
    assert caught.value.hint


def test_what_merging_gave_against_joint_training_is_said_beforehand() -> None:
    for multi in (MultiConfig(tasks=["a"]), MultiConfig(tasks=["a", "b"])):
        (line,) = advice(multi)
        assert ".789" in line
        assert "1.000" in line
    assert "gain nothing" in advice(MultiConfig(tasks=["a"]))[0]
    assert "--replay" in advice(MultiConfig(tasks=["a", "b"]))[0]
