from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backprop.core.errors import GPUNotAvailableError, InvalidSettingError, ModelLoadError
from backprop.core.events import Event, ModelLoaded
from backprop.core.settings import RunConfig
from backprop.train import model as models
from backprop.train.modes import lora
from msgspec.structs import replace


def ignore(event: Event) -> None:
    pass


def test_a_damaged_weight_file_is_an_error_with_its_place(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes()[:5000])

    with pytest.raises(ModelLoadError, match="cannot be loaded") as caught:
        models.load_base(tmp_path, torch.device("cpu"), torch.float32)
    assert str(tmp_path) in caught.value.message


def test_cuda_that_does_not_work_is_refused_with_the_way_out() -> None:
    with pytest.raises(GPUNotAvailableError, match="CUDA was asked for") as caught:
        models.choose_device("cuda")
    assert "--backend cpu" in caught.value.hint


def test_adapters_are_float32_and_of_the_rank_that_was_asked_for(tiny_config: RunConfig, tiny_model: Path) -> None:
    events: list[Event] = []

    loaded = models.load(models.resolved(tiny_config), tiny_model, events.append)

    said = next(event for event in events if isinstance(event, ModelLoaded))
    trainable = [p for p in loaded.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    assert said.trainable_parameters == sum(p.numel() for p in trainable)
    assert said.parameters + said.trainable_parameters == sum(p.numel() for p in loaded.model.parameters())
    assert said.targets == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("bf16", [True, False])
def test_frozen_weights_are_bf16_where_the_processor_multiplies_in_it_and_adapters_float32_everywhere(
    tiny_config: RunConfig, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    events: list[Event] = []

    loaded = models.load(models.resolved(tiny_config), tiny_model, events.append)

    kinds = {(p.requires_grad, p.dtype) for p in loaded.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16 if bf16 else torch.float32)}
    said = next(event for event in events if isinstance(event, ModelLoaded))
    assert said.dtype == ("bfloat16" if bf16 else "float32")


def test_the_fast_preset_targets_queries_and_values(tiny_config: RunConfig, tiny_model: Path) -> None:
    config = models.resolved(replace(tiny_config, lora_preset="fast"))

    loaded = models.load(config, tiny_model, ignore)

    assert loaded.mode.targets == ["q_proj", "v_proj"]


def test_a_named_layer_that_is_missing_is_refused_with_those_that_exist(
    tiny_config: RunConfig, tiny_model: Path
) -> None:
    config = models.resolved(replace(tiny_config, target_modules=["q_proj", "w_pack"]))

    with pytest.raises(InvalidSettingError, match="w_pack") as caught:
        models.load(config, tiny_model, ignore)
    assert "gate_proj" in caught.value.hint


def test_an_architecture_without_the_presets_layers_gets_adapters_on_all_linear_ones(tiny_config: RunConfig) -> None:
    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wqkv = torch.nn.Linear(4, 12)
            self.head = torch.nn.Linear(4, 9)

        def get_output_embeddings(self) -> Any:
            return self.head

    targets, notes = lora.choose_targets(Other(), models.resolved(tiny_config))

    assert targets == ["wqkv"]
    assert "all linear" in notes[0]


def test_what_is_in_memory_is_held_against_what_was_asked(
    tiny_config: RunConfig, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = lora.get_peft_model

    def halved(model: Any, config: Any) -> Any:
        config.r //= 2
        return plain(model, config)

    monkeypatch.setattr(lora, "get_peft_model", halved)

    with pytest.raises(models.TrainingError, match="not what was asked for"):
        models.load(models.resolved(tiny_config), tiny_model, ignore)


def test_the_mode_comes_back_after_an_exception() -> None:
    model = torch.nn.Linear(2, 2)
    model.train()

    def broken_look() -> None:
        with models.evaluating(model):
            assert not model.training
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_look()

    assert model.training
