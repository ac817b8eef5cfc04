"""The presets, number by number: scripts and habits rest on what a name stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
from backprop import Trainer, get_preset
from backprop.core.errors import InvalidSettingError
from backprop.core.presets import LORA_PRESETS, MODEL_PRESETS, TRAINING_PRESETS, licence_of, terms_of

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_models_have_their_licence_and_the_memory_they_are_known_to_take() -> None:
    assert {name: (preset.vram, preset.licence) for name, preset in MODEL_PRESETS.items()} == {
        "qwen-3.5-4b": ("~8 GB", "Apache-2.0"),
        "phi-4-mini-3.8b": ("~8 GB", "MIT"),
        "smollm3-3b": ("~6 GB", "Apache-2.0"),
        "qwen2.5-7b": ("~12 GB", "Apache-2.0"),
        "qwen2.5-3b": ("~8 GB", "Qwen-Research"),
        "llama-3.2-3b": ("~8 GB", "Llama Community"),
        "llama-3.2-1b": ("~6 GB", "Llama Community"),
        "mistral-7b": ("~12 GB", "Apache-2.0"),
        "smollm2-135m": ("CPU", "Apache-2.0"),
    }
    assert [name for name in MODEL_PRESETS if terms_of(name)] == ["qwen2.5-3b"]
    assert licence_of("microsoft/Phi-4-mini-instruct") == "MIT"
    assert (licence_of(""), terms_of("")) == ("", "")


@pytest.mark.parametrize(
    ("name", "rank", "alpha", "layers"),
    [("quality", 256, 512, ALL), ("balanced", 64, 128, ALL), ("fast", 16, 32, ["q_proj", "v_proj"])],
)
def test_a_lora_preset_is_rank_alpha_and_layers(name: str, rank: int, alpha: float, layers: list[str]) -> None:
    preset = LORA_PRESETS[name]
    assert (preset.r, preset.alpha, list(preset.target_modules)) == (rank, alpha, layers)


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("fast-3b", (8, 8, 5e-4, 3)),
        ("fast", (8, 8, 5e-4, 3)),
        ("balanced", (16, 16, 2e-4, 5)),
        ("quality", (32, 32, 1e-4, 10)),
    ],
)
def test_a_training_preset_is_rank_rows_per_step_rate_and_runs(
    name: str, means: tuple[int, int, float, int], tmp_path: Path
) -> None:
    assert get_preset(name) == TRAINING_PRESETS[name]
    config = Trainer("smollm2-135m", preset=name, output_dir=tmp_path).config
    assert isinstance(config.batch_size, int)
    assert config.gradient_accumulation is not None
    rows = config.batch_size * config.gradient_accumulation
    runs = TRAINING_PRESETS[name].settings()["runs"]
    assert (config.lora_r, rows, config.learning_rate, runs) == means


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(InvalidSettingError) as caught:
        get_preset("balance")
    assert "did you mean balanced?" in caught.value.hint
