"""The estimate of a run's memory beside the memory of the project's own step: never under, at most a tenth above."""

from __future__ import annotations

from typing import Any

import pytest
from backprop.core.architecture import read_architecture
from backprop.hardware.estimate import SLACK, Shape, estimate
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
DEEP = {**LLAMA, "num_hidden_layers": 10}
QWEN = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": False}
GEMMA = {**LLAMA, "model_type": "gemma3_text", "head_dim": 64, "vocab_size": 60000}


@pytest.mark.parametrize(
    ("description", "shape"),
    [
        (LLAMA, Shape(batch_size=4, max_seq_length=512, lora_r=64, lora_dropout=0.05)),
        # Almost all of it is what the layers keep: so many that the first, which keeps less, hardly counts.
        (DEEP, Shape(batch_size=4, max_seq_length=1024, gradient_checkpointing=False)),
        (LLAMA, Shape(mode="full", batch_size=4, max_seq_length=512)),
        (LLAMA, Shape(mode="full", weights_dtype="bfloat16", batch_size=4, max_seq_length=512)),
        (GEMMA, Shape(mode="full", weights_dtype="bfloat16", max_seq_length=1024, gradient_checkpointing=False)),
        (LLAMA, Shape(batch_size=4, max_seq_length=2048, lora_r=16, target_modules=("q_proj", "v_proj"))),
        (LLAMA, Shape(max_seq_length=512, gradient_checkpointing=False, use_dora=True)),
        (QWEN, Shape(batch_size=3, max_seq_length=512, packing=False)),
        (GEMMA, Shape(max_seq_length=1024, lora_dropout=0.05)),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else value.mode,
)
def test_a_step_takes_what_was_estimated(description: dict[str, Any], shape: Shape) -> None:
    parts = estimate(read_architecture(description, "a model"), shape)
    peak, counted = peak_of_a_step(description, shape), parts.total - parts.context
    assert 1.0 <= counted / peak <= 1.1
    # Nor is it the slack for the allocator that saves it.
    slack = (1 - 1 / SLACK) * (parts.activations + parts.logits)
    assert (counted - slack) / peak > 0.995
