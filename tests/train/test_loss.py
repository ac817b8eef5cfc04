from __future__ import annotations

from typing import Any

import pytest
import torch
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.train import loss as losses
from backprop.train.loss import summed_loss, traits_of
from backprop.train.methods.sft import SFT
from backprop.train.model import Loaded
from backprop.train.packing import Batching, MicroBatch, pack, pad, step_rows
from backprop.train.trainer import StepLoop
from msgspec.structs import replace
from pinned_machine import within
from tiny_language_model import VOCABULARY
from torch.nn import functional
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    masking_utils,
)

SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def rows(ragged: Any) -> Any:
    return ragged([31, 12, 44, 20, 9, 27, 38, 16])


def full_logit_loss(model: torch.nn.Module, one: MicroBatch) -> torch.Tensor:
    """The plain way: logits of every position from the model's own forward, labels shifted, the rest ignored."""
    inputs = {"input_ids": one.input_ids, "position_ids": one.position_ids, "attention_mask": one.attention_mask}
    logits = model(**inputs, use_cache=False).logits
    labels = torch.full((one.input_ids.numel(),), -100)
    labels[one.predict_at] = one.targets
    return functional.cross_entropy(logits.flatten(0, 1).float(), labels, ignore_index=-100, reduction="sum")


def gradient(loaded: Loaded) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in loaded.model.parameters() if p.grad is not None])
    loaded.model.zero_grad()
    return found


@pytest.mark.parametrize("packed", [True, False])
def test_the_loss_at_trained_positions_is_the_full_logit_loss(loaded_tiny: Loaded, rows: Any, packed: bool) -> None:
    some = [rows.row(i) for i in range(4)]
    one = pack(some) if packed else pad(some)

    ours = summed_loss(loaded_tiny.model, one, plain_head=True)
    ours.backward()
    our_gradient = gradient(loaded_tiny)
    theirs = full_logit_loss(loaded_tiny.model, one)
    theirs.backward()

    assert abs(ours.item() / theirs.item() - 1) < within(1e-6, bf16=1e-3)
    assert (our_gradient - gradient(loaded_tiny)).norm() / our_gradient.norm() < within(1e-6, bf16=1e-2)


def test_the_loss_in_pieces_is_the_loss(loaded_tiny: Loaded, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pack([rows.row(i) for i in range(8)])
    whole = summed_loss(loaded_tiny.model, one, plain_head=True)
    whole.backward()
    whole_gradient = gradient(loaded_tiny)

    monkeypatch.setattr(losses, "PIECE_BYTES", 4 * VOCABULARY * 10)  # ten positions at a time
    pieces = summed_loss(loaded_tiny.model, one, plain_head=True)
    pieces.backward()

    assert abs(pieces.item() / whole.item() - 1) < within(1e-6, bf16=1e-3)
    assert (gradient(loaded_tiny) - whole_gradient).norm() / whole_gradient.norm() < within(1e-6, bf16=1e-2)


def test_a_packed_row_has_the_loss_that_it_has_alone(loaded_tiny: Loaded, rows: Any) -> None:
    every = [rows.row(i) for i in range(len(rows))]
    packed = pack(every)
    logits = loaded_tiny.model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits[0]
    each = functional.cross_entropy(logits[packed.predict_at].float(), packed.targets, reduction="none")
    counts = [int(trained[1:].sum()) for _, trained in every]

    for row, part in zip(every, each.split(counts), strict=True):
        alone = full_logit_loss(loaded_tiny.model, pack([row]))
        assert abs(part.sum().item() / alone.item() - 1) < within(1e-5, bf16=2e-3)


def test_the_model_keeps_packed_rows_apart_and_one_without_a_block_mask_is_found_out(
    loaded_tiny: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert traits_of(loaded_tiny.model.eval()).keeps_rows_apart

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)

    assert not traits_of(loaded_tiny.model).keeps_rows_apart


def test_a_plain_head_is_told_from_scaled_and_capped_ones(loaded_tiny: Loaded) -> None:
    granite = GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)).eval()
    gemma = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=30.0)).eval()

    assert traits_of(loaded_tiny.model.eval()).plain_head
    assert not traits_of(granite).plain_head
    assert not traits_of(gemma).plain_head


class _ScaledWords(LlamaForCausalLM):
    """Asks its decoder about embeddings that it has scaled itself."""

    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        return super().forward(inputs_embeds=8 * self.model.embed_tokens(input_ids), **options)


def test_a_decoder_that_the_model_asks_otherwise_than_the_loss_would_is_no_plain_one() -> None:
    assert not traits_of(_ScaledWords(LlamaConfig(**SMALL)).eval()).plain_head


def test_an_ordinary_model_is_tried_in_two_passes(loaded_tiny: Loaded) -> None:
    passes = []
    layer = loaded_tiny.model.get_base_model().model.layers[0]
    layer.register_forward_hook(lambda *_: passes.append(1))

    assert traits_of(loaded_tiny.model.eval()) == (True, True, False)
    assert len(passes) == 2


@pytest.mark.parametrize("kind", ["granite", "gemma2"])
def test_scaling_and_capping_are_part_of_the_loss(kind: str, rows: Any) -> None:
    torch.manual_seed(0)
    if kind == "granite":
        model = GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)).eval()
    else:
        model = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=1.0)).eval()
    one = pad([rows.row(i) for i in range(3)])

    ours = summed_loss(model, one, plain_head=traits_of(model).plain_head)

    assert abs(ours.item() / full_logit_loss(model, one).item() - 1) < within(1e-6, bf16=1e-3)
    assert abs(summed_loss(model, one, plain_head=True).item() / ours.item() - 1) > 1e-2


def step_loop(loaded: Loaded, config: RunConfig, rows: Any) -> StepLoop:
    return StepLoop(loaded, SFT(), config, rows, Schedule.of(config, len(rows)))


def test_eight_times_one_four_times_two_one_times_eight_and_packed_give_one_gradient(
    loaded_tiny: Loaded, tiny_config: RunConfig, rows: Any
) -> None:
    config = replace(tiny_config, batch_size=1, gradient_accumulation=8, gradient_checkpointing=False)
    ways = [Batching(False, 1, 0), Batching(False, 2, 0), Batching(False, 8, 0), Batching(True, 1, 64)]
    every = [rows.row(i) for i in range(8)]

    results = []
    for batching in ways:
        loop = step_loop(loaded_tiny, config, rows)
        loop.batching = batching
        loop.gradient(every)
        results.append((loop.metrics.loss, gradient(loaded_tiny)))

    first_loss, first = results[0]
    for loss, other in results[1:]:
        assert abs(loss / first_loss - 1) < within(1e-6, bf16=1e-3)
        assert (other - first).norm() / first.norm() < within(1e-6, bf16=1e-2)


def test_the_last_step_of_an_epoch_is_weighed_by_its_own_tokens(
    loaded_tiny: Loaded, tiny_config: RunConfig, rows: Any
) -> None:
    config = replace(tiny_config, batch_size=3, gradient_accumulation=1, gradient_checkpointing=False, packing=False)
    steps = [step_rows(len(rows), 3, config.seed, number) for number in range(3)]
    assert [len(step) for step in steps] == [3, 3, 2]
    last = [rows.row(index) for index in steps[-1]]
    loop = step_loop(loaded_tiny, config, rows)

    loop.gradient(last)

    batch = pad(last)
    found = gradient(loaded_tiny)
    expected = full_logit_loss(loaded_tiny.model, batch) / batch.supervised
    expected.backward()
    assert abs(loop.metrics.loss / expected.item() - 1) < within(1e-6, bf16=1e-3)
    assert (found - gradient(loaded_tiny)).norm() / found.norm() < within(1e-6, bf16=3e-2)
