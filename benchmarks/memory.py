"""The estimate of a run's memory beside the memory that the project's own step takes, without a card.

    python benchmarks/memory.py            # about ten minutes on one core, a gigabyte of memory
    python benchmarks/memory.py 8b         # only the lines whose model is called so

The yardstick (``tests/fixtures/step_memory.py``) takes two optimizer steps with tensors that have no contents and adds
up the storages that are alive. The estimate knows the model's config.json alone. Both are without what CUDA takes for
itself. Every ratio should be between 1.00 and 1.10: an estimate that is under ends in a run that dies at night.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))

from backprop.core.architecture import read_architecture
from backprop.core.presets import ALL_LINEAR
from backprop.hardware.estimate import Shape, estimate
from step_memory import peak_of_a_step

GIB = 2**30


SIZES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size"),
)


def llama(*sizes: int, **more: Any) -> dict[str, Any]:
    """The contents of a config.json, its numbers in the order of ``SIZES``."""
    return {"model_type": "llama", "tie_word_embeddings": True, **dict(zip(SIZES, sizes, strict=True)), **more}


QWEN35 = {f"linear_{name}": size for name, size in [("num_value_heads", 32), ("num_key_heads", 16)]}
QWEN35 |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4}
MODELS = {
    "SmolLM2 135M": llama(30, 576, 1536, 9, 3, 49152),
    "Llama 3.2 1B": llama(16, 2048, 8192, 32, 8, 128256, head_dim=64),
    "Gemma 3 1B": llama(26, 1152, 6912, 4, 1, 262144, model_type="gemma3_text", head_dim=256, sliding_window=512),
    "Gemma 2 2B": llama(26, 2304, 9216, 8, 4, 256000, model_type="gemma2", head_dim=256),
    "SmolLM3 3B": llama(36, 2048, 11008, 16, 4, 128256, model_type="smollm3", pad_token_id=0),
    "Phi-4 mini 3.8B": llama(32, 3072, 8192, 24, 8, 200064, model_type="phi3", pad_token_id=0),
    "Qwen3.5 4B": llama(32, 2560, 9216, 16, 4, 248320, model_type="qwen3_5_text", head_dim=256, **QWEN35),
    "Qwen2.5 7B": llama(28, 3584, 18944, 28, 4, 152064, model_type="qwen2", tie_word_embeddings=False),
    "Llama 3.1 8B": llama(32, 4096, 14336, 32, 8, 128256, tie_word_embeddings=False),
    "Qwen3 14B": llama(40, 5120, 17408, 40, 8, 151936, model_type="qwen3", head_dim=128, tie_word_embeddings=False),
}
PRESETS = {"fast": (16, ("q_proj", "v_proj")), "balanced": (64, ALL_LINEAR)}
FAST, BALANCED = ({"lora_r": r, "lora_dropout": 0.05, "target_modules": kinds} for r, kinds in PRESETS.values())
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SmolLM2 135M", {"max_seq_length": 2048}),
    ("SmolLM2 135M", {"batch_size": 4, "max_seq_length": 512, "gradient_checkpointing": False, **BALANCED}),
    ("SmolLM2 135M", {"mode": "full", "max_seq_length": 1024, "gradient_checkpointing": False}),
    ("SmolLM2 135M", {"mode": "full", "batch_size": 4, "max_seq_length": 1024}),
    ("Llama 3.2 1B", {"max_seq_length": 2048}),
    ("Llama 3.2 1B", {"mode": "full", "batch_size": 2, "max_seq_length": 1024, "gradient_checkpointing": False}),
    ("Gemma 3 1B", {"batch_size": 4, "max_seq_length": 1024}),
    ("Gemma 2 2B", {"max_seq_length": 1024}),
    ("SmolLM3 3B", {"batch_size": 4, **FAST}),
    ("SmolLM3 3B", {"batch_size": 2, "max_seq_length": 1024, "gradient_checkpointing": False}),
    ("SmolLM3 3B", {"mode": "full"}),
    ("SmolLM3 3B", {"mode": "full", "weights_dtype": "bfloat16"}),
    ("Phi-4 mini 3.8B", {"batch_size": 4, "max_seq_length": 1024, "packing": False}),
    ("Qwen3.5 4B", {"max_seq_length": 512}),
    ("Qwen2.5 7B", {"max_seq_length": 2048}),
    ("Qwen2.5 7B", {"batch_size": 4, "max_seq_length": 1024, "gradient_checkpointing": False}),
    ("Llama 3.1 8B", {"max_seq_length": 2048}),
    ("Llama 3.1 8B", {"batch_size": 4, **BALANCED}),
    ("Llama 3.1 8B", {"gradient_checkpointing": False, **BALANCED}),
    ("Llama 3.1 8B", {"max_seq_length": 8192}),
    ("Llama 3.1 8B", {"mode": "full"}),
    ("Qwen3 14B", {"max_seq_length": 2048, **BALANCED}),
    ("Qwen3 14B", {"max_seq_length": 1024, "gradient_checkpointing": False}),
]


def main(wanted: str) -> None:
    """Print the table, and how far its ratios go."""
    warnings.simplefilter("ignore")
    print(f"{'model':<17}{'mode':<6}{'batch':>5}{'length':>8}  {'activations':<13}{'GiB':>9}{'estimate':>10}  ratio")
    ratios = []
    for name, settings in CASES:
        if wanted.lower() not in name.lower():
            continue
        shape = Shape(**settings)
        parts = estimate(read_architecture(MODELS[name], name), shape)
        counted, measured = parts.total - parts.context, peak_of_a_step(MODELS[name], shape)
        ratios.append(counted / measured)
        activations = "again" if shape.gradient_checkpointing else "kept"
        print(
            f"{name:<17}{shape.mode:<6}{shape.batch_size:>5}{shape.max_seq_length:>8}  {activations:<13}"
            f"{measured / GIB:>9.2f}{counted / GIB:>10.2f}  {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"{len(ratios)} ratios from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
