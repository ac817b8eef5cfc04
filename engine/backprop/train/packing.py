"""From rows to micro-batches: the order of the rows, and several rows in one sequence without touching each other.

An optimizer step always takes ``batch_size * gradient_accumulation`` rows. Packing decides only how these rows are
spread over micro-batches, never which rows a step learns from: with the loss summed over the whole step, the
gradient is the same for every spread, and so are steps, epochs and the learning-rate curve with packing on or off.

A packed micro-batch is one sequence without padding: the rows one behind the other, positions starting at 0 for each.
Models see from the positions where a row begins and mask attention between rows (``loss.traits_of`` tests that).
That mask is dense in torch's attention, so its cost grows with the square of the sequence: the token budget bounds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from backprop.hardware.estimate import CPU_TOKEN_BUDGET, CUDA_TOKEN_BUDGET

Row: TypeAlias = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]
"""Token ids of a row and its loss mask: for each token, whether predicting it is in the loss (both [length])."""


@dataclass
class MicroBatch:
    """One forward pass over ``tokens`` real tokens of ``rows`` rows.

    ``input_ids`` and ``position_ids`` are [batch, length]; ``attention_mask`` is of the same shape, or ``None`` where
    the rows are packed (batch 1). ``predict_at`` are positions in the flattened input whose next token is supervised,
    and ``targets`` those next tokens (both [supervised]), sequence after sequence: ``counts`` of each.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    predict_at: torch.Tensor
    targets: torch.Tensor
    counts: list[int]
    tokens: int
    rows: int
    places: Sequence[int] = field(default=(), kw_only=True)
    """Which of the rows that were collated it holds."""

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return len(self.targets)

    @property
    def weight(self) -> int:
        """What the loss is summed over, and the sum of a step is divided by: supervised tokens."""
        return self.supervised

    @property
    def row_weights(self) -> npt.NDArray[np.int64]:
        """What of the weight each row has."""
        return np.array(self.counts)

    def to(self, device: torch.device) -> MicroBatch:
        if device.type == "cpu":
            return self
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


@dataclass
class RowBatch(MicroBatch):
    """A micro-batch whose loss is a sum over its rows, however many tokens they have."""

    @property
    def weight(self) -> int:
        """Rows."""
        return self.rows

    @property
    def row_weights(self) -> npt.NDArray[np.int64]:
        return np.ones(self.rows, np.int64)


@lru_cache(maxsize=1)
def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of ``count`` rows in an epoch: depends on seed and epoch alone, so a resumed run finds its place."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


def step_rows(count: int, rows_per_step: int, seed: int, step: int) -> list[int]:
    """Which of ``count`` rows optimizer step ``step`` (from 0) takes; the last step of an epoch may have fewer."""
    epoch, place = divmod(step, -(-count // rows_per_step))
    chosen: list[int] = epoch_order(count, seed, epoch)[place * rows_per_step : (place + 1) * rows_per_step].tolist()
    return chosen


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


def token_budget(device: torch.device, longest: int, batch_size: int, max_seq_length: int | str) -> int:
    """Tokens that one packed micro-batch may hold.

    At least the longest row; at most what ``batch_size`` rows of ``max_seq_length`` tokens would have been, and on
    each kind of device no more than is worth its attention mask.
    """
    assert isinstance(max_seq_length, int)
    worth = CUDA_TOKEN_BUDGET if device.type == "cuda" else CPU_TOKEN_BUDGET
    return max(longest, min(batch_size * max_seq_length, worth))


@dataclass(frozen=True)
class Batching:
    """How rows become micro-batches: packed up to ``token_budget`` tokens, or padded in groups of ``batch_size``.

    Padded rows are beside those of about their length: there is less padding, and a step has the same rows.
    """

    packing: bool
    batch_size: int
    token_budget: int

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which rows, by their place in ``lengths``, share a micro-batch."""
        if self.packing:
            return best_fit_decreasing(lengths, self.token_budget)
        longest_first = sorted(range(len(lengths)), key=lambda place: -lengths[place])
        starts = range(0, len(lengths), self.batch_size)
        return sorted(sorted(longest_first[start : start + self.batch_size]) for start in starts)

    def join(self, rows: Sequence[Row], places: Sequence[int] = ()) -> MicroBatch:
        """``rows``, which have these places among those that are collated, as one micro-batch."""
        return replace(pack(rows) if self.packing else pad(rows), places=places)

    def resized(self, batch_size: int, token_budget: int) -> Batching:
        return replace(self, batch_size=batch_size, token_budget=token_budget)

    def halved(self, batches: Sequence[MicroBatch]) -> Batching | None:
        """Batching half as large as ``batches``, or ``None`` where each holds one row already."""
        most = max((batch.rows for batch in batches), default=1)
        if most <= 1:
            return None
        largest = max(batch.tokens for batch in batches)
        return replace(self, batch_size=max(1, min(self.batch_size, most) // 2), token_budget=max(1, largest // 2))


def predictions(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Positions in a row whose next token is supervised. The first token is never predicted."""
    return np.flatnonzero(mask[1:])


def pack(rows: Sequence[Row]) -> MicroBatch:
    """All ``rows`` in one sequence."""
    starts = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    flat = np.concatenate([ids for ids, _ in rows]).astype(np.int64)
    places = [start + predictions(mask) for start, (_, mask) in zip(starts, rows, strict=False)]
    at = np.concatenate(places)
    positions = np.concatenate([np.arange(len(ids)) for ids, _ in rows])
    return MicroBatch(
        input_ids=torch.from_numpy(flat)[None],
        position_ids=torch.from_numpy(positions)[None],
        attention_mask=None,
        predict_at=torch.from_numpy(at),
        targets=torch.from_numpy(flat[at + 1]),
        counts=[len(each) for each in places],
        tokens=len(flat),
        rows=len(rows),
    )


def pad(rows: Sequence[Row]) -> MicroBatch:
    """``rows`` beside each other, padded on the right.

    Masks come from lengths, never from a padding token: any will do, because it is neither attended to nor a target.
    """
    lengths = [len(ids) for ids, _ in rows]
    width = max(lengths)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    attended = np.zeros((len(rows), width), dtype=np.int64)
    at = []
    for number, (row, mask) in enumerate(rows):
        ids[number, : len(row)] = row
        attended[number, : len(row)] = 1
        at.append(number * width + predictions(mask))
    predict_at = np.concatenate(at)
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.arange(width).expand(len(rows), width),
        attention_mask=torch.from_numpy(attended),
        predict_at=torch.from_numpy(predict_at),
        targets=torch.from_numpy(ids.reshape(-1)[predict_at + 1]),
        counts=[len(each) for each in at],
        tokens=sum(lengths),
        rows=len(rows),
    )
