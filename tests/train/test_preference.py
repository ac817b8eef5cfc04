"""What the preference methods compute: by hand, and the same for every way in which rows share a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backprop.core.errors import TrainingError
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from backprop.train import loss as losses
from backprop.train import model as models
from backprop.train.callbacks import Liveness
from backprop.train.methods import method_named
from backprop.train.methods.kto import class_weights
from backprop.train.packing import Batching
from backprop.train.trainer import StepLoop, StepMetrics
from compared_rows import ALL, ComparedRows, method_on, trained_model
from msgspec.structs import replace
from pinned_machine import within

# Three pairs: log-probabilities of both sides, their tokens, and what the untouched model gave them.
LOGPS = [[-12.0, -9.0], [-30.5, -41.0], [-2.25, -8.0]]
LENGTHS = [[8, 6], [20, 25], [3, 4]]
UNTOUCHED = [[-14.0, -8.5], [-33.0, -36.0], [-2.0, -7.0]]
BY_HAND = {
    "dpo": [0.5759394, 0.3868710, 0.6563501],
    "orpo": [1.5693147, 1.5873380, 0.7661124],
    "simpo": [1.3132617, 1.1504981, 0.2014133],
}
"""Worked out with a calculator from the papers' formulas, beta 0.1 (SimPO 2.0 and margin 1.0)."""


@pytest.fixture
def config(tiny_config: RunConfig) -> RunConfig:
    return models.resolved(replace(tiny_config, lora_dropout=0.0, warmup_steps=0))


@pytest.mark.parametrize("name", BY_HAND)
def test_three_pairs_have_the_losses_that_were_worked_out_by_hand(name: str, config: RunConfig) -> None:
    method: Any = method_named(name)(config, None)  # type: ignore[arg-type]
    found = method.compare(torch.tensor(LOGPS).double(), torch.tensor(LENGTHS), torch.tensor(UNTOUCHED).double())
    assert found.losses.tolist() == pytest.approx(BY_HAND[name], abs=1e-6)


def test_six_judged_answers_have_the_losses_that_were_worked_out_by_hand(config: RunConfig, tmp_path: Path) -> None:
    rows: Any = type("Rows", (), {"labels": torch.tensor([True, False]), "__len__": lambda self: 2})()
    method: Any = method_named("kto")(config, rows)
    ratios = (torch.tensor(LOGPS) - torch.tensor(UNTOUCHED)).double().flatten()
    found, _ = method.judge(ratios, torch.tensor([True, False] * 3), torch.tensor(0.5).double())
    expected = [0.462570, 0.475021, 0.450166, 0.365864, 0.518741, 0.462570]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


CPU = (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("good", "bad", "weights"),
    [
        (50, 50, (1, 1)),
        (10, 90, (9, 1)),
        (90, 10, (1, 6.75)),
        (60, 45, (1, 1)),
        (1, 99, (10, 1)),
        (5, 0, (1, 1)),
        (0, 5, (1, 1)),
    ],
)
def test_the_rarer_kind_counts_more(good: int, bad: int, weights: tuple[float, float]) -> None:
    assert class_weights(good, bad) == weights


def by_sequence(loaded: models.Loaded, rows: list[tuple[Any, Any]]) -> list[float]:
    """Log-probabilities from the model's full logits in float64, one sequence at a time."""
    found = []
    for ids, mask in rows:
        tokens = torch.from_numpy(ids).long()
        with torch.no_grad():
            logits = loaded.model(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
        chosen = logits[torch.arange(len(tokens) - 1), tokens[1:]]
        found.append(float(chosen[torch.from_numpy(mask[1:])].sum()))
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_a_sequence_has_the_log_probability_that_it_has_alone(
    packing: bool, attention: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = trained_model(config)
    loaded.model.eval()
    loaded.model.get_base_model().set_attn_implementation(attention)
    rows = ComparedRows(tmp_path, pairs=True)
    sequences = [side for i in range(len(rows)) for side in rows.row(i)]
    monkeypatch.setattr(losses, "PIECE_BYTES", 4 * 320 * 7)  # several pieces of the head

    batch = Batching(packing, 64, 10_000).join(sequences)
    found = losses.sequence_logps(loaded.model, batch, plain_head=True)

    assert found.tolist() == pytest.approx(by_sequence(loaded, sequences), rel=within(1e-5, bf16=2e-2))
    # The model's own logits, which it may scale or cap, are the same of this one.
    own = losses.sequence_logps(loaded.model, batch, plain_head=False)
    assert own.tolist() == pytest.approx(found.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_loss_gradient_and_metrics_do_not_depend_on_how_rows_share_passes(
    name: str, config: RunConfig, tmp_path: Path
) -> None:
    loaded = trained_model(config)
    method, rows = method_on(name, loaded, config, tmp_path, count=8)
    found = []
    for packing, size in [(False, 8), (False, 4), (False, 2), (False, 1), (True, 8)]:
        subset: Any = ComparedRows(tmp_path, pairs=name != "kto", count=8)
        settings = replace(config, packing=packing, batch_size=size, max_seq_length=16)
        loop = StepLoop(loaded, method, settings, subset, Schedule.of(settings, 8))
        loop.gradient(rows)
        gradient = torch.cat([each.grad.flatten() for each in loaded.model.parameters() if each.grad is not None])
        found.append((loop.metrics, gradient.clone()))
        loop.optimizer.zero_grad()

    assert [each.micro_batches for each, _ in found[:4]] == [1, 2, 4, 8]
    (first, gradient), *others = found
    for metrics, other in others:
        tolerance = within(1e-6, bf16=2e-2)
        assert metrics.loss == pytest.approx(first.loss, rel=tolerance)
        assert metrics.by_name == pytest.approx(first.by_name, rel=10 * tolerance, abs=10 * tolerance)
        assert float((other - gradient).abs().max()) < tolerance * max(1.0, float(gradient.abs().max()))


@pytest.mark.parametrize(("later", "ends"), [(0.0, 12), (1e-9, None)], ids=["stays 0", "moves"])
def test_a_margin_that_stays_exactly_zero_after_warm_up_ends_the_run(later: float, ends: int | None) -> None:
    model = torch.nn.Linear(2, 2)
    liveness = Liveness(model, warmup=2)
    model.weight.data += 1
    for step in range(1, 30):
        margin = 0.0 if step < 12 else later
        metrics = StepMetrics(loss=0.69, grad_norm=1.0, learning_rate=1e-3, by_name={"rewards/margins": margin})
        if step == ends:
            with pytest.raises(TrainingError, match="is still exactly 0"):
                liveness.check(step, metrics)
            break
        liveness.check(step, metrics)
