"""Attention row by row: as the dense mask has it, for any mask, and no more work than the rows alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backprop.train import row_attention
from backprop.train.row_attention import RowAttention, block_ends
from hypothesis import given
from hypothesis import strategies as st
from torch import nn


def causal_within(lengths: list[int], window: int = 1000) -> torch.Tensor:
    place = torch.arange(sum(lengths))
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    back = place[:, None] - place[None, :]
    return (row[:, None] == row[None, :]) & (back >= 0) & (back < window)


def test_blocks_end_where_rows_do() -> None:
    assert block_ends(causal_within([3, 1, 4])) == [3, 4, 8]
    assert block_ends(causal_within([3, 1, 4], window=2)) == [3, 4, 8]
    assert block_ends(causal_within([5])) == [5]
    looks_back = causal_within([3, 1, 4])
    looks_back[5, 2] = True
    assert block_ends(looks_back) == [8]
    looks_ahead = causal_within([3, 1, 4])
    looks_ahead[0, 3] = True
    assert block_ends(looks_ahead) == [4, 8]
    blind = causal_within([3, 1, 4])
    blind[3] = False
    assert block_ends(blind) == [8]


@given(st.lists(st.booleans(), min_size=36, max_size=36))
def test_nothing_that_is_attended_to_is_beyond_a_block(entries: list[bool]) -> None:
    mask = torch.tensor(entries).view(6, 6)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    start = 0
    for end in block_ends(mask):
        inside[start:end, start:end] = True
        start = end
    assert not bool((mask & ~inside).any())


@pytest.mark.parametrize("window", [1000, 3])
def test_packed_rows_get_the_attention_and_gradients_of_the_dense_mask(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, plain, asked = [5, 1, 9, 7], row_attention._plain, []

    def noted(module: Any, query: torch.Tensor, *rest: Any, **more: Any) -> Any:
        asked.append(query.shape[2])
        return plain(module, query, *rest, **more)

    monkeypatch.setattr(row_attention, "_plain", noted)
    mask = causal_within(lengths, window)[None, None]
    module = nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, sum(lengths), 8, requires_grad=True) for heads in (4, 2, 2)]
    found = []
    for attention in (plain, RowAttention()):
        made, _ = attention(module, *inputs, mask, dropout=0.0, scaling=0.3)
        found.append([made, *torch.autograd.grad(made.square().sum(), inputs)])
    for dense, apart in zip(*found, strict=True):
        torch.testing.assert_close(apart, dense, rtol=1e-5, atol=1e-5)
    assert asked == lengths


def test_what_is_no_packed_sequence_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(row_attention, "_plain", lambda module, query, *rest, **more: asked.append(query.shape[2]))
    attention, module = RowAttention(), nn.Module()
    one, two = (torch.zeros(batch, 1, 8, 4) for batch in (1, 2))
    rows = causal_within([3, 5])[None, None]
    attention(module, one, one, one, None)
    attention(module, two, two, two, rows.expand(2, 1, 8, 8))
    attention(module, one[:, :, :1], one, one, rows[:, :, :1])
    attention(module, one, one, one, torch.zeros(1, 1, 8, 8))
    attention(module, one, one, one, causal_within([8])[None, None])
    assert asked == [8, 8, 1, 8, 8]
