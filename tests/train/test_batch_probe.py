"""The micro-batch that is settled by measuring, on a card whose memory is played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backprop.core import events as ev
from backprop.core.events import BATCH_SETTLED, Event, Step
from backprop.core.models import find_architecture
from backprop.core.settings import RunConfig
from backprop.hardware.estimate import Shape, estimate
from backprop.hardware.fit import first_batch_size
from backprop.runs.directory import RunDirectory
from backprop.train import run
from backprop.train.batch_probe import settle
from backprop.train.methods import sft
from backprop.train.model import Loaded
from backprop.train.trainer import Schedule, StepLoop
from msgspec.structs import replace
from pinned_machine import within
from runs_in_process import go_on, of


class PlayedCard:
    """Each token of a micro-batch takes a byte; one that takes more than ``size`` does not get it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: float, to_come: int) -> None:
        self._size, self._to_come, self._used = size, to_come, 0
        self.passes: list[int] = []
        self._plain = sft.summed_loss
        monkeypatch.setattr(sft, "summed_loss", self._pass)

    def _pass(self, model: Any, one: Any, *, plain_head: bool) -> torch.Tensor:
        self.passes.append(one.input_ids.numel())
        self._used = one.input_ids.numel()
        if self._used > self._size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._plain(model, one, plain_head=plain_head)

    def usable(self) -> int:
        return int((self._size + self._to_come) / 0.95) + 1

    def reset(self) -> None:
        self._used = 0

    def peak(self) -> int:
        return self._used


Begin = Callable[..., tuple[StepLoop, PlayedCard]]


@pytest.fixture
def begin(loaded_tiny: Loaded, tiny_config: RunConfig, ragged: Any, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """A step loop that is estimated to take two of sixteen rows in a pass, and a card of some size."""
    plain = replace(tiny_config, batch_size=2, gradient_accumulation=8, packing=False)
    rows = ragged([12, 40, 20] * 8)

    def make(size: float, optim: str = "adamw", state: float = 8) -> tuple[StepLoop, PlayedCard]:
        config = replace(plain, optim=optim)
        loop = StepLoop(loaded_tiny, sft.SFT(), config, rows, Schedule.of(config, len(rows)))
        trained = sum(weight.numel() for weight in loaded_tiny.model.parameters() if weight.requires_grad)
        return loop, PlayedCard(monkeypatch, size, round((4 + state) * trained))

    return make


@pytest.mark.parametrize(
    ("size", "rows"),
    [(1000, 16), (330, 8), (85, 2), (79, 1), (1, 1)],
    ids=["all rows of a step", "raised", "as estimated", "halved", "nothing fits"],
)
def test_as_many_rows_are_taken_as_fit(begin: Begin, size: int, rows: int) -> None:
    loop, card = begin(size)
    settle(loop, card)
    assert loop.batching.batch_size == rows
    # It is the longest row that is measured.
    assert all(taken % 40 == 0 for taken in card.passes)


def test_room_is_left_for_the_state_of_the_run_s_own_optimizer(begin: Begin) -> None:
    loop, card = begin(330, "adamw_8bit", 2 + 8 / 256)
    settle(loop, card)
    assert loop.batching.batch_size == 8


def test_measuring_leaves_no_trace_in_what_is_learned(begin: Begin) -> None:
    loop, card = begin(330)
    model = loop.loaded.model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5  # it draws random numbers
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    settle(loop, card)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (loop.step, loop.recovery.halvings, card.peak()) == (0, 0, 0)
    assert not loop.optimizer.state


def test_a_run_whose_batch_is_open_measures_it_and_learns_the_same(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_config, batch_size=1, gradient_accumulation=4, packing=False, lora_dropout=0.0)
    plain = of(go_on(RunDirectory.create(config), "start"), Step)
    card = PlayedCard(monkeypatch, 10**6, 10**9)
    monkeypatch.setattr(run, "card_of", lambda device: card)
    assert BATCH_SETTLED not in codes(go_on(RunDirectory.create(config), "start"))
    found = go_on(RunDirectory.create(replace(config, batch_size="auto")), "start")
    assert BATCH_SETTLED in codes(found)
    # Four passes a step in the run before; here three to measure (of 1, 2 and 4 rows), and one a step.
    assert len(card.passes) == 4 * len(plain) + 3 + len(plain)
    losses = [step.loss for step in of(found, Step)]
    assert losses == pytest.approx([step.loss for step in plain], rel=within(1e-5, bf16=1e-2))


def codes(events: list[Event]) -> list[str]:
    return [event.code for event in of(events, ev.Warning)]


def test_a_run_begins_with_what_is_estimated_to_fit(tiny_config: RunConfig) -> None:
    config = replace(
        tiny_config, model="qwen2.5-7b", batch_size="auto", gradient_accumulation=None, max_seq_length=2048
    )
    model = find_architecture("qwen2.5-7b")
    two = estimate(model, replace(Shape.of(config), batch_size=2)).total
    assert first_batch_size(config, two) == 2
    assert first_batch_size(config, two - 1) == 1
    assert first_batch_size(config, 35 * 2**30) == 16
    assert first_batch_size(replace(config, gradient_accumulation=3), 35 * 2**30) == 4
    # On a CPU a packed pass of 512 tokens is filled.
    assert [first_batch_size(replace(config, max_seq_length=each), 0) for each in (2048, 320, 64, 16)] == [1, 2, 8, 16]
    # Of a model that is not here yet nothing is known but the card.
    assert first_batch_size(replace(config, model="somebody/nothing"), 16 * 2**30) == 2
