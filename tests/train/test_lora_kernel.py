from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backprop.core.settings import RunConfig
from backprop.train import model as models
from backprop.train.lora_kernel import fuse
from backprop.train.loss import summed_loss
from backprop.train.packing import pack
from msgspec.structs import replace
from peft import LoraConfig, get_peft_model
from pinned_machine import within


def losses_and_gradients(model: Any, one: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss = summed_loss(model, one, plain_head=True)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), found


def test_the_shorter_way_gives_the_same_loss_and_gradients(loaded_tiny: models.Loaded, ragged: Any) -> None:
    rows = ragged([31, 12, 44])
    one = pack([rows.row(i) for i in range(3)])
    plain_loss, plain = losses_and_gradients(loaded_tiny.model, one)

    assert fuse(loaded_tiny.model) == 14

    loss, gradients = losses_and_gradients(loaded_tiny.model, one)
    assert abs(loss / plain_loss - 1) < within(1e-6, bf16=1e-3)
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        assert (gradient - plain[name]).norm() <= within(2e-6, bf16=5e-2) * plain[name].norm()


@pytest.mark.parametrize("kind", [{"use_rslora": True}, {"init_lora_weights": "pissa"}], ids=["rsLoRA", "PiSSA"])
def test_it_is_right_for_adapters_that_scale_or_begin_otherwise(
    kind: dict[str, Any], tiny_config: RunConfig, tiny_model: Path, ragged: Any
) -> None:
    config = models.resolved(replace(tiny_config, lora_dropout=0.0, **kind))
    loaded = models.load(config, tiny_model, lambda event: None)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if "lora_B" in name:
                weight += 0.05
    one = pack([ragged([31, 12]).row(0)])
    plain_loss, plain = losses_and_gradients(loaded.model, one)

    assert fuse(loaded.model) == 14

    loss, gradients = losses_and_gradients(loaded.model, one)
    assert abs(loss / plain_loss - 1) < within(1e-6, bf16=1e-3)
    assert all(
        (gradients[name] - plain[name]).norm() <= within(2e-6, bf16=5e-2) * plain[name].norm() + 1e-9 for name in plain
    )


def test_dropout_stays_dropout(tiny_config: RunConfig, tiny_model: Path, ragged: Any) -> None:
    config = models.resolved(replace(tiny_config, lora_dropout=0.4))
    loaded = models.load(config, tiny_model, lambda event: None)
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, 0, 0.05)
    rows = ragged([31, 12])
    one = pack([rows.row(0), rows.row(1)])
    loaded.model.train()
    torch.manual_seed(3)
    plain_loss, plain = losses_and_gradients(loaded.model, one)

    fuse(loaded.model)

    torch.manual_seed(3)
    loss, gradients = losses_and_gradients(loaded.model, one)
    assert abs(loss / plain_loss - 1) < within(1e-6, bf16=1e-3)
    for name, gradient in gradients.items():
        assert (gradient - plain[name]).norm() <= within(2e-6, bf16=5e-2) * plain[name].norm()
    assert losses_and_gradients(loaded.model, one)[0] != pytest.approx(loss, rel=1e-6)


def test_adapters_can_still_be_switched_off(loaded_tiny: models.Loaded, ragged: Any) -> None:
    one = pack([ragged([31]).row(0)])
    fuse(loaded_tiny.model)
    with_adapter = summed_loss(loaded_tiny.model, one, plain_head=True).item()

    with loaded_tiny.model.disable_adapter():
        without = summed_loss(loaded_tiny.model, one, plain_head=True).item()

    assert abs(with_adapter / without - 1) > 1e-4


def test_other_kinds_of_adapter_are_left_alone(tiny_model: Path) -> None:
    base = models.load_base(tiny_model, torch.device("cpu"), torch.float32)
    dora = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"))

    assert fuse(dora) == 0
