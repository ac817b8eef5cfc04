from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs_in_process
import torch
from backprop.core.errors import GPUNotAvailableError, InvalidSettingError, ModelLoadError
from backprop.core.events import Event, ModelLoaded, Step
from backprop.core.rules import require_layers
from backprop.core.settings import RunConfig
from backprop.data import tokenizer
from backprop.train import generate
from backprop.train import model as models
from backprop.train.loss import base_model, traits_of
from backprop.train.modes import lora
from msgspec.structs import replace
from safetensors.torch import load_file, save_file


def ignore(event: Event) -> None:
    pass


def test_a_damaged_weight_file_is_an_error_with_its_place(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes()[:5000])

    with pytest.raises(ModelLoadError, match="cannot be loaded") as caught:
        models.load_base(tmp_path, torch.device("cpu"), torch.float32)
    assert str(tmp_path) in caught.value.message


def test_weights_in_a_pickle_are_not_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        models.load_base(folder, torch.device("cpu"), torch.float32)


def changed(model: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]], **settings: Any) -> Path:
    """A copy of ``model`` with other tensors or another configuration."""
    shutil.copytree(model, target)
    save_file(change(load_file(target / "model.safetensors")), target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **settings}))
    return target


@pytest.mark.parametrize(
    ("change", "settings", "named"),
    [
        (lambda all: {f"module.{n}": w for n, w in all.items()}, {}, "unexpected: module.model.embed_tokens.weight"),
        (lambda all: {n: w for n, w in all.items() if ".layers.1." not in n}, {}, "missing: model.layers.1."),
        (lambda all: all, {"tie_word_embeddings": False}, "missing: lm_head.weight"),
        (lambda all: {**all, "model.norm.weight": torch.ones(7)}, {}, "of another shape: model.norm.weight"),
        (lambda all: {**all, "score.weight": torch.ones(1, 32)}, {}, "unexpected: score.weight"),
    ],
    ids=["prefix", "missing layer", "untied head", "shape", "reward model"],
)
def test_weights_that_do_not_fit_the_architecture_are_refused_by_name(
    tiny_model: Path, tmp_path: Path, change: Any, settings: dict[str, Any], named: str
) -> None:
    model = changed(tiny_model, tmp_path / "model", change, **settings)

    with pytest.raises(ModelLoadError, match="not those of the architecture") as caught:
        models.load_base(model, torch.device("cpu"), torch.float32)
    assert named in caught.value.message
    assert caught.value.code == "DEP_MODEL_LOAD_FAILED"


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"model_type": "zorgle"}, "does not know the type 'zorgle'"),
        ({"model_type": "t5"}, "the type 't5' does not continue text"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are quantised (gptq)"),
    ],
    ids=["unknown", "no language model", "quantised"],
)
def test_a_model_that_cannot_be_loaded_is_said_with_what_helps(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any], hint: str
) -> None:
    model = changed(tiny_model, tmp_path / "model", dict, **settings)

    with pytest.raises(ModelLoadError, match="cannot be loaded") as caught:
        models.load_base(model, torch.device("cpu"), torch.float32)
    assert hint in caught.value.hint
    assert len(caught.value.message) < 500


def test_code_that_a_model_brings_runs_only_where_it_is_trusted(
    tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    folder = changed(Path(tiny_config.model), tmp_path / "model", dict, model_type="own", auto_map=names)
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = models.resolved(replace(tiny_config, model=str(folder)))

    for load in (lambda: models.load(config, folder, ignore), lambda: generate.load_model(folder, None, "cpu")):
        with pytest.raises(ModelLoadError, match="cannot be loaded") as caught:
            load()
        assert "--trust-remote-code" in caught.value.hint
    assert not (tmp_path / "ran").exists()

    loaded = models.load(replace(config, trust_remote_code=True), folder, ignore)
    assert (tmp_path / "ran").exists()
    assert type(base_model(loaded.model)).__name__ == "Own"


def test_a_model_that_sees_the_tokens_it_should_predict_is_refused(tiny_config: RunConfig, tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    shape = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "initializer_range": 0.3}
    assert not traits_of(BertLMHeadModel(BertConfig(**shape, is_decoder=True)).eval()).sees_what_follows
    BertLMHeadModel(BertConfig(**shape)).save_pretrained(tmp_path / "bert")
    shutil.copy(Path(tiny_config.model) / "tokenizer.json", tmp_path / "bert")
    with pytest.raises(ModelLoadError, match="sees the tokens that it should predict"):
        models.load(models.resolved(tiny_config), tmp_path / "bert", ignore)


def test_special_tokens_that_were_never_trained_are_named_once(tiny_config: RunConfig, tmp_path: Path) -> None:
    def emptied(weights: dict[str, Any]) -> dict[str, Any]:
        weights["model.embed_tokens.weight"][1:3] = 0
        return weights

    model = changed(Path(tiny_config.model), tmp_path / "model", emptied)
    events, _ = runs_in_process.train(replace(tiny_config, model=str(model), steps=1), [])

    (said,) = [event for event in events if getattr(event, "code", "") == "TOKENS_UNTRAINED"]
    assert "<|im_start|>, <|im_end|>" in said.message
    events, _ = runs_in_process.train(replace(tiny_config, steps=1), [])
    assert "TOKENS_UNTRAINED" not in [getattr(event, "code", "") for event in events]


def test_weights_of_the_model_that_are_not_finite_are_named(tiny_config: RunConfig, tmp_path: Path) -> None:
    def sick(weights: dict[str, Any]) -> dict[str, Any]:
        weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
        return weights

    model = changed(Path(tiny_config.model), tmp_path / "model", sick)
    with pytest.raises(models.TrainingError) as caught:
        runs_in_process.train(replace(tiny_config, model=str(model), steps=9), [])
    assert caught.value.code == "RUNTIME_NOT_FINITE"
    assert "model.layers.1.mlp.up_proj" in caught.value.hint
    assert str(model) in caught.value.hint
    assert caught.value.details == {}, "no rate mends the weights"


@pytest.mark.parametrize(
    "extra", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "vision_tower.layers.0.weight"]
)
def test_a_head_beside_tied_embeddings_old_rotary_tables_and_towers_for_images_are_no_fault(
    tiny_model: Path, tmp_path: Path, extra: str
) -> None:
    shape = (320, 32) if extra == "lm_head.weight" else (4,)
    model = changed(tiny_model, tmp_path / "model", lambda all: {**all, extra: torch.ones(shape)})

    assert models.load_base(model, torch.device("cpu"), torch.float32)


def test_a_token_beyond_the_embedding_is_refused_before_the_first_step(
    tiny_config: RunConfig, tiny_model: Path, tmp_path: Path
) -> None:
    name = "model.embed_tokens.weight"
    model = changed(tiny_model, tmp_path / "model", lambda all: {**all, name: all[name][:200]}, vocab_size=200)
    events: list[Event] = []

    with pytest.raises(ModelLoadError, match="the model knows 200 tokens only") as caught:
        runs_in_process.train(replace(tiny_config, model=str(model)), events)
    written = caught.value.details
    assert written["id"] >= 200
    assert repr(written["token"]) in caught.value.message
    assert not [event for event in events if isinstance(event, Step)]


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


class Layers(torch.nn.Module):
    """Blocks of linear layers with the given names, and a head."""

    def __init__(self, *blocks: list[str]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"attn": torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in names})})
            for names in blocks
        )
        self.head = torch.nn.Linear(4, 9)

    def get_output_embeddings(self) -> Any:
        return self.head


@pytest.mark.parametrize(
    ("preset", "blocks", "targets", "note"),
    [
        ("balanced", [["wqkv"]], ["wqkv"], "all linear"),
        (
            "balanced",
            [["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]],
            ["o_proj", "down_proj", "gate_up_proj", "qkv_proj"],
            "gate_up_proj, qkv_proj too",
        ),
        ("fast", [["qkv_proj", "o_proj"]], ["o_proj", "qkv_proj"], "no q_proj, v_proj"),
        ("fast", [["q_proj", "v_proj"], ["in_proj"]], ["q_proj", "v_proj"], "1 of 2 layers"),
        ("fast", [["q_proj", "kv_proj"]], ["q_proj"], "no v_proj"),
    ],
)
def test_a_presets_layers_are_found_among_the_models_own(
    tiny_config: RunConfig, preset: str, blocks: list[list[str]], targets: list[str], note: str
) -> None:
    found, notes = lora.choose_targets(Layers(*blocks), models.resolved(replace(tiny_config, lora_preset=preset)))

    assert found == targets
    assert note in notes[0]


def test_all_linear_is_every_linear_layer_whatever_the_preset_and_the_names(tiny_config: RunConfig) -> None:
    asked = replace(tiny_config, lora_preset="fast", target_modules=["all-linear"])
    require_layers(asked, {"qkv_proj", "o_proj"})

    found, notes = lora.choose_targets(Layers(["qkv_proj", "o_proj"]), models.resolved(asked))

    assert found == ["o_proj", "qkv_proj"]
    assert "qkv_proj too" in notes[0]


def test_gpt2_whose_layers_are_convolutions_in_name_gets_adapters_on_all_of_them(
    tiny_config: RunConfig, tiny_model: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(vocab_size=320, n_embd=8, n_layer=1, n_head=2, n_positions=64)
    model = lora.LoRA(models.resolved(tiny_config), "gpt2").load(lambda: GPT2LMHeadModel(small))

    adapted = {name.split(".")[-4] for name, weight in model.named_parameters() if weight.requires_grad}
    assert adapted == {"c_attn", "c_proj", "c_fc"}


def test_experts_that_no_adapter_reaches_are_named_with_their_share() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    small = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    (note,) = lora.experts_note(MixtralForCausalLM(small))
    assert re.search(r"experts \(\d\d% of the weights\) get no adapter", note)
    assert lora.experts_note(torch.nn.Linear(2, 2)) == []


def test_experts_with_shared_ones_are_trained_and_the_adapter_comes_back_on_the_same_layers(
    tiny_config: RunConfig, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    small = DeepseekV3Config(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    )
    folder = tmp_path / "experts"
    DeepseekV3ForCausalLM(small).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny_config.model) / name, folder)

    events, directory = runs_in_process.train(replace(tiny_config, model=str(folder), lora_dropout=0.05), [])

    (told,) = [event for event in events if isinstance(event, ModelLoaded)]
    assert "nor do down_proj, gate_proj, up_proj" in told.notes[-1]
    assert set(told.targets) == {"o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}
    base = models.load_base(folder, torch.device("cpu"), torch.float32)
    back = PeftModel.from_pretrained(base, directory.adapter).state_dict()
    saved = load_file(directory.adapter / "adapter_model.safetensors")
    assert {name.replace(".default", "") for name in back if "lora_" in name} == set(saved)


def _half_the_rank(config: Any) -> None:
    config.r //= 2


def _narrow(made: Any, part: str) -> None:
    for name, each in made.named_parameters():
        each.data = each.data.bfloat16() if part in name else each.data


def _frozen(made: Any) -> None:
    made.requires_grad_(False)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (_half_the_rank, lambda made: None, "not what was asked for: ranks"),
        (lambda config: None, lambda made: _narrow(made, "lora_"), "not what was asked for: ranks .*bfloat16"),
        (lambda config: None, lambda made: _narrow(made, "norm"), "not what was asked for: frozen ones in .*bfloat16"),
        (lambda config: None, _frozen, "the adapters are not what is trained"),
    ],
    ids=["rank", "adapters narrow", "frozen weights narrow", "nothing trained"],
)
def test_what_is_in_memory_is_held_against_what_was_asked(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch, before: Any, after: Any, words: str
) -> None:
    plain = lora.get_peft_model

    def careless(model: Any, config: Any) -> Any:
        before(config)
        made = plain(model, config)
        after(made)
        return made

    monkeypatch.setattr(lora, "get_peft_model", careless)

    with pytest.raises(models.TrainingError, match=words):
        models.load(models.resolved(tiny_config), Path(tiny_config.model), ignore)


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


def test_a_run_reads_its_tokenizer_once(tiny_config: RunConfig) -> None:
    tokenizer._read.cache_clear()

    runs_in_process.train(replace(tiny_config, steps=1, max_seq_length="auto"), [])

    assert tokenizer._read.cache_info().misses == 1
