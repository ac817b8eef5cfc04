"""An adapter alone as GGUF: added to a GGUF of its base it makes the file of the merged model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backprop.core.errors import GGUFError
from backprop.core.models import settings_of
from backprop.export.gguf.file import write_gguf
from backprop.export.gguf.lora import is_written, write_lora_gguf
from backprop.export.merge import Adapter, MergedWeights
from backprop.export.weights import StoredWeights, Weights
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file
from tiny_families import write_family
from tiny_language_model import VOCABULARY

RANK, ALPHA = 4, 6


def write_adapter(base: Path, folder: Path, modules: str, ranks: dict[str, int] | None = None, **settings: Any) -> Path:
    """An adapter of the modules whose names fit ``modules``, as PEFT writes it."""
    chooser = np.random.default_rng(5)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if re.search(modules, module) and weight.ndim == 2:
            rank = next((rank for end, rank in (ranks or {}).items() if module.endswith(end)), RANK)
            for side, shape in (("A", (rank, weight.shape[1])), ("B", (weight.shape[0], rank))):
                key = f"base_model.model.{module}.lora_{side}.weight"
                tensors[key] = chooser.normal(0, 0.2, shape).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "rank_pattern": ranks or {}, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("family", "modules", "kind"),
    [
        ("llama", "_proj$", {}),
        ("llama", "_proj$", {"use_rslora": True}),
        ("llama", "(q|down)_proj$", {"ranks": {"q_proj": 2}, "alpha_pattern": {"down_proj": 16}}),
        ("llama", "(q|down)_proj$", {"ranks": {"q_proj": 2}, "use_rslora": True}),
        ("phi-3", "_proj$", {}),
        ("qwen-3.5", r"_proj(_\w+)?$", {"use_rslora": True}),
    ],
)
def test_base_and_adapter_together_are_the_merged_model(
    tiny_model: Path, tmp_path: Path, family: str, modules: str, kind: dict[str, Any]
) -> None:
    base = write_family(family, tmp_path / "base", tiny_model, VOCABULARY)
    adapter = Adapter(write_adapter(base, tmp_path / "adapter", modules, **kind))
    stored = StoredWeights([base / "model.safetensors"])
    whole: dict[str, Weights] = {"base": stored, "merged": MergedWeights(stored, adapter, settings_of(base))}
    for name, weights in whole.items():
        write_gguf(base, weights, tmp_path / f"{name}.gguf", "f32", template="", provenance={})

    write_lora_gguf(adapter, base, tmp_path / "lora.gguf", "f32", provenance={"name": "Tuned"})

    before, after, change = (tensors(tmp_path / f"{name}.gguf") for name in ("base", "merged", "lora"))
    alpha = GGUFReader(tmp_path / "lora.gguf").fields["adapter.lora.alpha"].contents()
    for name, weight in before.items():
        if f"{name}.lora_b" in change:
            a, b = change.pop(f"{name}.lora_a"), change.pop(f"{name}.lora_b")
            weight = weight + alpha / b.shape[1] * (b @ a)  # as llama.cpp adds it
        np.testing.assert_allclose(after[name], weight, rtol=1e-4, atol=1e-5, err_msg=name)
    assert change == {}


def test_the_file_says_that_it_is_an_adapter_and_of_what(tiny_model: Path, tmp_path: Path) -> None:
    adapter = Adapter(write_adapter(tiny_model, tmp_path / "adapter", "q_proj$"))
    told: list[tuple[str, int, int]] = []

    write_lora_gguf(
        adapter,
        tiny_model,
        tmp_path / "lora.gguf",
        "f16",
        provenance={"name": "Tuned", "base_model": "them/tiny", "run_id": "r-1"},
        progress=lambda *what: told.append(what),
    )

    reader = GGUFReader(tmp_path / "lora.gguf")
    values = {key: field.contents() for key, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
        "general.name": "Tuned",
        "general.base_model.0.name": "them/tiny",
        "general.run_id": "r-1",
    }
    assert {key: values.get(key) for key in expected} == expected
    assert [(tensor.name, tensor.tensor_type.name) for tensor in reader.tensors] == [
        (f"blk.{layer}.attn_q.weight.lora_{side}", "F16") for layer in range(2) for side in "ab"
    ]
    # With alpha over rank there is nothing to fold: B is the trained one.
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a = trained["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    np.testing.assert_array_equal(reader.tensors[0].data, a.astype(np.float16))
    assert told[-1][1] == told[-1][2] == sum(tensor.n_bytes for tensor in reader.tensors)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"model.layers.0.self_attn.q_proj.lora_magnitude_vector": (32,)}, "q_proj: DoRA changes lengths"),
        ({"model.layers.0.self_attn.q_proj.lora_B.bias": (32,)}, r"q_proj: it has lora_A, lora_B, lora_B\.bias"),
        (
            {"model.embed_tokens.lora_embedding_A": (4, VOCABULARY), "model.embed_tokens.lora_embedding_B": (32, 4)},
            "embed_tokens: it has lora_embedding_A",
        ),
        ({"lm_head.lora_A.weight": (4, 32), "lm_head.lora_B.weight": (VOCABULARY, 4)}, "it changes the head"),
        ({"model.layers.0.other.lora_A.weight": (4, 32), "model.layers.0.other.lora_B.weight": (32, 4)}, "no place"),
        ({"lm_head.weight": (VOCABULARY, 32)}, r"trained whole \(modules_to_save\).* lm_head\.weight"),
    ],
)
def test_what_llama_cpp_cannot_add_is_refused_and_merging_named(
    tiny_model: Path, tmp_path: Path, added: dict[str, tuple[int, ...]], said: str
) -> None:
    folder = write_adapter(tiny_model, tmp_path / "adapter", "q_proj$")
    file = folder / "adapter_model.safetensors"
    more = {f"base_model.model.{name}": np.ones(shape, np.float32) for name, shape in added.items()}
    save_file({**load_file(file), **more}, file)

    with pytest.raises(GGUFError, match=said) as caught:
        write_lora_gguf(Adapter(folder), tiny_model, tmp_path / "lora.gguf", "f16", provenance={})

    assert caught.value.hint == "merge instead: --format gguf"
    assert not (tmp_path / "lora.gguf").exists()


@pytest.mark.parametrize("precision", ["f16", "f32"])
def test_a_file_is_looked_at_again_matrix_by_matrix(tiny_model: Path, tmp_path: Path, precision: str) -> None:
    adapter = Adapter(write_adapter(tiny_model, tmp_path / "adapter", "(q|down)_proj$"))
    path = tmp_path / "lora.gguf"
    write_lora_gguf(adapter, tiny_model, path, precision, provenance={})
    assert is_written(adapter, tiny_model, path, precision)

    content = bytearray(path.read_bytes())
    content[int(GGUFReader(path).tensors[-1].data_offset) + 8] ^= 1
    path.write_bytes(content)
    assert not is_written(adapter, tiny_model, path, precision)
    other = Adapter(write_adapter(tiny_model, tmp_path / "other", "q_proj$"))
    assert not is_written(other, tiny_model, path, precision)
