"""QLoRA: what is in 4 bits is what was promised, and where it cannot be, it is said before a model is loaded."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import runs_in_process
import torch
from backprop.core.architecture import read_architecture
from backprop.core.errors import InvalidSettingError, MissingDependencyError
from backprop.core.events import Event, ModelLoaded, Step
from backprop.core.settings import RunConfig
from backprop.hardware import devices
from backprop.hardware.estimate import Shape, estimate
from backprop.train import four_bit
from backprop.train import model as models
from backprop.train.generate import load_model
from backprop.worker.setup import quiet_libraries
from msgspec.structs import replace

CPU = torch.device("cpu")
IDS = torch.arange(3, 60)[None]


@pytest.fixture
def config(tiny_config: RunConfig) -> RunConfig:
    return replace(tiny_config, mode="qlora")


def load(config: RunConfig) -> tuple[models.Loaded, ModelLoaded]:
    events: list[Event] = []
    loaded = models.load(models.resolved(config), Path(config.model), events.append)
    return loaded, next(event for event in events if isinstance(event, ModelLoaded))


def test_every_linear_layer_below_the_head_is_in_4_bits_and_takes_what_was_estimated(config: RunConfig) -> None:
    loaded, told = load(config)
    plain, told_plain = load(replace(config, mode="lora"))

    assert (told.parameters, told.trainable_parameters) == (told_plain.parameters, told_plain.trainable_parameters)
    assert {weight.dtype for weight in loaded.mode.trainable(loaded.model).values()} == {torch.float32}
    assert len(four_bit.layers(loaded.model)) == 14
    shape = Shape(mode="qlora", lora_r=4)
    model = read_architecture(json.loads((Path(config.model) / "config.json").read_text()), "tiny")
    wide = [w for w in plain.model.parameters() if not w.requires_grad and w.shape in ((320, 32), (32,))]
    numbers = sum(weight.numel() for weight in wide)
    narrow = estimate(model, shape).weights - 2 * numbers - 4 * told.trainable_parameters
    assert told.share_4bit == pytest.approx(narrow / (narrow + sum(weight.nbytes for weight in wide)), rel=0.01)
    assert told_plain.share_4bit == 0
    # A processor with bf16 would repack the weights for answers, and training would lose their gradients after that.
    assert not any(each.support_avx512bf16_for_cpu for each in four_bit.layers(loaded.model).values())


def test_a_run_learns_and_comes_back_on_the_base_it_was_trained_on(config: RunConfig, tmp_path: Path) -> None:
    events, directory = runs_in_process.train(replace(config, steps=6), [])

    losses = [event.loss for event in events if isinstance(event, Step)]
    assert losses[-1] < losses[0]
    base = Path(config.model)
    tuned, bare = load_model(base, directory.adapter, "cpu", nf4=True).eval(), load_model(base, nf4=True).eval()
    with torch.inference_mode():
        assert not torch.allclose(tuned(IDS).logits, bare(IDS).logits, atol=1e-2)
        with tuned.disable_adapter():
            assert torch.equal(tuned(IDS).logits, bare(IDS).logits)
    assert json.loads((directory.adapter / "backprop.json").read_text())["mode"] == "qlora"


def test_loftq_begins_nearer_to_the_original_weights(config: RunConfig) -> None:
    original = models.load_base(Path(config.model), CPU, models.choose_dtype(CPU)).eval()

    def far(start: str) -> float:
        loaded, _ = load(replace(config, init_lora_weights=start, lora_r=16, lora_dropout=0.0))
        with torch.inference_mode():
            return float((loaded.model.eval()(IDS).logits - original(IDS).logits).norm())

    assert far("loftq") < 0.75 * far("default")


def test_experts_that_would_stay_in_16_bits_are_refused_by_name(config: RunConfig, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_local_experts": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    MixtralForCausalLM(MixtralConfig(vocab_size=320, **small, **heads)).save_pretrained(tmp_path / "experts")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(config.model) / name, tmp_path / "experts")

    with pytest.raises(
        InvalidSettingError, match=r"7\d% of the weights .*experts.gate_up_proj \[4, 64, 32\]"
    ) as caught:
        load(replace(config, model=str(tmp_path / "experts")))
    assert "--mode lora" in caught.value.hint


def test_without_the_library_it_is_refused_with_the_command_before_anything_is_loaded(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "installed_version", lambda name: None)

    with pytest.raises(MissingDependencyError, match=r"QLoRA needs .*bitsandbytes") as caught:
        models.resolved(config)
    assert 'pip install "backprop-tui[qlora]"' in caught.value.hint
    assert caught.value.code == "DEP_MISSING"


def test_a_library_that_does_not_work_on_the_device_is_refused_before_anything_is_loaded(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(weight: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image is available\nand much more")

    monkeypatch.setattr(four_bit, "require_installed", lambda: None)
    monkeypatch.setattr(four_bit, "there_and_back", broken)
    monkeypatch.setattr(models, "load_base", lambda *given, **more: pytest.fail("it was loaded"))

    with pytest.raises(MissingDependencyError, match=r"does not work on cpu: no kernel image is available$"):
        load(config)
    monkeypatch.setattr(four_bit, "there_and_back", torch.zeros_like)
    with pytest.raises(MissingDependencyError, match="a number came back 1 away"):
        load(config)


def test_no_library_fetches_compiled_code_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes asks the hub as it is imported on a processor with bf16, where the package ``kernels`` is there."""
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    quiet_libraries()
    assert find_spec("kernels") is None
    with pytest.raises(ImportError):
        import_module("kernels")
