"""A whole model as one GGUF file: what stands in it, and that other programs read the same model out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from backprop.core.errors import GGUFError
from backprop.export.gguf.file import file_bytes, guarded_template, write_gguf
from backprop.export.weights import StoredWeights
from gguf import GGUFReader, GGUFValueType
from safetensors.numpy import load_file, save_file
from tiny_families import FAMILIES, write_family
from tiny_language_model import CHATML, VOCABULARY
from tokenizers import AddedToken, Tokenizer

Family = Callable[[str], Path]
LOADED_BY_TRANSFORMERS = ("llama-3", "qwen-2", "qwen-3", "phi-3", "gemma-2", "gemma-3")
"""Its loader of GGUF files knows fewer architectures than llama.cpp, no factors of long texts, no biases of queries."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Family:
    folder = tmp_path_factory.mktemp("families")

    def made(name: str) -> Path:
        path = folder / name
        return path if path.is_dir() else write_family(name, path, tiny_model, VOCABULARY)

    return made


def write(model: Path, target: Path, precision: str = "f32", template: str = CHATML, **more: Any) -> list[str]:
    weights = StoredWeights(sorted(model.glob("*.safetensors")))
    return write_gguf(model, weights, target, precision, template=template, provenance={"name": "Tiny"}, **more)


def values(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("name", LOADED_BY_TRANSFORMERS)
def test_transformers_reads_the_same_model_out_of_the_file(family: Family, tmp_path: Path, name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = family(name)
    assert write(model, tmp_path / "model.gguf") == []

    ids = torch.arange(3, 300, 7)[None]
    with torch.no_grad():
        trained = AutoModelForCausalLM.from_pretrained(model)(ids).logits
        config = AutoConfig.from_pretrained(model)  # it does not read all numbers that llama.cpp does
        read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", config=config)(ids).logits

    torch.testing.assert_close(read, trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama-3", "phi-3", "gemma-3"])
def test_the_size_of_a_file_is_known_to_the_byte_before_it_is_written(
    family: Family, tmp_path: Path, name: str
) -> None:
    model = family(name)
    weights = StoredWeights(sorted(model.glob("*.safetensors")))
    said = file_bytes(model, weights, CHATML)
    for precision in ("f32", "q8_0", "q4_k_m", "q2_k"):
        target = tmp_path / f"{precision}.gguf"
        write_gguf(model, weights, target, precision, template=CHATML, provenance={})
        assert target.stat().st_size == said[precision], precision


SHAPE = {"block_count": 4, "embedding_length": 64, "feed_forward_length": 96, "context_length": 2048}
HEADS = {"attention.head_count": 4, "attention.head_count_kv": 2}
NUMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"vocab_size": VOCABULARY, "rope.dimension_count": 16, "rope.freq_base": 10000.0}),
    "llama-3": ("llama", {"rope.dimension_count": 32, "attention.key_length": 32, "rope.freq_base": 500000.0}),
    "mistral": ("llama", {"attention.layer_norm_rms_epsilon": pytest.approx(1e-6)}),
    "smollm-3": ("smollm3", {"rope.dimension_count": 16, "rope.freq_base": 2000000.0}),
    "qwen-2": ("qwen2", {"attention.layer_norm_rms_epsilon": pytest.approx(1e-6)}),
    "qwen-3": ("qwen3", {"attention.key_length": 32, "attention.value_length": 32}),
    "qwen-3.5": (
        "qwen35",
        {
            "rope.dimension_count": 8,
            "rope.dimension_sections": [2, 1, 1, 0],
            "ssm.conv_kernel": 4,
            "ssm.state_size": 16,
            "ssm.group_count": 2,
            "ssm.time_step_rank": 4,
            "ssm.inner_size": 64,
            "full_attention_interval": 4,
            "attention.recurrent_layers": [True, True, True, False],
        },
    ),
    "phi-3": ("phi3", {"rope.dimension_count": 16, "attention.sliding_window": 0}),
    "phi-4-mini": (
        "phi3",
        {
            "rope.dimension_count": 12,
            "rope.scaling.original_context_length": 512,
            # The square root of 1 + ln(2048 / 512) / ln(512).
            "rope.scaling.attn_factor": pytest.approx(1.10554, abs=1e-5),
        },
    ),
    "gemma-2": (
        "gemma2",
        {
            "block_count": 6,
            "attention.key_length": 32,
            "attention.sliding_window": 64,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma-3": (
        "gemma3",
        {"block_count": 6, "rope.freq_base": 1000000.0, "rope.freq_base_swa": 10000.0, "attention.sliding_window": 64},
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_number_that_llama_cpp_needs_is_in_the_file(family: Family, tmp_path: Path, name: str) -> None:
    write(family(name), tmp_path / "model.gguf", "f16")

    found = values(tmp_path / "model.gguf")
    arch, numbers = NUMBERS[name]
    assert found["general.architecture"] == arch
    assert found["general.type"] == "model"
    assert found["general.file_type"] == 1
    assert found["general.quantization_version"] == 2
    expected = {f"{arch}.{key}": value for key, value in {**SHAPE, **HEADS, **numbers}.items()}
    assert {key: found.get(key) for key in expected} == expected


def test_rows_of_queries_and_keys_are_paired_and_nothing_else_is_changed(family: Family, tmp_path: Path) -> None:
    model = family("llama")
    write(model, tmp_path / "model.gguf")

    theirs, found = load_file(model / "model.safetensors"), tensors(tmp_path / "model.gguf")
    for letter, heads in (("q", 4), ("k", 2)):
        for part in ("weight", "bias"):
            trained = theirs[f"model.layers.1.self_attn.{letter}_proj.{part}"]
            # In each head of 16 the file's rows 2i and 2i + 1 are the model's i and i + 8.
            order = [head * 16 + half * 8 + i for head in range(heads) for i in range(8) for half in range(2)]
            np.testing.assert_array_equal(found[f"blk.1.attn_{letter}.{part}"], trained[order])
    for ours, name in {
        "blk.2.attn_v.weight": "model.layers.2.self_attn.v_proj.weight",
        "blk.2.attn_output.weight": "model.layers.2.self_attn.o_proj.weight",
        "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
        "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }.items():
        np.testing.assert_array_equal(found[ours], theirs[name])
    assert "output.weight" not in found  # tied: llama.cpp takes the embedding


def test_value_heads_of_recurrent_layers_go_round_the_key_heads(family: Family, tmp_path: Path) -> None:
    model = family("qwen-3.5")
    write(model, tmp_path / "model.gguf")

    theirs, found = load_file(model / "model.safetensors"), tensors(tmp_path / "model.gguf")
    place = "model.layers.0.linear_attn"
    heads = [0, 2, 1, 3]  # two value heads belong to each of two key heads
    rows = [head * 16 + i for head in heads for i in range(16)]
    behind = [*range(64), *(64 + row for row in rows)]  # keys and queries stay
    expected = {
        "attn_qkv.weight": theirs[f"{place}.in_proj_qkv.weight"][behind],
        "attn_gate.weight": theirs[f"{place}.in_proj_z.weight"][rows],
        "ssm_alpha.weight": theirs[f"{place}.in_proj_a.weight"][heads],
        "ssm_beta.weight": theirs[f"{place}.in_proj_b.weight"][heads],
        "ssm_conv1d.weight": theirs[f"{place}.conv1d.weight"][:, 0][behind],
        "ssm_dt.bias": theirs[f"{place}.dt_bias"][heads],
        "ssm_norm.weight": theirs[f"{place}.norm.weight"],
        "ssm_out.weight": theirs[f"{place}.out_proj.weight"][:, rows],
        "attn_norm.weight": theirs["model.layers.0.input_layernorm.weight"] + 1,
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(found[f"blk.0.{name}"], array, err_msg=name)
    np.testing.assert_allclose(found["blk.0.ssm_a"], -np.exp(theirs[f"{place}.A_log"][heads]), rtol=1e-6)
    assert found["blk.3.attn_q.weight"].shape == (2 * 4 * 32, 64)  # queries and their gate


def test_stretched_frequencies_are_tensors(family: Family, tmp_path: Path) -> None:
    write(family("llama-3"), tmp_path / "llama.gguf")
    write(family("phi-4-mini"), tmp_path / "phi.gguf")

    factors = tensors(tmp_path / "llama.gguf")["rope_freqs.weight"]
    # Wavelengths below 256 / 4 stay, those above 256 are stretched by 8, and one is between.
    assert factors[:3].tolist() == [1, 1, 1]
    assert set(factors[5:].tolist()) == {8}
    phi = tensors(tmp_path / "phi.gguf")
    np.testing.assert_array_equal(phi["rope_factors_long.weight"], np.float32([1, 1.5, 2, 3, 5, 9]))
    np.testing.assert_array_equal(phi["rope_factors_short.weight"], np.float32([1, 1.1, 1.2, 1.3, 1.4, 1.5]))


@pytest.mark.parametrize("name", ["llama-3", "gemma-3", "qwen-3.5", "phi-4-mini"])
def test_settings_of_older_transformers_say_the_same(family: Family, tmp_path: Path, name: str) -> None:
    write(family(name), tmp_path / "new.gguf")
    config = json.loads((family(name) / "config.json").read_text())
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    config["rope_scaling"] = {("type" if key == "rope_type" else key): value for key, value in rope.items()}
    older = copy_of(family(name), tmp_path / "older", **config)
    (older / "config.json").write_text(json.dumps(config))

    write(older, tmp_path / "old.gguf")

    new, old = values(tmp_path / "new.gguf"), values(tmp_path / "old.gguf")
    assert {key for key in new if new[key] != old.get(key)} == set()


def copy_of(model: Path, folder: Path, **settings: Any) -> Path:
    """The model with other settings: its files are links."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("llama", {"architectures": ["OPTForCausalLM"]}, "OPTForCausalLM cannot be written as GGUF"),
        ("llama", {"architectures": None}, "an architecture that is not named"),
        ("llama", {"hidden_act": "relu"}, "its activation is relu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "its positions are scaled by dynamic"),
        ("llama", {"vocab_size": VOCABULARY + 1}, f"the embedding has {VOCABULARY} rows"),
        ("llama", {"num_hidden_layers": 5}, "less than its config.json says, the first of them blk.4.attn_norm.weight"),
        ("llama", {"tie_word_embeddings": False}, "the first of them output.weight"),
        ("gemma-2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar is 144"),
        ("gemma-3", {"layer_types": ["full_attention"] * 6}, "6th layer alone"),
        ("smollm-3", {"no_rope_layers": [1, 1, 1, 1]}, "without positions"),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused_before_a_byte_is_written(
    family: Family, tmp_path: Path, name: str, settings: dict[str, Any], said: str
) -> None:
    model = copy_of(family(name), tmp_path / "model", **settings)
    target = tmp_path / "model.gguf"
    target.touch()

    with pytest.raises(GGUFError, match=said) as caught:
        write(model, target)

    assert "merged" in caught.value.hint or "again" in caught.value.hint or "vocab_size" in caught.value.hint
    assert target.read_bytes() == b""


def test_a_tensor_without_a_place_is_named(family: Family, tmp_path: Path) -> None:
    model = copy_of(family("llama"), tmp_path / "model")
    more = {**load_file(model / "model.safetensors"), "model.layers.0.self_attn.sinks": np.ones(4, np.float32)}
    (model / "model.safetensors").unlink()
    save_file(more, model / "model.safetensors")

    with pytest.raises(GGUFError, match=r"no place for the tensor model\.layers\.0\.self_attn\.sinks"):
        write(model, tmp_path / "model.gguf")


def test_a_head_that_was_trained_apart_is_kept_or_refused(family: Family, tmp_path: Path) -> None:
    """Both models say that it is tied; Gemma's in llama.cpp always is."""
    for name in ("llama", "gemma-2"):
        model = copy_of(family(name), tmp_path / name)
        theirs = load_file(model / "model.safetensors")
        theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"] * 2
        (model / "model.safetensors").unlink()
        save_file(theirs, model / "model.safetensors")

    write(tmp_path / "llama", tmp_path / "llama.gguf")
    found = tensors(tmp_path / "llama.gguf")
    np.testing.assert_array_equal(found["output.weight"], found["token_embd.weight"] * 2)
    with pytest.raises(GGUFError, match=r"lm_head\.weight is another matrix than the embedding"):
        write(tmp_path / "gemma-2", tmp_path / "gemma.gguf")


def test_parts_that_a_gguf_has_no_use_for_are_left_out_and_said(family: Family, tmp_path: Path) -> None:
    model = copy_of(family("gemma-3"), tmp_path / "model", architectures=["Gemma3ForConditionalGeneration"])
    theirs = {name.replace("model.", "model.language_model.", 1): t for name, t in load_file(
        model / "model.safetensors").items()}  # fmt: skip
    theirs["model.vision_tower.vision_model.head.weight"] = np.ones((2, 2), np.float32)
    (model / "model.safetensors").unlink()
    save_file(theirs, model / "model.safetensors")

    notes = write(model, tmp_path / "model.gguf")

    assert notes == ["1 tensors of the part for images are left out: a GGUF holds the language model"]
    write(family("gemma-3"), tmp_path / "text.gguf")
    of_text, found = tensors(tmp_path / "text.gguf"), tensors(tmp_path / "model.gguf")
    assert set(of_text) == set(found)
    for name, array in of_text.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_template_renders_the_same_and_is_far_from_every_other(tiny_model: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello"}]
    jinja = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    for template in (CHATML, "\n" + CHATML, "   " + CHATML, "\nno tag at all"):
        guarded = guarded_template(template)
        rendered = jinja.from_string(guarded).render(messages=turns, add_generation_prompt=True)
        assert rendered == jinja.from_string(template).render(messages=turns, add_generation_prompt=True)
        assert len(guarded) - len(template) > 100
    write(tiny_model, tmp_path / "model.gguf")
    assert values(tmp_path / "model.gguf")["tokenizer.chat_template"] == guarded_template(CHATML)


def test_a_model_without_a_template_is_said_to_have_none(tiny_model: Path, tmp_path: Path) -> None:
    notes = write(tiny_model, tmp_path / "model.gguf", template="")

    assert [note for note in notes if "no chat template" in note]
    assert "tokenizer.chat_template" not in values(tmp_path / "model.gguf")


def test_where_the_model_comes_from_is_written(family: Family, tmp_path: Path) -> None:
    model = copy_of(family("llama"), tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20, "top_p": None}))
    weights = StoredWeights([model / "model.safetensors"])
    origin = {"name": "Tiny", "license": "mit", "base_model": "them/tiny", "run_id": "r-1", "data_hash": "abc"}

    write_gguf(model, weights, tmp_path / "model.gguf", "f32", template=CHATML, provenance=origin)

    found = values(tmp_path / "model.gguf")
    named = {key: found[f"general.{key}"] for key in ("name", "license", "run_id", "data_hash", "base_model.0.name")}
    assert named == {key: origin[key.removesuffix(".0.name")] for key in named}
    assert found["general.sampling.temp"] == pytest.approx(0.6)
    assert found["general.sampling.top_k"] == 20
    assert "general.sampling.top_p" not in found


PHI_TOKENS = ["<unk>", "<s>", "</s>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("name", "tokens", "written"),
    [
        ("Tuned", PHI_TOKENS, "Tuned (phi-3)"),
        ("My Phi-3", PHI_TOKENS, "My Phi-3"),
        ("My Phi-3", [], "My phi 3"),  # llama.cpp looks the four up and does not load the file
    ],
)
def test_the_name_says_phi_3_to_llama_cpp_only_where_it_can_be_taken_for_it(
    tiny_model: Path, tmp_path: Path, name: str, tokens: list[str], written: str
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|user|>", rstrip=True), *tokens])
    (model / "tokenizer.json").unlink()
    tokenizer.save(str(model / "tokenizer.json"))
    weights = StoredWeights([model / "model.safetensors"])

    said = write_gguf(model, weights, tmp_path / "m.gguf", "f32", template=CHATML, provenance={"name": name})

    assert values(tmp_path / "m.gguf")["general.name"] == written
    assert said == ["llama.cpp keeps whitespace behind <|user|>, which training swallowed"] * (not tokens)


def test_a_window_that_llama_cpp_ignores_is_said(family: Family, tmp_path: Path) -> None:
    model = copy_of(family("mistral"), tmp_path / "model", sliding_window=128)

    assert write(model, tmp_path / "model.gguf") == [
        "llama.cpp ignores the model's sliding window: beyond 128 tokens answers may differ"
    ]


def test_progress_names_every_tensor_and_can_stop_the_work(tiny_model: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    write(tiny_model, tmp_path / "model.gguf", "f16", progress=lambda *what: told.append(what))

    reader = GGUFReader(tmp_path / "model.gguf")
    total = sum(tensor.n_bytes for tensor in reader.tensors)
    assert [name for name, _, _ in told[:-1]] == [tensor.name for tensor in reader.tensors]
    assert told[0][1:] == (0, total)
    assert told[-1][1:] == (total, total)

    class Stopped(Exception):
        pass

    def stop(name: str, done: int, total: int) -> None:
        if done:
            raise Stopped

    with pytest.raises(Stopped):
        write(tiny_model, tmp_path / "stopped.gguf", progress=stop)


def test_pieces_of_a_large_tensor_are_changed_as_the_whole(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("llama", "qwen-3.5"):
        write(family(name), tmp_path / "whole.gguf", "f16")
        monkeypatch.setattr("backprop.export.weights._PIECE", 300)
        write(family(name), tmp_path / "pieces.gguf", "f16")
        monkeypatch.undo()
        assert (tmp_path / "pieces.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_types_of_values_are_those_that_readers_ask_for(tiny_model: Path, tmp_path: Path) -> None:
    """llama.cpp refuses a number that has another type than it asks for."""
    write(tiny_model, tmp_path / "model.gguf")

    types = {key: field.types for key, field in GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert types["llama.rope.freq_base"] == [GGUFValueType.FLOAT32]
    assert types["llama.block_count"] == [GGUFValueType.UINT32]
    assert types["tokenizer.ggml.eos_token_id"] == [GGUFValueType.UINT32]
    assert types["tokenizer.ggml.add_bos_token"] == [GGUFValueType.BOOL]
    assert types["tokenizer.ggml.tokens"] == [GGUFValueType.ARRAY, GGUFValueType.STRING]
    assert types["tokenizer.ggml.token_type"] == [GGUFValueType.ARRAY, GGUFValueType.INT32]
