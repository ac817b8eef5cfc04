"""Attention of packed rows, each row by itself: on a CPU the dense mask between rows is computed and thrown away.

Rows that share a sequence do not attend to each other, so the mask falls into blocks, and attention within the blocks
is all of it. A short row costs what it costs alone, however long the sequence is that it was packed into.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_plain = ALL_ATTENTION_FUNCTIONS["sdpa"]


def block_ends(mask: torch.Tensor) -> list[int]:
    """Where the blocks of a mask end ([length, length], true where a query attends to a key).

    It ends wherever no query attends across: to a key on the other side of the cut.
    """
    length = len(mask)
    seen = mask.byte()
    first, last = seen.argmax(-1), length - 1 - seen.flip(-1).argmax(-1)
    blind = ~mask.any(-1)  # a query without a key goes with its neighbours
    last[blind] = length - 1
    first[blind] = 0
    earliest, latest = first.flip(0).cummin(0).values.flip(0), last.cummax(0).values
    cuts = torch.arange(1, length, device=mask.device)
    apart = (earliest[1:] >= cuts) & (latest[:-1] < cuts)
    return [*cuts[apart].tolist(), length]


class RowAttention:
    """In place of transformers' attention by torch's kernels, for every model of this process."""

    def __init__(self) -> None:
        self._mask: weakref.ref[torch.Tensor] | None = None
        self._ends: list[int] = []

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Arguments and result as transformers has them: query is [batch, heads, length, width]."""
        ends = self._ends_of(query, key, attention_mask) if more.get("position_bias") is None else []
        if attention_mask is None or len(ends) < 2:
            made: tuple[torch.Tensor, None] = _plain(module, query, key, value, attention_mask, **more)
            return made
        parts, start = [], 0
        for end in ends:
            row = (each[:, :, start:end] for each in (query, key, value))
            parts.append(_plain(module, *row, attention_mask[:, :, start:end, start:end], **more)[0])
            start = end
        return torch.cat(parts, 1), None

    def _ends_of(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
        """Of a packed sequence on a CPU; none of anything else. The layers of a model share a mask."""
        # A tensor without numbers (torch's fake ones, by which memory is counted) has none to look at.
        if type(mask) is not torch.Tensor or query.device.type != "cpu" or mask.dtype != torch.bool:
            return []
        if mask.shape != (1, 1, query.shape[2], key.shape[2]) or query.shape[2] != key.shape[2]:
            return []
        if self._mask is None or self._mask() is not mask:
            self._mask, self._ends = weakref.ref(mask), block_ends(mask[0, 0])
        return self._ends


def use_row_attention() -> None:
    """Have models that are loaded from here on compute attention so."""
    ALL_ATTENTION_FUNCTIONS["sdpa"] = RowAttention()
