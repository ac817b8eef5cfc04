"""The step loop's guards: each of these would go unseen in a loss curve, or be seen too late."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backprop.core import events as ev
from backprop.core.errors import TrainingError
from backprop.core.events import Step, StepSkipped
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.train import model as models
from backprop.train import trainer
from backprop.train.callbacks import Liveness
from backprop.train.loss import Loss, base_model
from backprop.train.methods import sft
from backprop.train.modes import lora
from backprop.train.trainer import MIXES_ROWS, StepLoop, StepMetrics
from msgspec.structs import replace
from runs_in_process import of, train


@pytest.fixture
def config(tiny_config: RunConfig) -> RunConfig:
    return models.resolved(replace(tiny_config, lora_dropout=0.0, warmup_steps=0))


@pytest.fixture
def rows(ragged: Any) -> Any:
    return ragged([31, 12, 44, 20, 9, 27, 38, 16])


def loop_of(config: RunConfig, rows: Any, method: Any = None) -> StepLoop:
    loaded = models.load(config, Path(config.model), lambda event: None)
    return StepLoop(loaded, method or sft.SFT(), config, rows, Schedule.of(config, len(rows)))


def spoiled(monkeypatch: pytest.MonkeyPatch, factor: Callable[[int], float]) -> None:
    """The loss of the n-th micro-batch that is trained (from 1) is multiplied by ``factor(n)``."""
    plain = sft.summed_loss
    count = 0

    def loss(model: Any, batch: Any, *, plain_head: bool) -> torch.Tensor:
        nonlocal count
        count += torch.is_grad_enabled()
        return plain(model, batch, plain_head=plain_head) * factor(count)

    monkeypatch.setattr(sft, "summed_loss", loss)


def weights(loop: StepLoop) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in loop.loaded.model.parameters() if each.requires_grad])


def test_gradients_are_clipped_to_the_norm_that_was_asked_for(config: RunConfig, rows: Any) -> None:
    loop = loop_of(replace(config, max_grad_norm=1e-3), rows)
    norms: list[float] = []

    def look(optimizer: Any, *_: Any) -> None:
        gradients = [each.grad.flatten() for group in optimizer.param_groups for each in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))

    loop.optimizer.register_step_pre_hook(look)
    loop.take([rows.row(0), rows.row(1)])

    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    assert loop.metrics.grad_norm > 1e-2


def test_a_step_is_taken_with_dropout_whatever_looked_at_the_model_before(config: RunConfig, rows: Any) -> None:
    loop = loop_of(config, rows)
    loop.loaded.model.eval()
    seen: list[bool] = []
    base_model(loop.loaded.model).model.register_forward_pre_hook(lambda model, given: seen.append(model.training))
    loop.take([rows.row(0)])
    assert seen
    assert all(seen)


def test_a_step_without_a_learning_rate_is_no_sign_that_nothing_is_learned(config: RunConfig, rows: Any) -> None:
    liveness = Liveness(loop_of(config, rows).loaded.model)
    liveness.check(1, StepMetrics(learning_rate=0.0, grad_norm=1.0))
    liveness.check(2, StepMetrics(learning_rate=1e-4, grad_norm=math.nan, skipped=True))
    with pytest.raises(TrainingError, match="step 3 changed no trained weight"):
        liveness.check(3, StepMetrics(learning_rate=1e-4, grad_norm=1.0))


def test_a_step_has_the_gradient_of_its_own_rows_alone(config: RunConfig, rows: Any) -> None:
    loop = loop_of(config, rows)
    trained = [each for each in loop.loaded.model.parameters() if each.requires_grad]
    begun = [each.detach().clone() for each in trained]
    norms = []
    for _ in range(2):
        loop.take([rows.row(0), rows.row(1)])
        norms.append(loop.metrics.grad_norm)
        with torch.no_grad():
            for each, before in zip(trained, begun, strict=True):
                each.copy_(before)
    assert norms[0] == norms[1] > 0


def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_learns(
    config: RunConfig, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(config, rows)
    spoiled(monkeypatch, lambda n: math.nan if n == 2 else 1.0)
    some = [rows.row(0), rows.row(1)]
    loop.take(some)
    before, counted = weights(loop), [state["step"].item() for state in loop.optimizer.state.values()]

    loop.take(some)

    assert loop.metrics.skipped
    assert torch.equal(weights(loop), before)
    assert [state["step"].item() for state in loop.optimizer.state.values()] == counted
    loop.take(some)
    assert not loop.metrics.skipped
    assert weights(loop).isfinite().all()
    assert not torch.equal(weights(loop), before)


def test_skipped_steps_are_counted_anew_after_a_good_one(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One micro-batch a step: a good one, three that are not finite, a good one, four, a good one.
    spoiled(monkeypatch, lambda n: 1.0 if n % 5 == 0 or n == 1 else math.nan)
    config = replace(tiny_config, steps=10, batch_size=4, gradient_accumulation=1, packing=False)

    events, _ = train(config, [])

    assert [each.in_a_row for each in of(events, StepSkipped)] == [1, 2, 3, 1, 2, 3, 4]
    assert len(of(events, Step)) == 10


def test_a_gradient_of_exactly_zero_ends_the_run_even_where_decay_changes_the_weights(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, lambda n: 0.0)
    events: list[ev.Event] = []

    with pytest.raises(TrainingError, match="gradient of exactly zero") as caught:
        train(replace(tiny_config, weight_decay=0.1, warmup_steps=0), events)

    assert caught.value.code == "RUNTIME_NOTHING_IS_TRAINING"
    assert len(of(events, Step)) == 1


def test_nothing_but_the_adapters_is_trained(config: RunConfig, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_of(config, rows)
    frozen = {name: each.clone() for name, each in loop.loaded.model.named_parameters() if "lora_" not in name}
    loop.take([rows.row(0)])
    now = dict(loop.loaded.model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())

    plain = lora.get_peft_model

    def careless(model: Any, adapter: Any) -> Any:
        made = plain(model, adapter)
        made.get_base_model().model.norm.weight.requires_grad = True
        return made

    monkeypatch.setattr(lora, "get_peft_model", careless)
    with pytest.raises(TrainingError, match="adapters are not what is trained"):
        models.load(config, Path(config.model), lambda event: None)


def test_a_model_that_mixes_packed_rows_is_padded_and_the_run_says_so(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = models.traits_of
    monkeypatch.setattr(models, "traits_of", lambda model: tried(model)._replace(keeps_rows_apart=False))
    packed: list[bool] = []
    plain = sft.summed_loss

    def look(model: Any, batch: Any, *, plain_head: bool) -> Any:
        packed.append(batch.attention_mask is None)
        return plain(model, batch, plain_head=plain_head)

    monkeypatch.setattr(sft, "summed_loss", look)

    events, _ = train(tiny_config, [])

    assert packed
    assert not any(packed)
    assert MIXES_ROWS in [each.message for each in of(events, ev.Warning)]


def test_vectors_are_not_decayed(config: RunConfig, rows: Any) -> None:
    loop = loop_of(replace(config, weight_decay=0.1), rows)
    vector = torch.nn.Parameter(torch.ones(3))
    loop.loaded.model.get_base_model().register_parameter("bias", vector)

    optimizer = trainer.optimizer_for(loop.loaded.model, replace(config, weight_decay=0.1), torch.device("cpu"))

    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert [each is vector for each in others["params"]] == [True]


class Pairs(sft.SFT):
    """A method with another weight and a measure of its own: pairs of rows, of which the first should be likelier."""

    def collate(self, rows: Any, batching: Any) -> Any:
        batches = super().collate(rows, batching)
        return [_Weighed(**vars(batch)) for batch in batches]

    def loss(self, loaded: models.Loaded, batch: Any) -> Loss:
        found = super().loss(loaded, batch)
        return Loss(found.sum, {"twice": 2 * found.sum, "rows": torch.tensor(float(batch.rows))})


class _Weighed(trainer.MicroBatch):
    @property
    def weight(self) -> int:
        return self.rows


def test_a_method_brings_its_own_weight_and_metrics(config: RunConfig, rows: Any) -> None:
    loop = loop_of(replace(config, packing=False, batch_size=3), rows)
    other = loop_of(replace(config, packing=False, batch_size=3), rows, Pairs(loop.loaded.model))
    every = [rows.row(i) for i in range(8)]

    loop.gradient(every)
    other.gradient(every)

    supervised = loop.metrics.supervised
    assert other.metrics.micro_batches == 3
    assert other.metrics.loss == pytest.approx(loop.metrics.loss * supervised / 8, rel=1e-3)
    assert other.metrics.by_name == {"twice": pytest.approx(2 * other.metrics.loss, rel=1e-5), "rows": 1.0}
    assert loop.metrics.by_name == {}


def test_with_gradient_checkpointing_layers_are_computed_twice_and_gradients_stay(config: RunConfig, rows: Any) -> None:
    found = {}
    for recomputed in (False, True):
        loop = loop_of(replace(config, gradient_checkpointing=recomputed), rows)
        model = loop.loaded.model
        computed: list[int] = []
        model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=computed: seen.append(1))
        model.train()
        loop.gradient([rows.row(0), rows.row(1)])
        gradients = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
        found[recomputed] = (len(computed) / loop.metrics.micro_batches, torch.cat(gradients))

    assert (found[False][0], found[True][0]) == (1, 2)
    assert torch.equal(found[False][1], found[True][1])


def test_the_base_answers_without_what_was_trained(loaded_tiny: models.Loaded, rows: Any) -> None:
    model = loaded_tiny.model.eval()
    ids = torch.from_numpy(rows.row(0)[0]).long()[None]
    untouched = models.load_base(loaded_tiny.path, loaded_tiny.device, loaded_tiny.dtype).eval()
    with torch.no_grad():
        expected = untouched(input_ids=ids).logits
        with loaded_tiny.mode.base_answers(model):
            assert torch.equal(model(input_ids=ids).logits, expected)
        assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-3)
