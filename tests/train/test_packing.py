from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from backprop.train.methods.sft import SFT
from backprop.train.packing import Batching, best_fit_decreasing, epoch_order, pack, pad, step_rows, token_budget
from hypothesis import given
from hypothesis import strategies as st

PAD = 0


@given(st.lists(st.integers(1, 120), max_size=60), st.integers(1, 100))
def test_every_item_is_in_one_bin_and_no_bin_holds_more_than_fits(lengths: list[int], capacity: int) -> None:
    bins = best_fit_decreasing(lengths, capacity)

    assert sorted(item for each in bins for item in each) == list(range(len(lengths)))
    for each in bins:
        assert sum(lengths[item] for item in each) <= capacity or len(each) == 1


@given(st.lists(st.integers(1, 120), min_size=1, max_size=40), st.integers(1, 8))
def test_padded_rows_are_beside_those_of_their_length(lengths: list[int], size: int) -> None:
    def padded(groups: list[list[int]]) -> int:
        return sum(len(group) * max(lengths[place] for place in group) for group in groups)

    found, places = Batching(False, size, 0).groups(lengths), list(range(len(lengths)))

    assert sorted(place for group in found for place in group) == places
    assert {len(group) for group in found} <= {size, len(lengths) % size}
    if not len(lengths) % size:  # with a smaller group among them, another order can be the better one by a row
        assert padded(found) <= padded([places[start : start + size] for start in range(0, len(lengths), size)])
    spans = [[lengths[place] for place in group] for group in found]
    ends = sorted((max(span), min(span)) for span in spans)
    assert all(shorter[0] <= longer[1] for shorter, longer in pairwise(ends))
    assert Batching(False, 1, 0).groups(lengths) == [[place] for place in places]


def test_the_longest_are_placed_first_and_into_the_fullest_bin_that_has_room() -> None:
    assert best_fit_decreasing([3, 7, 5, 2, 3], 10) == [[0, 1], [2, 3, 4]]


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 5))
def test_an_epoch_visits_every_row_once(count: int, per_step: int, epoch: int) -> None:
    steps_per_epoch = -(-count // per_step)

    steps = [step_rows(count, per_step, 3, epoch * steps_per_epoch + place) for place in range(steps_per_epoch)]

    assert sorted(row for step in steps for row in step) == list(range(count))
    assert all(len(step) == per_step for step in steps[:-1])
    assert [row for step in steps for row in step] == epoch_order(count, 3, epoch).tolist()


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert epoch_order(50, 1, 2).tolist() == epoch_order(50, 1, 2).tolist()
    assert epoch_order(50, 1, 2).tolist() != epoch_order(50, 1, 3).tolist()
    assert epoch_order(50, 1, 2).tolist() != epoch_order(50, 2, 2).tolist()


def test_positions_start_again_with_every_packed_row(ragged: Any) -> None:
    rows = ragged([4, 3])

    one = pack([rows.row(0), rows.row(1)])

    assert one.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert one.attention_mask is None
    assert one.input_ids[0].tolist() == [*rows.row(0)[0].tolist(), *rows.row(1)[0].tolist()]
    assert (one.tokens, one.rows) == (7, 2)


def test_a_row_never_predicts_the_first_token_of_the_next() -> None:
    ids = np.array([5, 6, 7], dtype=np.int32)
    everything = np.ones(3, dtype=np.bool_)

    one = pack([(ids, everything), (ids, everything)])

    assert one.predict_at.tolist() == [0, 1, 3, 4]
    assert one.targets.tolist() == [6, 7, 6, 7]


@pytest.mark.parametrize("batching", [Batching(True, 3, 64), Batching(False, 3, 64)])
def test_both_ways_of_spreading_train_the_same_tokens(batching: Batching, ragged: Any) -> None:
    rows = ragged([9, 30, 17, 25, 4, 11, 40])
    every = [rows.row(i) for i in range(len(rows))]

    batches = SFT.collate(None, every, batching)

    assert sum(one.tokens for one in batches) == 136
    assert sum(one.rows for one in batches) == 7
    targets = torch.cat([one.targets for one in batches])
    expected = np.concatenate([ids[1:][trained[1:]] for ids, trained in every])
    assert sorted(targets.tolist()) == sorted(expected.tolist())
    for one in batches:
        assert torch.equal(one.input_ids.flatten()[one.predict_at + 1], one.targets)


def test_a_trained_token_that_looks_like_padding_stays_trained() -> None:
    ids = np.array([5, PAD, PAD], dtype=np.int32)
    longer = np.arange(10, 16, dtype=np.int32)

    one = pad([(ids, np.array([False, True, True])), (longer, np.ones(6, dtype=np.bool_))])

    assert one.targets.tolist() == [PAD, PAD, 11, 12, 13, 14, 15]
    assert one.attention_mask is not None
    assert one.attention_mask.tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]


def test_a_pass_holds_the_longest_row_and_never_more_than_the_batch_would() -> None:
    cpu = torch.device("cpu")

    assert token_budget(cpu, longest=900, batch_size=1, max_seq_length=2048) == 900
    assert token_budget(cpu, longest=60, batch_size=1, max_seq_length=256) == 256
    assert token_budget(cpu, longest=60, batch_size=8, max_seq_length=2048) == 512
