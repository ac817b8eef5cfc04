"""Base and adapter added tensor by tensor, beside what PEFT makes of the same adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backprop.core.errors import ExportError, MergeError
from backprop.core.models import settings_of
from backprop.export.merge import Adapter, MergedWeights
from backprop.export.sharded import largest_deviation, write_shards
from backprop.export.weights import StoredWeights, as_stored, row_pieces
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of these models are read in several pieces, as those of large ones are."""
    monkeypatch.setattr("backprop.export.weights._PIECE", 500)


def in_pieces(weights: MergedWeights, name: str) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([weights.read(name, rows) for rows in row_pieces(weights.shape(name))]))


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def write_adapter(model: Any, folder: Path, **settings: Any) -> PeftModel:
    """An adapter on ``model`` whose every part is as if it had been trained, saved in ``folder``."""
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 12, **settings}))
    generator = torch.Generator().manual_seed(7)
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and "magnitude" in name:
            weight.data *= 1 + 0.3 * torch.rand(weight.shape, generator=generator)
        elif weight.requires_grad:
            weight.data += torch.randn(weight.shape, generator=generator) * 0.1
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.eval()


def merged(base: Path, adapter: Path) -> MergedWeights:
    return MergedWeights(StoredWeights([base / "model.safetensors"]), Adapter(adapter), settings_of(base))


CASES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ALL},
    "some layers": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "rank pattern": {"target_modules": ALL, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}},
    "alpha pattern": {"target_modules": ALL, "alpha_pattern": {"v_proj": 3, r"layers\.0\.mlp\..*": 40}},
    "both patterns": {"target_modules": ALL, "rank_pattern": {"k_proj": 1}, "alpha_pattern": {"k_proj": 9}},
    "dora": {"target_modules": ALL, "use_dora": True},
    "dora and rslora": {"target_modules": ALL, "use_dora": True, "use_rslora": True},
    "whole norms": {"target_modules": ["q_proj"], "modules_to_save": ["norm", "input_layernorm"]},
}


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_the_one_that_peft_merges(tiny_model: Path, tmp_path: Path, name: str) -> None:
    adapted = write_adapter(load(tiny_model), tmp_path / "adapter", **CASES[name])
    expected = adapted.merge_and_unload().state_dict()

    found = merged(tiny_model, tmp_path / "adapter")

    base = load_file(tiny_model / "model.safetensors")
    assert found.names() == StoredWeights([tiny_model / "model.safetensors"]).names()
    assert not found.is_untied
    changed = {each for each in base if np.abs(found.read(each) - base[each]).max() > 0}
    assert changed == {each for each in base if found.stored(each) is None}
    assert changed
    for each in found.names():
        torch.testing.assert_close(in_pieces(found, each), expected[each], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_layers_stored_the_other_way_round_are_merged_so(tmp_path: Path, settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=32))
    model.save_pretrained(tmp_path / "base")
    targets = ["c_attn", "c_proj"]  # one of them is square: its shape does not tell
    adapted = write_adapter(load(tmp_path / "base"), tmp_path / "adapter", target_modules=targets, **settings)
    expected = adapted.merge_and_unload().state_dict()

    found = merged(tmp_path / "base", tmp_path / "adapter")

    for each in found.names():
        torch.testing.assert_close(in_pieces(found, each), expected[each], rtol=2e-6, atol=2e-6)


TIED = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "dora on the embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "neither": {"target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("name", TIED)
def test_a_change_on_one_side_of_a_tied_embedding_stays_on_that_side(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    ids = torch.tensor([[5, 40, 41, 200, 9]])
    adapted = write_adapter(load(tiny_model), tmp_path / "adapter", **TIED[name])
    with torch.no_grad():
        expected = adapted(ids).logits

    found = merged(tiny_model, tmp_path / "adapter")

    assert found.is_untied == (name != "neither")
    target = tmp_path / "merged"
    target.mkdir()
    write_shards(found, target, "f32", lambda *_: None)
    config = {**settings_of(tiny_model), "tie_word_embeddings": not found.is_untied}
    (target / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        torch.testing.assert_close(load(target)(ids).logits, expected, rtol=1e-5, atol=1e-5)


def rename(file: Path, change: Any) -> None:
    save_file({change(name): value for name, value in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name: name.replace("layers.1.self_attn.q_proj", "layers.7.self_attn.q_proj"), "layers.7.self_attn"),
        (lambda name: name.replace("layers.1.self_attn.q_proj.lora_A", "layers.1.self_attn.q_proj.lora_C"), "lora_C"),
        (lambda name: name.replace("q_proj.lora_A.weight", "q_proj.lora_A.bias"), "q_proj"),
        (lambda name: name.replace("layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"), "mlp.up_proj"),
        (lambda name: name.replace("lora_B.weight", "something"), "something"),
    ],
)
def test_a_part_without_a_place_is_named(tiny_model: Path, tmp_path: Path, change: Any, said: str) -> None:
    write_adapter(load(tiny_model), tmp_path / "adapter", target_modules=["q_proj"])
    rename(tmp_path / "adapter" / "adapter_model.safetensors", change)

    with pytest.raises(MergeError, match=said):
        merged(tiny_model, tmp_path / "adapter")


def test_another_vocabulary_than_the_bases_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    larger = load(tiny_model)
    larger.resize_token_embeddings(330)
    write_adapter(larger, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens"])

    with pytest.raises(MergeError, match=r"embed_tokens.* \(330, 32\), another one than in the base model"):
        merged(tiny_model, tmp_path / "adapter")


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"alora_invocation_tokens": [1, 2]},
        {"trainable_token_indices": [3]},
        {"peft_type": "IA3"},
        {"layer_replication": [[0, 2]]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_an_adapter_that_is_more_than_a_sum_is_refused(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    write_adapter(load(tiny_model), tmp_path / "adapter", target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))

    with pytest.raises(
        MergeError, match=next(iter(settings.values())) if "peft_type" in settings else next(iter(settings))
    ):
        merged(tiny_model, tmp_path / "adapter")


def test_an_adapter_is_trained_once_both_factors_are_not_zero(tiny_model: Path, tmp_path: Path) -> None:
    write_adapter(load(tiny_model), tmp_path / "trained", target_modules=["q_proj"])
    get_peft_model(load(tiny_model), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "new")

    whole = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    get_peft_model(load(tiny_model), whole).save_pretrained(tmp_path / "whole head")

    assert Adapter(tmp_path / "trained").is_trained
    assert not Adapter(tmp_path / "new").is_trained
    assert Adapter(tmp_path / "whole head").is_trained  # a layer beside it is, for all that can be told


@pytest.mark.parametrize(("dtype", "kind"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_values_are_rounded_as_torch_rounds_them(dtype: str, kind: torch.dtype) -> None:
    chooser = np.random.default_rng(3)
    values = (chooser.normal(size=4000) * 10.0 ** chooser.integers(-40, 4, 4000)).astype(np.float32)
    values[:6] = [0.0, -0.0, 1.00390625, 1.01171875, 65504.0, -1e-45]

    expected = torch.from_numpy(values).to(kind)

    assert as_stored("w", values, dtype).tobytes() == expected.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("value", "dtype"), [(7e4, "F16"), (3.4e38, "BF16"), (np.inf, "F32"), (np.nan, "BF16")])
def test_a_value_that_the_type_does_not_hold_is_refused_with_its_tensor(value: float, dtype: str) -> None:
    with pytest.raises(ExportError, match=r"layers\.3\.up"):
        as_stored("layers.3.up", np.array([1.0, value], np.float32), dtype)


def test_shards_are_bounded_and_read_as_one_model(tiny_model: Path, tmp_path: Path) -> None:
    weights = StoredWeights([tiny_model / "model.safetensors"])
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text((tiny_model / "config.json").read_text())
    seen: list[tuple[int, int]] = []

    write_shards(weights, target, "bf16", lambda doing, done, total: seen.append((done, total)), most=30_000)

    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 34_000 for file in files)
    assert seen == sorted(seen)
    assert (
        seen[-1][0]
        == seen[-1][1]
        == sum(value.size * 2 for value in load_file(tiny_model / "model.safetensors").values())
    )
    expected = load(tiny_model).to(torch.bfloat16).state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(target, dtype="auto").state_dict().items():
        assert torch.equal(value, expected[name])
    assert largest_deviation(StoredWeights(files), weights, "bf16", lambda *_: None)[0] <= 1.0
    assert largest_deviation(StoredWeights(files[1:]), weights, "bf16", lambda *_: None)[0] == np.inf


def test_a_tensor_that_is_a_little_off_is_found(tiny_model: Path, tmp_path: Path) -> None:
    weights = StoredWeights([tiny_model / "model.safetensors"])
    tensors = {name: weights.read(name) for name in weights.names()}
    tensors["model.norm.weight"][3] *= 1.001
    save_file(tensors, tmp_path / "model.safetensors")

    found, where = largest_deviation(StoredWeights([tmp_path / "model.safetensors"]), weights, "f16", lambda *_: None)

    assert (found > 1.0, where) == (True, "model.norm.weight")
