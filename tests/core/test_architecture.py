"""What a model is made of, read from its config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backprop.core import architecture
from backprop.core.architecture import Architecture, read_architecture
from backprop.core.errors import ModelLoadError
from backprop.core.models import find_architecture
from backprop.core.presets import DEFAULT_MODEL, MODEL_PRESETS
from backprop.hardware.estimate import parameters
from tiny_language_model import write_model

QWEN3_4B = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def test_the_presets_have_the_parameters_that_their_files_hold() -> None:
    """Sums of the tensors in the published files, those for images and for several tokens left out."""
    assert {name: parameters(known) for name, known in architecture.PRESETS.items()} == {
        "qwen-3.5-4b": 4_205_751_296,
        "phi-4-mini-3.8b": 3_836_021_760,
        "smollm3-3b": 3_075_098_624,
        "qwen2.5-7b": 7_615_616_512,
        "qwen2.5-3b": 3_085_938_688,
        "llama-3.2-3b": 3_212_749_824,
        "llama-3.2-1b": 1_235_814_400,
        "mistral-7b": 7_248_023_552,
        "smollm2-135m": 134_515_008,
    }
    assert architecture.PRESETS.keys() == MODEL_PRESETS.keys()
    assert find_architecture(DEFAULT_MODEL) == architecture.PRESETS["qwen2.5-7b"]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (QWEN3_4B, 4_022_468_096),
        # Gemma says nothing of its head, which is its embedding; the language model may stand in a part of its own.
        (
            {
                "model_type": "gemma3",
                "text_config": {
                    "model_type": "gemma3_text",
                    "hidden_size": 1152,
                    "intermediate_size": 6912,
                    "num_hidden_layers": 26,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 1,
                    "head_dim": 256,
                    "vocab_size": 262144,
                },
            },
            999_885_952,
        ),
    ],
)
def test_the_weights_are_counted_from_the_configuration(config: dict[str, Any], count: int) -> None:
    assert parameters(read_architecture(config, "a model")) == count


def test_a_folder_is_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    assert find_architecture(str(folder)) == Architecture("llama", 2, 32, 64, 4, 4, 8, 320, True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "not on this machine"),
        ("{", "cannot be read"),
        ("[]", "no model's configuration"),
        (json.dumps({"model_type": "llama"}), "num_attention_heads"),
        (json.dumps({**QWEN3_4B, "num_attention_heads": 0}), "does not say how large"),
        (json.dumps({**QWEN3_4B, "hidden_size": float("inf")}), "does not say how large"),
        (json.dumps({**QWEN3_4B, "model_type": "gemma3", "vision_config": 3}), "does not say how large"),
        (json.dumps({**QWEN3_4B, "num_experts": 128}), "mixture of experts"),
    ],
)
def test_what_cannot_be_counted_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=words):
        find_architecture(str(tmp_path))
