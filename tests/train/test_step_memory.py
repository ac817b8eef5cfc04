"""The estimate of a run's memory beside the memory of the project's own step: never under, at most a tenth above."""

from __future__ import annotations

from typing import Any

import pytest
from backprop.core.architecture import read_architecture
from backprop.hardware.estimate import Shape, estimate
from step_memory import peak_of_a_step

LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}
QWEN = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": False}
GEMMA = {**LLAMA, "model_type": "gemma3_text", "head_dim": 64, "vocab_size": 60000}


@pytest.mark.parametrize(
    ("description", "shape"),
    [
        (LLAMA, Shape(batch_size=4, max_seq_length=512, lora_r=64, lora_dropout=0.05)),
        (LLAMA, Shape(batch_size=2, max_seq_length=1024, gradient_checkpointing=False, lora_r=16)),
        (LLAMA, Shape(mode="full", batch_size=4, max_seq_length=512)),
        (LLAMA, Shape(batch_size=4, max_seq_length=2048, lora_r=16, target_modules=("q_proj", "v_proj"))),
        (QWEN, Shape(batch_size=3, max_seq_length=512, packing=False)),
        (GEMMA, Shape(max_seq_length=1024, lora_dropout=0.05)),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else value.mode,
)
def test_a_step_takes_what_was_estimated(description: dict[str, Any], shape: Shape) -> None:
    parts = estimate(read_architecture(description, "a model"), shape)
    ratio = (parts.total - parts.context) / peak_of_a_step(description, shape)
    assert 1.0 <= ratio <= 1.1
