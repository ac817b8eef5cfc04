"""The MLX backend: chosen where it can, refused before loading where it cannot; its numbers are torch's, and a run is
one like any other: the same events, checkpoints and exact resume, an adapter that PEFT loads."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from backprop.core import extras, rules
from backprop.core.errors import InvalidSettingError, MissingDependencyError, ModelLoadError
from backprop.core.events import CheckpointSaved, Event, ModelLoaded, RunFinished, Sample, Step
from backprop.core.jobs import Sampling
from backprop.core.settings import RunConfig
from backprop.data.tokenizer import ChatTokenizer
from backprop.train import generate
from backprop.train import model as models
from backprop.train.loss import row_losses, summed_loss
from backprop.train.packing import pad
from backprop.worker.commands import Stop
from msgspec.structs import replace
from peft import load_peft_weights, set_peft_model_state_dict
from runs_in_process import go_on, of, train
from tiny_language_model import write_model

HERE = pytest.mark.skipif(find_spec("mlx_lm") is None, reason="mlx and mlx-lm are not installed")
TOLERANCE = 2e-4
"""Of logits and losses in float32, which MLX adds up in another order."""


@pytest.mark.parametrize(
    ("asked", "cuda", "apple", "mlx", "chosen"),
    [
        ({}, True, False, True, "cuda"),
        ({}, True, True, True, "cuda"),
        ({}, False, True, True, "mlx"),
        ({}, False, True, False, "cpu"),
        ({}, False, False, True, "cpu"),
        ({"method": "dpo"}, False, True, True, "cpu"),
        ({"mode": "full"}, False, True, True, "cpu"),
        ({"use_dora": True}, False, True, True, "cpu"),
        ({"processes": 2}, False, True, True, "cpu"),
        ({"backend": "cpu"}, True, True, True, "cpu"),
        ({"backend": "mlx"}, True, False, True, "mlx"),
        ({"backend": "mlx"}, False, False, False, "mlx"),
    ],
)
def test_where_a_run_works(asked: dict[str, Any], *, cuda: bool, apple: bool, mlx: bool, chosen: str) -> None:
    assert rules.backend(RunConfig(data="d", **asked), cuda=cuda, apple=apple, mlx=mlx) == chosen


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("method", name) for name in ("dpo", "orpo", "simpo", "kto")),
        *(("mode", name) for name in ("qlora", "full")),
        *(("init_lora_weights", name) for name in ("pissa", "loftq")),
        *(("use_dora", True), ("processes", 2), ("trust_remote_code", True)),
    ],
)
def test_what_it_does_not_train_is_refused_with_the_setting(setting: str, value: Any) -> None:
    with pytest.raises(InvalidSettingError, match=setting) as refused:
        RunConfig(data="d", backend="mlx", **{setting: value})
    assert refused.value.code == "CONFIG_INVALID_SETTING"


def test_without_it_the_command_that_installs_it_is_named(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as missing:
        models.resolved(replace(tiny_config, backend="mlx"))
    assert "backprop-tui[mlx]" in missing.value.hint
    assert "mlx, mlx_lm" in missing.value.message


@pytest.fixture(scope="module")
def rotating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with another base of its rotations, where transformers 5 writes it."""
    folder = write_model(tmp_path_factory.mktemp("models") / "rotating")
    settings = json.loads((folder / "config.json").read_text())
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 300.0}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def config(tiny_config: RunConfig) -> RunConfig:
    return replace(tiny_config, backend="mlx", lora_dropout=0.1)


def loaded_with(config: RunConfig, path: Path) -> models.Loaded:
    return models.load(models.resolved(replace(config, model=str(path))), path, lambda event: None)


@HERE
def test_its_numbers_are_those_of_torch(
    config: RunConfig, rotating: Path, ragged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlx = loaded_with(replace(config, lora_dropout=0.0), rotating).model
    theirs = loaded_with(replace(config, backend="cpu", lora_dropout=0.0), rotating).model
    weights = dict(mlx.named_parameters())
    assert weights.keys() == {name for name, each in theirs.named_parameters() if each.requires_grad}
    torch.manual_seed(5)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.normal_(0, 0.1)
            theirs.get_parameter(name).copy_(weight)
    rows = ragged([40, 9, 23])
    batch = pad([rows.row(i) for i in range(3)])
    with torch.no_grad():
        ours = mlx(input_ids=batch.input_ids).logits
        logits = theirs(input_ids=batch.input_ids).logits
        assert float(logits.abs().max()) > 1
        assert float((ours - logits).abs().max()) < TOLERANCE
        with mlx.disable_adapter(), theirs.disable_adapter():
            base = theirs(input_ids=batch.input_ids).logits
            assert float((mlx(input_ids=batch.input_ids).logits - base).abs().max()) < TOLERANCE
        assert float((base - logits).abs().max()) > 100 * TOLERANCE
        each = row_losses(mlx, batch, plain_head=False)
        assert each == pytest.approx(row_losses(theirs, batch, plain_head=False), abs=10 * TOLERANCE)
    for model in (mlx, theirs):
        (summed_loss(model, batch, plain_head=False) / 7).backward()
    for name, weight in weights.items():
        gradient = theirs.get_parameter(name).grad
        assert torch.allclose(weight.grad, gradient, atol=TOLERANCE, rtol=1e-3), name
    made = mlx.generate(batch.input_ids[:1, :9], max_new_tokens=6, eos_token_id=None)[0, 9:].tolist()
    ended = mlx.generate(batch.input_ids[:1, :9], max_new_tokens=6, eos_token_id=made[2:3])[0, 9:].tolist()
    assert ended == made[: made.index(made[2]) + 1]
    block = type(mlx._lm.layers[0])
    monkeypatch.setattr(block, "__call__", block.__call__)  # which is replaced for all of its kind
    mlx.gradient_checkpointing_enable()
    once = block.__call__
    assert once.__name__ == "checkpointed_fn"
    mlx.gradient_checkpointing_enable()
    assert block.__call__ is once
    before = {name: weight.grad.clone() for name, weight in weights.items()}
    (summed_loss(mlx, batch, plain_head=False) / 7).backward()
    for name, weight in weights.items():
        assert torch.allclose(weight.grad, 2 * before[name], atol=1e-6), name


@HERE
def test_a_run_is_one_like_any_other_and_resumes_exactly(config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, steps=6, eval_steps=3, sample_prompts=["heron"], sample_tokens=4, save_steps=2)
    whole, directory = train(config, [])
    (loaded,) = of(whole, ModelLoaded)
    assert (loaded.device, loaded.mode, loaded.dtype) == ("mlx (cpu)", "lora", "float32")
    assert loaded.parameters > 10_000
    losses = [step.loss for step in of(whole, Step)]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert {sample.tuned for sample in of(whole, Sample)} == {False, True}

    def stop_after_three(events: list[Event]) -> list[Any]:
        return [Stop()] if len(of(events, Step)) == 3 else []

    part, stopped = train(replace(config, output_dir=str(tmp_path / "again")), [], stop_after_three)
    assert of(part, RunFinished)[0].status == "stopped"
    rest = go_on(stopped)
    assert [step.loss for step in (*of(part, Step), *of(rest, Step))] == losses
    assert [step.grad_norm for step in (*of(part, Step), *of(rest, Step))] == [s.grad_norm for s in of(whole, Step)]
    assert of(rest, CheckpointSaved)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (stopped.adapter / file).read_bytes() == (directory.adapter / file).read_bytes()

    tuned = generate.load_model(Path(config.model), directory.adapter, "cpu")
    mlx = loaded_with(config, Path(config.model)).model
    set_peft_model_state_dict(mlx._adapted, load_peft_weights(str(directory.adapter), device="cpu"))
    assert mlx.peft_config["default"].r == 4
    mlx.eval()
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert float((tuned(input_ids=ids).logits - mlx(input_ids=ids).logits).abs().max()) < TOLERANCE
    answer = of(whole, Sample)[-1].text
    chat = ChatTokenizer.load(config.model)
    assert generate.reply(tuned, chat, "heron", Sampling(max_tokens=4)).text == answer


@HERE
@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"model_type": "opt", "num_hidden_layers": 1, "word_embed_proj_dim": 32, "ffn_dim": 32}, "opt not supported"),
    ],
)
def test_a_model_that_mlx_cannot_train_is_refused_by_name(
    settings: dict[str, Any], why: str, config: RunConfig, rotating: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(rotating, folder)
    before = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**before, **settings}))
    with pytest.raises(ModelLoadError, match=why) as refused:
        loaded_with(config, folder)
    assert "--backend cpu" in refused.value.hint or "16 or 32 bits" in refused.value.hint
