"""Full fine-tuning: every weight is trained, in float32 or bf16, and the result is a model that anything can load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import runs_in_process
import torch
from backprop.core.errors import InvalidSettingError, MissingDependencyError, TrainingError
from backprop.core.events import Event, ModelLoaded, RunFinished, Sample, Step, Stop
from backprop.core.settings import RunConfig
from backprop.train import generate, optimizers
from backprop.train import model as models
from backprop.train.checkpoint import load_weights, trained_parameters
from backprop.train.modes import full
from msgspec import to_builtins
from msgspec.structs import replace
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def full_config(tiny_config: RunConfig) -> RunConfig:
    return replace(tiny_config, mode="full", lora_r=None, lora_dropout=None, steps=8, learning_rate=3e-3)


def after(steps: int) -> runs_in_process.Ask:
    """Stop after so many steps of this stretch."""
    return lambda events: [Stop()] if len(runs_in_process.of(events, Step)) == steps else []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_is_trained_and_the_result_is_the_model_that_was_trained(
    full_config: RunConfig, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    load = models.load
    monkeypatch.setattr(models, "load", lambda *given: kept.append(load(*given)) or kept[0])
    config = replace(full_config, weights_dtype=dtype, sample_prompts=["Where is the heron?"], sample_tokens=4)
    events, run = runs_in_process.train(config, [])

    (told,) = runs_in_process.of(events, ModelLoaded)
    assert (told.mode, told.dtype) == ("full", dtype)
    assert told.parameters == told.trainable_parameters == 30_880
    losses = [each.loss for each in runs_in_process.of(events, Step)]
    assert losses[-1] < losses[0] - 0.5
    assert [each.tuned for each in runs_in_process.of(events, Sample)] == [False, True]
    assert events[-1].output_path == run.result == str(run.model)
    # The file holds the weights in memory, each of which was changed; the tied head is not in it twice.
    saved, before = load_file(run.model / "model.safetensors"), load_file(Path(config.model) / "model.safetensors")
    trained = trained_parameters(kept[0].model)
    assert saved.keys() == before.keys() == trained.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in trained.items())
    assert all(not torch.equal(saved[name].float(), before[name]) for name in saved)
    identity = json.loads((run.model / "backprop.json").read_text())
    assert (identity["dtype"], identity["steps"]) == (dtype, 8)
    assert "model.safetensors" in identity["files"]
    # Nothing but transformers is needed to load it, in its own precision, and it answers the same.
    plain = AutoModelForCausalLM.from_pretrained(run.model).eval()
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert str(plain.dtype) == f"torch.{dtype}"
    assert plain.generation_config.eos_token_id == [2]  # where a turn ends
    ids = torch.tensor([AutoTokenizer.from_pretrained(run.model)("A heron stood in the river").input_ids])
    with models.evaluating(kept[0].model), torch.no_grad():
        assert torch.equal(plain(ids).logits, kept[0].model(ids).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_with_evaluations_is_the_undisturbed_one(full_config: RunConfig, dtype: Any) -> None:
    config = replace(full_config, weights_dtype=dtype, save_steps=3, held_out="0.2", eval_steps=3)
    events, whole = runs_in_process.train(config, [])
    stopped, run = runs_in_process.train(config, [], after(5))
    assert runs_in_process.of(stopped, RunFinished)[0].status == "stopped"
    stopped += runs_in_process.go_on(run)
    losses = [(each.step, each.loss, each.grad_norm) for each in runs_in_process.of(events, Step)]
    assert [(each.step, each.loss, each.grad_norm) for each in runs_in_process.of(stopped, Step)] == losses
    first, second = (load_file(each.model / "model.safetensors") for each in (whole, run))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_fork_may_keep_its_weights_in_another_type(full_config: RunConfig) -> None:
    _, run = runs_in_process.train(replace(full_config, steps=2), [])
    saved = max((run.checkpoints).glob("step-*"))
    wide = load_file(saved / "weights.safetensors")
    narrow = replace(full_config, weights_dtype="bfloat16")
    loaded = models.load(models.resolved(narrow), Path(narrow.model), lambda event: None)
    load_weights(saved, loaded.model, any_dtype=True)
    assert all(torch.equal(each, wide[name].bfloat16()) for name, each in trained_parameters(loaded.model).items())


@pytest.mark.parametrize("wrong", ["not trained", "of another type"])
def test_a_weight_that_is_not_trained_or_of_another_type_is_noticed(
    full_config: RunConfig, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    plain = full.Full.load

    def careless(mode: full.Full, base: Any) -> Any:
        model = plain(mode, base)
        weight = model.model.norm.weight
        if wrong == "not trained":
            weight.requires_grad = False
        else:
            weight.data = weight.data.bfloat16()
        return model

    monkeypatch.setattr(full.Full, "load", careless)
    words = "1 are not trained" if wrong == "not trained" else "0 are not trained, in .*torch.bfloat16"
    with pytest.raises(TrainingError, match=words):
        models.load(models.resolved(full_config), Path(full_config.model), lambda event: None)


def test_a_model_of_more_than_4b_is_refused_from_its_configuration_alone(
    full_config: RunConfig, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.mkdir()
    settings = json.loads((Path(full_config.model) / "config.json").read_text())
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    (large / "config.json").write_text(json.dumps(settings | sizes))
    for path in (str(large), "mistral-7b"):
        with pytest.raises(TrainingError, match="up to 4B parameters") as caught:
            models.resolved(replace(full_config, model=path))
        assert caught.value.code == "RUNTIME_FULL_FT_MODEL_TOO_LARGE"
        assert "--mode lora" in caught.value.hint
        assert "smollm3-3b" in caught.value.hint
    with pytest.raises(TrainingError, match="up to 4B parameters"):  # its configuration came with it
        models.load(models.resolved(full_config), large, lambda event: None)


def learned(weight: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int = 300) -> float:
    """Mean distance of the weights from their targets (all 1) after steps that are small beside them."""
    target = torch.linspace(1.001, 1.1, weight.numel())
    for _ in range(steps):
        weight.grad = (weight.detach().float() - target).to(weight.dtype)
        optimizer.step()
    return float((weight.detach().float() - target).abs().mean())


def test_bf16_weights_keep_up_with_float32_where_plain_adamw_stalls() -> None:
    def start(dtype: torch.dtype) -> torch.Tensor:
        return torch.nn.Parameter(torch.ones(4096, dtype=dtype))

    options: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8}
    wide, plain, rounding = start(torch.float32), start(torch.bfloat16), start(torch.bfloat16)
    exact = learned(wide, torch.optim.AdamW([wide], weight_decay=0.0, **options))
    stalled = learned(plain, torch.optim.AdamW([plain], weight_decay=0.0, **options))
    by_chance = learned(rounding, optimizers.RoundingAdamW([{"params": [rounding]}], **options))

    assert torch.equal(plain, torch.ones_like(plain))  # not one of 300 updates was taken
    assert stalled > 0.05
    assert by_chance < exact + 2**-8  # bf16 numbers between 1 and 2 are 2**-7 apart


def test_rounding_is_to_a_neighbour_and_right_in_the_mean() -> None:
    for value in (1 + 2**-10, -3 - 2**-9, 2**-130, 0.0):
        wide, rounded = torch.full((2**16,), value), torch.zeros(2**16, dtype=torch.bfloat16)
        optimizers.round_by_chance(wide, rounded, torch.Generator().manual_seed(0))
        gap = float(rounded.max() - rounded.min())
        assert float(rounded.min()) <= value <= float(rounded.max())
        assert gap <= abs(value) * 2**-7
        assert abs(float(rounded.double().mean()) - value) <= gap / 50


def test_the_update_itself_is_torchs_and_its_pieces_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}
    start = torch.randn(3, 700, generator=torch.Generator().manual_seed(1)).bfloat16()
    gradients = [torch.randn(3, 700, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(3)]
    kept: list[torch.Tensor] = []

    def unrounded(wide: torch.Tensor, target: torch.Tensor, chances: object) -> None:
        kept.append(wide.clone())
        target.copy_(wide)

    monkeypatch.setattr(optimizers, "round_by_chance", unrounded)
    for size in (2**22, 512):
        monkeypatch.setattr(optimizers, "ROUNDED_AT_ONCE", size)
        narrow = torch.nn.Parameter(start.clone())
        ours = optimizers.RoundingAdamW([{"params": [narrow], "weight_decay": 0.1}], **options)
        wide = torch.nn.Parameter(start.float())
        theirs = torch.optim.AdamW([{"params": [wide], "weight_decay": 0.1}], foreach=False, **options)
        for gradient in gradients:
            wide.data.copy_(narrow.data)  # rounding apart: the same start of each update
            kept.clear()
            narrow.grad, wide.grad = gradient, gradient.float()
            ours.step()
            theirs.step()
            assert torch.equal(torch.cat(kept), wide.detach().view(-1))


@pytest.mark.parametrize("optim", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_state_of_every_optimizer_comes_back_to_the_last_bit(
    full_config: RunConfig, optim: Any, dtype: Any
) -> None:
    # The second layer's MLP has 2,048 weights and the embedding 10,240: states of 32 bits and of 8.
    config = replace(full_config, optim=optim, weights_dtype=dtype, save_steps=2, steps=5)
    events, whole = runs_in_process.train(config, [])
    _, run = runs_in_process.train(config, [], after(2))
    runs_in_process.go_on(run)
    first, second = (load_file(each.model / "model.safetensors") for each in (whole, run))
    assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [each.loss for each in runs_in_process.of(events, Step)]
    assert losses[-1] < losses[0]


def test_an_optimizer_that_cannot_work_is_refused_before_anything_is_loaded(
    full_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="needs bitsandbytes") as caught:
        runs_in_process.train(replace(full_config, optim="adamw_8bit"), events)
    assert caught.value.code == "DEP_MISSING"
    assert 'pip install "backprop-tui[qlora]"' in caught.value.hint
    monkeypatch.setattr(optimizers, "find_spec", lambda name: name)
    with pytest.raises(InvalidSettingError, match="this run is on a CPU"):
        runs_in_process.train(replace(full_config, optim="paged_adamw_8bit"), events)
    assert events == []


def test_a_finished_run_answers_without_its_base(full_config: RunConfig, tmp_path: Path) -> None:
    base = shutil.copytree(full_config.model, tmp_path / "base")
    _, run = runs_in_process.train(replace(full_config, model=str(base), steps=2), [])
    shutil.rmtree(base)
    model, chat = generate.load(run.path, to_builtins(replace(full_config, model=str(base))), lambda event: None)
    assert not hasattr(model, "disable_adapter")
    assert chat.template.source
