"""From rows to forward passes: the order of the rows, and several rows in one pass without touching each other.

An optimizer step always takes ``batch_size * gradient_accumulation`` rows. Packing decides only how these rows are
spread over forward passes, never which rows a step learns from: with the loss summed over the whole step, the
gradient is the same for every spread, and so are steps, epochs and the learning-rate curve with packing on or off.

A packed pass is one sequence without padding: the rows one behind the other, positions starting at 0 for each.
Models see from the positions where a row begins and mask attention between rows (``loss.keeps_rows_apart`` tests that).
That mask is dense in torch's attention, so its cost grows with the square of the pass: ``capacity`` bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

CPU_CAPACITY = 512
"""Tokens in a packed pass on a CPU, where the dense mask is paid for in full: short rows gain little beyond this."""
CUDA_CAPACITY = 8192


Row: TypeAlias = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]
"""Token ids of a row and, for each, whether it is trained (both of shape [length])."""


class Rows(Protocol):
    """Tokenised rows: ``row(i)`` gives token ids and, for each, whether it is trained (both of shape [length]).

    ``lengths`` ([rows]) are their tokens.
    """

    @property
    def lengths(self) -> npt.NDArray[np.int64]: ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row: ...


@dataclass
class Pass:
    """One forward pass over ``tokens`` real tokens of ``rows`` rows.

    ``input_ids`` and ``position_ids`` are [batch, length]; ``attention_mask`` is of the same shape, or ``None`` for a
    packed pass (batch 1). ``predict_at`` are positions in the flattened pass whose next token is trained, and
    ``targets`` those next tokens (both [trained]).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    predict_at: torch.Tensor
    targets: torch.Tensor
    tokens: int
    rows: int

    @property
    def trained(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Pass:
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of ``count`` rows in an epoch: depends on seed and epoch alone, so a resumed run finds its place."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


class StepSampler:
    """Yields the rows of one optimizer step after the other; the last step of an epoch may have fewer.

    ``set_epoch`` chooses the order. Usable as a ``batch_sampler`` of a torch ``DataLoader``.
    """

    def __init__(self, count: int, rows_per_step: int, seed: int) -> None:
        self.count = count
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / self.rows_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.count, self.seed, self.epoch).tolist()
        for start in range(0, self.count, self.rows_per_step):
            yield order[start : start + self.rows_per_step]


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Spread items over as few bins of ``capacity`` as the heuristic finds: longest first, into the fullest that fits.

    An item longer than the capacity gets a bin of its own. The result depends on ``lengths`` alone: items keep their
    order within a bin, and bins the order of their first item.
    """
    bins: list[list[int]] = []
    free: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [(room, number) for number, room in enumerate(free) if room >= lengths[item]]
        if fitting:
            _, number = min(fitting)
            bins[number].append(item)
            free[number] -= lengths[item]
        else:
            bins.append([item])
            free.append(capacity - lengths[item])
    return sorted(sorted(each) for each in bins)


def capacity_for(device: torch.device, longest: int, batch_size: int, max_seq_length: int) -> int:
    """Tokens that one packed pass may hold.

    At least the longest row; at most what ``batch_size`` rows of ``max_seq_length`` tokens would have been, and on
    each kind of device no more than is worth its attention mask.
    """
    worth = CUDA_CAPACITY if device.type == "cuda" else CPU_CAPACITY
    return max(longest, min(batch_size * max_seq_length, worth))


@dataclass
class Spread:
    """How the rows of a step become passes: packed up to ``capacity`` tokens, or padded in groups of ``batch_size``."""

    packing: bool
    batch_size: int
    capacity: int
    pad_id: int

    def passes(self, rows: Sequence[Row]) -> list[Pass]:
        """The forward passes for ``rows`` (ids and trained flags of each)."""
        if self.packing:
            groups = best_fit_decreasing([len(ids) for ids, _ in rows], self.capacity)
            return [pack([rows[i] for i in group]) for group in groups]
        starts = range(0, len(rows), self.batch_size)
        return [pad(rows[start : start + self.batch_size], self.pad_id) for start in starts]

    def with_size(self, batch_size: int, capacity: int) -> Spread:
        return replace(self, batch_size=batch_size, capacity=capacity)

    def halved(self, passes: Sequence[Pass]) -> Spread | None:
        """A spread whose passes are half as large as ``passes``, or ``None`` where each holds one row already."""
        most = max((one.rows for one in passes), default=1)
        if most <= 1:
            return None
        largest = max(one.tokens for one in passes)
        return replace(self, batch_size=max(1, min(self.batch_size, most) // 2), capacity=max(1, largest // 2))


def trained_count(row: Row) -> int:
    """Supervised tokens of a row."""
    return len(_predictions(row[1]))


def _predictions(trained: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Positions in a row whose next token is trained. The first token is never predicted."""
    return np.flatnonzero(trained[1:])


def pack(rows: Sequence[Row]) -> Pass:
    """All ``rows`` in one sequence."""
    starts = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    flat = np.concatenate([ids for ids, _ in rows]).astype(np.int64)
    at = np.concatenate([start + _predictions(trained) for start, (_, trained) in zip(starts, rows, strict=False)])
    positions = np.concatenate([np.arange(len(ids)) for ids, _ in rows])
    return Pass(
        input_ids=torch.from_numpy(flat)[None],
        position_ids=torch.from_numpy(positions)[None],
        attention_mask=None,
        predict_at=torch.from_numpy(at),
        targets=torch.from_numpy(flat[at + 1]),
        tokens=len(flat),
        rows=len(rows),
    )


def pad(rows: Sequence[Row], pad_id: int) -> Pass:
    """``rows`` beside each other, padded on the right. Masks come from lengths, never from the padding token."""
    lengths = [len(ids) for ids, _ in rows]
    width = max(lengths)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    at = []
    for number, (row, trained) in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
        at.append(number * width + _predictions(trained))
    predict_at = np.concatenate(at)
    return Pass(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.arange(width).expand(len(rows), width),
        attention_mask=torch.from_numpy(mask),
        predict_at=torch.from_numpy(predict_at),
        targets=torch.from_numpy(ids.reshape(-1)[predict_at + 1]),
        tokens=sum(lengths),
        rows=len(rows),
    )
