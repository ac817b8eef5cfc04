"""Kinds of LoRA and ways to begin: what each of them is in memory, in the run's file, and without its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs_in_process
import torch
from backprop.core.errors import InvalidSettingError
from backprop.core.events import ModelLoaded, Step
from backprop.core.settings import RunConfig
from backprop.train import model as models
from backprop.train.generate import load_model
from backprop.train.lora_start import main_directions
from msgspec.structs import replace
from peft import LoraConfig, get_peft_model
from pinned_machine import within

IDS = torch.arange(3, 60)[None]
CPU = torch.device("cpu")


def loaded(config: RunConfig, **kind: Any) -> models.Loaded:
    return models.load(models.resolved(replace(config, **kind)), Path(config.model), lambda event: None)


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits.float()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_main_directions_are_those_of_an_exact_decomposition() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 12) @ torch.diag(torch.logspace(0, -4, 12)) @ torch.randn(12, 30)
    values = torch.linalg.svdvals(weight)
    for rank in (1, 5, 12, 64):  # more than there are gives all there are
        a, b = main_directions(weight, rank)
        left = float((weight - b @ a).norm())
        assert left == pytest.approx(float(values[rank:].norm()), rel=1e-3, abs=1e-4)


def test_pissa_begins_as_peft_s_does(tiny_config: RunConfig) -> None:
    """The same losses and the same gradients of what is trained, up to the sign of a direction."""
    ours = loaded(tiny_config, init_lora_weights="pissa", lora_alpha=8.0, lora_dropout=0.0).model
    base = models.load_base(Path(tiny_config.model), CPU, models.choose_dtype(CPU))
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(base, LoraConfig(init_lora_weights="pissa", **settings))  # type: ignore[arg-type]

    assert apart(logits(ours), logits(theirs)) < within(1e-5, bf16=3e-2)
    for model in (ours, theirs):
        model(IDS, labels=IDS).loss.backward()
    for name, weight in theirs.named_parameters():
        if weight.grad is not None:
            mine = ours.get_parameter(name).grad
            kept, held = mine.split(4, dim=0 if "lora_A" in name else 1)
            assert float(kept.norm()) == pytest.approx(float(weight.grad.norm()), rel=within(1e-3, bf16=0.1))
            assert not held.any()


def test_pissa_leaves_the_base_model_and_its_file_is_a_plain_adapter_for_it(tiny_config: RunConfig) -> None:
    kind = {"init_lora_weights": "pissa", "use_rslora": True, "steps": 6, "lora_r": 3}
    start = loaded(tiny_config, **kind)
    held = {n: w.detach().clone() for n, w in start.model.named_parameters() if "lora_" in n}
    untouched = logits(models.load_base(Path(tiny_config.model), CPU, models.choose_dtype(CPU)))
    with start.mode.base_answers(start.model):
        assert torch.equal(logits(start.model), untouched)
    assert apart(logits(start.model), untouched) < within(1e-5, bf16=3e-2)

    events, directory = runs_in_process.train(replace(tiny_config, **kind), [])

    losses = [event.loss for event in events if isinstance(event, Step)]
    assert losses[-1] < losses[0]
    (told,) = [event for event in events if isinstance(event, ModelLoaded)]
    assert "rank 3 is trained" in told.notes[-1]
    tuned = load_model(Path(tiny_config.model), directory.adapter, "cpu")
    assert apart(logits(tuned), untouched) > 0.01
    for name, before in held.items():
        after = tuned.get_parameter(name)
        half = (slice(3, 6),) if "lora_A" in name else (slice(None), slice(3, 6))
        assert torch.equal(after[half], before[half])
        assert not torch.equal(after, before)
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), untouched)


@pytest.mark.parametrize(
    "kind",
    [{"use_dora": True}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}],
    ids=["DoRA", "rsLoRA", "gaussian"],
)
def test_what_was_trained_is_what_the_file_gives(kind: dict[str, Any], tiny_config: RunConfig) -> None:
    events, directory = runs_in_process.train(replace(tiny_config, steps=6, **kind), [])
    losses = [event.loss for event in events if isinstance(event, Step)]
    assert losses[-1] < losses[0]

    checkpoint = loaded(tiny_config, **kind)
    models_checkpoint = max(directory.checkpoints.glob("step-*"))
    from backprop.train.checkpoint import load_weights

    load_weights(models_checkpoint, checkpoint.model)
    assert {weight.dtype for weight in checkpoint.model.parameters() if weight.requires_grad} == {torch.float32}
    tuned = load_model(Path(tiny_config.model), directory.adapter, "cpu")
    assert torch.equal(logits(tuned), logits(checkpoint.model))
    plain = get_plain(directory.adapter)
    assert (plain["use_dora"], plain["use_rslora"]) == ("use_dora" in kind, "use_rslora" in kind)


def get_plain(adapter: Path) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    return found


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        *(({"init_lora_weights": start, "mode": "full"}, "there is no adapter") for start in ("pissa", "gaussian")),
        ({"init_lora_weights": "pissa", "use_dora": True}, "DoRA measures"),
        ({"init_lora_weights": "pissa", "mode": "qlora"}, "no residual to quantise"),
        ({"init_lora_weights": "pissa", "weight_decay": 0.1}, "wear the start away"),
        ({"init_lora_weights": "loftq", "mode": "lora"}, "needs --mode qlora"),
        ({"init_lora_weights": "loftq"}, "needs --mode qlora"),  # auto is LoRA on a CPU
    ],
)
def test_a_start_that_does_not_go_with_the_rest_is_refused_with_the_reason(
    settings: dict[str, Any], why: str, tiny_config: RunConfig
) -> None:
    with pytest.raises(InvalidSettingError, match=why) as caught:
        models.resolved(replace(tiny_config, **settings))
    assert caught.value.details["field"] == "init_lora_weights"


@pytest.mark.parametrize("variant", ["use_dora", "use_rslora"])
def test_a_variant_of_lora_is_refused_where_there_is_no_adapter(variant: str, tiny_config: RunConfig) -> None:
    with pytest.raises(InvalidSettingError, match=f"{variant}: mode full trains the weights themselves") as caught:
        replace(tiny_config, mode="full", **{variant: True})
    assert caught.value.details["field"] == variant
