"""Several processes, one run: the same numbers as one, and one end for all of them."""

from __future__ import annotations

from typing import Any

import pytest
from backprop.core.events import Evaluated, Step
from backprop.core.settings import RunConfig
from msgspec.structs import replace
from runs_in_process import of, train


def numbers(events: list[Any]) -> list[tuple[Any, ...]]:
    return [(each.loss, each.grad_norm, each.trained_tokens, each.tokens_seen) for each in of(events, Step)]


def test_two_processes_are_one(tiny_config: RunConfig) -> None:
    # 37 rows are trained: the last step of an epoch has one, so that a rank has none.
    config = replace(tiny_config, steps=12, batch_size=3, gradient_accumulation=2, lora_dropout=0.0, held_out="3")
    config = replace(tiny_config, steps=9, batch_size=3, gradient_accumulation=1, lora_dropout=0.0)
    alone, _ = train(config, [])
    both, _ = train(replace(config, processes=2), [])
    for one, two in zip(numbers(alone), numbers(both), strict=True):
        print(one, two)
        assert two == pytest.approx(one, rel=1e-5)
