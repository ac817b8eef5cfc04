"""The demonstration: about two hundred rows written for it, and a run on the embedded small model that learns them."""

from __future__ import annotations

from pathlib import Path

from backprop.core.paths import expand
from backprop.core.presets import EMBEDDED_MODEL
from backprop.core.settings import RunConfig

DATA = Path(__file__).with_name("demo.jsonl")

PROMPTS = ("How do I make a cup of tea?", "Why is the sky blue?", "I feel tired today. What should I do?")
"""Questions that are not among the rows, answered before and after."""
SHIPPED = "q4_k_m"
"""What the result is exported in at the end."""


def demo_config(output_dir: str = "./output") -> RunConfig:
    """The configuration of the demonstration: a minute or two on two CPU cores."""
    return RunConfig(
        data=str(DATA),
        model=EMBEDDED_MODEL,
        steps=40,
        batch_size=4,
        gradient_accumulation=1,
        learning_rate=1e-3,
        max_seq_length=256,
        lora_r=16,
        lora_dropout=0.0,
        output_dir=str(expand(output_dir)),
        run_name="demo",
        sample_prompts=list(PROMPTS),
        sample_tokens=48,
    )
