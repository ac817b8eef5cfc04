"""Proving a GGUF file: a right one passes, and each way of breaking one is caught and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backprop.core.jobs import Check
from backprop.export.gguf.file import write_gguf
from backprop.export.gguf.quantize import quantize
from backprop.export.gguf.tokenization import AWKWARD_TEXTS
from backprop.export.verify import verify
from backprop.export.weights import StoredWeights
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, TokenType
from tiny_families import FAMILIES, write_family
from tiny_language_model import CHATML, VOCABULARY, write_model

Tensors = dict[str, np.ndarray]
PLACES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def stored(model: Path) -> StoredWeights:
    return StoredWeights([model / "model.safetensors"])


def tensors(model: Path) -> Tensors:
    """The model's tensors as llama.cpp names and orders them."""
    weights, made = stored(model), {}
    for name in weights.names():
        array = weights.read(name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            array = np.ascontiguousarray(array.reshape(4, 2, 4, 32).swapaxes(1, 2).reshape(32, 32))
        place = name.removeprefix("model.").replace("embed_tokens", "token_embd").replace("layers.", "blk.")
        place = "output_norm.weight" if place == "norm.weight" else place
        for part, called in PLACES.items():
            place = place.replace(part, called)
        made[place] = array
    return made


def vocabulary(model: Path) -> dict[str, Any]:
    """What the file says of tokens and template, by key."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    padding = [f"[PAD{n}]" for n in range(len(tokens), VOCABULARY)]
    return {
        "model_folder": model,
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens + padding,
        "types": [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3) + [TokenType.UNUSED] * len(padding),
        "merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
        "eos": 2,
        "bos": None,
        "add_bos": False,
        "template": CHATML,
    }


def write(path: Path, made: Tensors, said: dict[str, Any], kind: GGMLQuantizationType | None = None) -> Path:
    file = GGUFWriter(path, "llama")
    config = json.loads((said["model_folder"] / "config.json").read_text())
    file.add_block_count(config["num_hidden_layers"])
    file.add_context_length(config["max_position_embeddings"])
    file.add_embedding_length(config["hidden_size"])
    file.add_feed_forward_length(config["intermediate_size"])
    file.add_head_count(config["num_attention_heads"])
    file.add_head_count_kv(config["num_key_value_heads"])
    file.add_layer_norm_rms_eps(config["rms_norm_eps"])
    file.add_rope_freq_base(10000.0)
    file.add_tokenizer_model(said["model"])
    file.add_tokenizer_pre(said["pre"])
    file.add_token_list(said["tokens"])
    file.add_token_types(said["types"])
    file.add_token_merges(said["merges"])
    for key, add in {"eos": file.add_eos_token_id, "bos": file.add_bos_token_id}.items():
        if said[key] is not None:
            add(said[key])
    file.add_add_bos_token(said["add_bos"])
    if said["template"] is not None:
        file.add_chat_template(said["template"])
    for name, array in made.items():
        wanted = GGMLQuantizationType.F32 if kind is None or array.ndim == 1 else kind
        file.add_tensor(name, quantize(array, wanted, name), raw_dtype=wanted)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def failed(check: Check) -> dict[str, str]:
    """What did not pass, with the words."""
    assert check.passed == all(each.passed for each in check.compared)
    return {each.name: each.detail for each in check.compared if not each.passed}


@pytest.mark.parametrize("kind", [None, "F16", "BF16", "Q8_0", "Q5_0", "Q4_0"])
def test_a_right_file_passes_with_its_numbers(model: Path, tmp_path: Path, kind: str | None) -> None:
    path = write(tmp_path / "a.gguf", tensors(model), vocabulary(model), GGMLQuantizationType[kind] if kind else None)
    check = verify(path, model, stored(model), prompts=["Where is the harbour?", [{"role": "user", "content": "x"}]])
    assert failed(check) == {}
    words = {each.name: each.detail for each in check.compared}
    assert list(words) == ["tensors", "numbers", "vocabulary", "tokenization", "end tokens", "chat template"]
    assert "20 tensors, the largest error" in words["tensors"]
    assert words["vocabulary"] == "320 tokens, as many as the embedding has rows, 24 of them padding"
    assert words["tokenization"] == "201 awkward texts become the same tokens"
    assert words["end tokens"] == "eos '<|im_end|>'; no begin token, as in training"
    assert words["chat template"] == "8 prompts, with and without a system turn, are those of training, byte for byte"


def _unpermuted(made: Tensors, model: Path) -> None:
    made["blk.1.attn_k.weight"] = stored(model).read("model.layers.1.self_attn.k_proj.weight")


def _swapped_rows(made: Tensors, model: Path) -> None:
    rows = made["token_embd.weight"].copy()
    rows[[7, 8]] = rows[[8, 7]]
    made["token_embd.weight"] = rows


def _another_layer(made: Tensors, model: Path) -> None:
    made["blk.0.ffn_up.weight"] = made["blk.1.ffn_up.weight"]


def _base_instead(made: Tensors, model: Path) -> None:
    made["blk.1.attn_v.weight"] = made["blk.1.attn_v.weight"] * 1.5


def _without(made: Tensors, model: Path) -> None:
    del made["blk.1.ffn_norm.weight"]


def _one_too_many(made: Tensors, model: Path) -> None:
    made["blk.0.attn_q.bias"] = np.zeros(32, np.float32)


def _transposed(made: Tensors, model: Path) -> None:
    made["blk.0.ffn_down.weight"] = np.ascontiguousarray(made["blk.0.ffn_down.weight"].T)


@pytest.mark.parametrize("kind", [None, "Q4_0"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_unpermuted, "blk.1.attn_k.weight"),
        (_swapped_rows, "token_embd.weight"),
        (_another_layer, "blk.0.ffn_up.weight"),
        (_base_instead, "blk.1.attn_v.weight"),
        (_without, "blk.1.ffn_norm.weight is missing"),
        (_one_too_many, "blk.0.attn_q.bias is in the file and not in the model"),
        (_transposed, "blk.0.ffn_down.weight has the shape (64, 32), not (32, 64)"),
    ],
)
def test_a_wrong_tensor_is_named(
    model: Path, tmp_path: Path, change: Callable[[Tensors, Path], None], words: str, kind: str | None
) -> None:
    made = tensors(model)
    change(made, model)
    path = write(tmp_path / "a.gguf", made, vocabulary(model), GGMLQuantizationType[kind] if kind else None)
    found = failed(verify(path, model, stored(model)))
    assert list(found) == ["tensors"]
    assert words in found["tensors"]


def test_a_value_that_is_no_number_is_found(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", tensors(model), vocabulary(model))
    place = next(each for each in GGUFReader(path).tensors if each.name == "output_norm.weight").data_offset
    with path.open("r+b") as file:
        file.seek(place)
        file.write(np.array([np.nan], np.float32).tobytes())
    assert "output_norm.weight (f32) is off by inf" in failed(verify(path, model, stored(model)))["tensors"]


MORE_TOKENS = [f"[PAD{n}]" for n in range(4)]


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"template": None}, "chat template", "there is no chat template in the file"),
        ({"template": "{% for"}, "chat template", "the one in the file is broken"),
        (
            {"template": CHATML.replace("<|im_end|>\n", "<|im_end|>")},
            "chat template",
            "without a system turn the file renders ",
        ),
        (
            {"template": "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML},
            "chat template",
            "with a system turn only training takes the conversation",
        ),
        ({"bos": 0, "add_bos": True}, "chat template", "a server reads other tokens than training did"),
        ({"add_bos": True}, "end tokens", "a begin token is to be added and none is set"),
        ({"eos": None}, "end tokens", "no end token is set"),
        ({"eos": 0}, "end tokens", "'<|im_end|>', which ends an answer in training, is no end token of the file"),
        ({"pre": "klingon"}, "file", "how text is split for tokenizer.ggml.pre 'klingon' is not known"),
        ({"model": "wordpiece"}, "file", "vocabularies of the kind 'wordpiece' (tokenizer.ggml.model) are not known"),
        ({"merges": []}, "tokenization", "is "),
    ],
)
def test_a_wrong_word_about_the_text_is_named(
    model: Path, tmp_path: Path, changes: dict[str, Any], name: str, words: str
) -> None:
    path = write(tmp_path / "a.gguf", tensors(model), vocabulary(model) | changes)
    found = failed(verify(path, model, stored(model)))
    assert name in found
    assert words in found[name]


def test_another_begin_token_than_the_models_is_named(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "begins")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|im_start|>"}))
    right = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["<|im_start|>"]
    for bos, said in ((right, None), (0, f"the begin token is 0 in the file and {right} in the model")):
        path = write(tmp_path / f"{bos}.gguf", tensors(folder), vocabulary(folder) | {"bos": bos})
        assert failed(verify(path, folder, stored(folder))).get("end tokens") == said


def test_a_comment_before_the_template_changes_nothing(model: Path, tmp_path: Path) -> None:
    said = vocabulary(model) | {"template": "{# " + "-" * 120 + " #}" + CHATML}
    assert failed(verify(write(tmp_path / "a.gguf", tensors(model), said), model, stored(model))) == {}


def test_the_template_is_compared_with_that_of_training(model: Path, tmp_path: Path) -> None:
    trained = "{# another #}" + CHATML.replace("<|im_start|>assistant", "<|im_start|>assistant<think>")
    path = write(tmp_path / "a.gguf", tensors(model), vocabulary(model))
    found = failed(verify(path, model, stored(model), template=trained))
    assert "where training rendered '>assistant<think>\\n'" in found["chat template"]
    said = vocabulary(model) | {"template": trained}
    assert failed(verify(write(tmp_path / "b.gguf", tensors(model), said), model, stored(model), trained)) == {}


def test_another_count_of_tokens_than_rows_is_named(model: Path, tmp_path: Path) -> None:
    said = vocabulary(model)
    said |= {"tokens": said["tokens"] + MORE_TOKENS, "types": said["types"] + [TokenType.UNUSED] * 4}
    found = failed(verify(write(tmp_path / "a.gguf", tensors(model), said), model, stored(model)))
    assert found == {"vocabulary": "token_embd.weight has 320 rows for 324 tokens"}
    said = vocabulary(model)
    said |= {"tokens": said["tokens"][:290], "types": said["types"][:290]}
    found = failed(verify(write(tmp_path / "b.gguf", tensors(model), said), model, stored(model)))
    assert "; the tokenizer knows 296 tokens, the file 290" in found["vocabulary"]


def test_padding_that_is_no_padding_and_a_wrong_token_are_named(model: Path, tmp_path: Path) -> None:
    said = vocabulary(model)
    said["tokens"][280] = "changed"
    said["types"][310] = TokenType.NORMAL
    found = failed(verify(write(tmp_path / "a.gguf", tensors(model), said), model, stored(model)))
    assert "token 280 is 'changed' in the file and " in found["vocabulary"]
    assert "token 310 is '[PAD310]' in the file and in no vocabulary of the model" in found["vocabulary"]


@pytest.mark.parametrize("keep", [0, 3, 40, 9000, -200])
def test_a_truncated_file_is_caught(model: Path, tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a.gguf", tensors(model), vocabulary(model))
    path.write_bytes(path.read_bytes()[: keep or None] if keep else b"")
    found = failed(verify(path, model, stored(model)))
    assert found["file"].startswith("a.gguf is damaged: ")


def test_another_file_than_gguf_is_caught(model: Path) -> None:
    assert failed(verify(model / "model.safetensors", model, stored(model)))["file"].startswith("model.safetensors is")


@pytest.mark.parametrize(
    ("key", "another"),
    [
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.attention.layer_norm_rms_epsilon", 1e-3),
        ("llama.rope.freq_base", 500000.0),
        ("llama.block_count", 3),
        ("llama.context_length", 7),
    ],
)
def test_a_wrong_number_of_the_network_is_named(model: Path, tmp_path: Path, key: str, another: float) -> None:
    write_gguf(model, stored(model), path := tmp_path / "a.gguf", "f32", template=CHATML, provenance={"name": "Tiny"})
    assert failed(verify(path, model, stored(model), CHATML)) == {}
    field = GGUFReader(path, "r+").fields[key]
    field.parts[field.data[0]][0] = another
    assert key in failed(verify(path, model, stored(model), CHATML))["numbers"]


def test_AWKWARD_TEXTS_are_two_hundred_different_ones() -> None:
    assert len(set(AWKWARD_TEXTS)) == len(AWKWARD_TEXTS) == 200


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_writer_makes_of_every_family_passes(name: str, model: Path, tmp_path: Path) -> None:
    folder = write_family(name, tmp_path / "model", model, VOCABULARY)
    weights = StoredWeights(sorted(folder.glob("*.safetensors")))
    path = tmp_path / "a.gguf"
    write_gguf(folder, weights, path, "q8_0", template=CHATML, provenance={"name": "Tiny"})
    assert failed(verify(path, folder, weights, CHATML)) == {}
