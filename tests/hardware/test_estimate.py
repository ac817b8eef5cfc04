"""Memory before the start. ``tests/train/test_step_memory.py`` holds it against the project's own step."""

from __future__ import annotations

import pytest
from backprop.core import rules
from backprop.core.architecture import PRESETS, Architecture
from backprop.core.errors import TrainingError
from backprop.core.settings import RunConfig
from backprop.hardware.estimate import Shape, estimate, parameters, trained_parameters, weights_dtype
from backprop.hardware.fit import changes, fitted, longest_rows, require_trainable_in_full
from msgspec.structs import replace

GB = 2**30
LLAMA_8B = Architecture("llama", 32, 4096, 14336, 32, 8, 128, 128256, False)


def test_an_8b_llama_at_the_defaults_takes_8_to_11_gb_in_4_bit() -> None:
    shape = Shape.of(RunConfig(data="rows"), mode="qlora")
    assert 8e9 < estimate(LLAMA_8B, shape).total < 11e9


def test_a_weight_in_nf4_takes_half_a_byte_and_its_share_of_scales() -> None:
    as_16_bit, as_4_bit = (estimate(LLAMA_8B, Shape(mode=mode)).weights for mode in ("lora", "qlora"))
    linear = 32 * (4096 * (4096 * 2 + 1024 * 2) + 3 * 4096 * 14336)
    saved = as_16_bit - as_4_bit
    # 2 bytes against 0.5 + 1/64 + 4/16384, and the tables of 7 layers in 32 blocks.
    assert saved == linear * 2 - (linear // 2 + linear // 64 + linear // 4096) - 7 * 32 * 1092


def test_nf4_is_what_bitsandbytes_makes() -> None:
    import bitsandbytes
    import torch

    model = Architecture("llama", 1, 576, 1536, 9, 3, 64, 4096, True)
    widths = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]
    made = 0
    for inputs, outputs in widths:
        packed, state = bitsandbytes.functional.quantize_4bit(
            torch.randn(outputs, inputs), quant_type="nf4", compress_statistics=True
        )
        tensors = [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        made += sum(each.numel() * each.element_size() for each in tensors)
    shape = Shape(mode="qlora")
    others = 2 * (4096 * 576 + 3 * 576)
    counted = estimate(model, shape).weights - others - 4 * trained_parameters(model, shape)
    assert counted == pytest.approx(made, rel=1e-3)


def test_more_never_takes_less() -> None:
    shape = Shape()
    larger = [
        replace(shape, batch_size=2),
        replace(shape, max_seq_length=4096),
        replace(shape, lora_r=128),
        replace(shape, gradient_checkpointing=False),
        replace(shape, mode="full"),
    ]
    for model in PRESETS.values():
        least = estimate(model, shape).total
        assert all(estimate(model, each).total > least for each in larger)
        assert estimate(model, replace(shape, mode="qlora")).total < least


def test_packed_micro_batches_end_at_their_token_budget_and_padded_ones_do_not() -> None:
    packed, padded = Shape(batch_size=4), Shape(batch_size=4, packing=False)
    assert estimate(LLAMA_8B, packed) == estimate(LLAMA_8B, replace(packed, batch_size=8))
    assert estimate(LLAMA_8B, replace(padded, batch_size=8)).total > estimate(LLAMA_8B, padded).total
    # Layers that carry a state along the sequence are never packed.
    hybrid = PRESETS["qwen-3.5-4b"]
    assert estimate(hybrid, packed) == estimate(hybrid, padded)


def test_what_is_open_in_a_configuration_is_filled_as_the_engine_would() -> None:
    config = RunConfig(data="rows", lora_preset="fast")
    shape = Shape.of(config, memory=16 * GB)
    assert (shape.lora_r, shape.target_modules) == (16, ("q_proj", "v_proj"))
    assert (shape.mode, shape.batch_size, shape.gradient_checkpointing) == ("lora", 1, True)
    assert not Shape.of(config, memory=80 * GB).gradient_checkpointing


@pytest.mark.parametrize(
    ("free", "preset"),
    [
        *((8, "fast"), (10, "fast"), (12, "fast"), (14, "balanced"), (16, "balanced"), (20, "balanced")),
        *((24, "quality"), (32, "quality")),
    ],
)
def test_the_lora_preset_auto_is_the_largest_that_fits_with_room_to_spare(free: int, preset: str) -> None:
    config = RunConfig(data="rows", model="qwen2.5-7b", mode="qlora", lora_preset="auto")
    chosen, reasons = fitted(config, free * GB)
    assert chosen.lora_preset == preset
    assert f"{free}.0 are free" in reasons["lora_preset"]
    assert fitted(config, 0).reasons == {"lora_preset": "on a CPU: the smallest"}
    # A rank that is given stands, with the alpha of a preset.
    with_rank = fitted(replace(config, lora_r=8), free * GB).config
    assert (rules.adapter(with_rank)["lora_r"], rules.adapter(with_rank)["lora_alpha"]) == (8, 16)


@pytest.mark.parametrize(
    ("model", "free", "mode"),
    [
        ("qwen2.5-7b", 24, "lora"),
        ("qwen2.5-7b", 16, "qlora"),
        ("llama-3.2-1b", 8, "lora"),
        ("qwen2.5-7b", 0, "lora"),  # a CPU
        ("somebody/not-here", 16, "lora"),
    ],
)
def test_the_mode_auto_is_lora_where_the_model_fits_in_16_bits(model: str, free: int, mode: str) -> None:
    chosen, reasons = fitted(RunConfig(data="rows", model=model), free * GB)
    assert chosen.mode == mode
    assert bool(reasons) == bool(free)
    assert fitted(chosen, free * GB) == (chosen, {})


@pytest.mark.parametrize("free", [8, 12])
def test_rows_are_as_long_as_the_free_memory_takes_and_no_longer(free: int) -> None:
    config = RunConfig(data="rows", model="llama-3.2-3b", mode="qlora", max_seq_length="auto")
    length = longest_rows(config, free * GB)
    shape = replace(Shape.of(config, memory=free * GB), batch_size=1)
    model, lengths = PRESETS["llama-3.2-3b"], (length, length + 64)
    fits, not_any_more = (estimate(model, replace(shape, max_seq_length=each)).total for each in lengths)
    assert fits <= free * GB < not_any_more
    assert longest_rows(config, 0) == 2048  # a CPU
    assert longest_rows(replace(config, reasoning_trace=True), 0) == 8192
    assert longest_rows(replace(config, model="somebody/not-here"), free * GB) == 2048


def test_a_start_beside_the_adapter_and_lengths_are_counted() -> None:
    model = PRESETS["llama-3.2-1b"]
    plain, pissa, dora = Shape(), Shape(init_lora_weights="pissa"), Shape(use_dora=True)
    assert trained_parameters(model, pissa) == 2 * trained_parameters(model, plain)
    outputs = model.layers * (2048 + 512 + 512 + 2048 + 8192 + 8192 + 2048)
    assert trained_parameters(model, dora) == trained_parameters(model, plain) + outputs


def test_changes_say_what_they_save_and_which_of_them_is_enough() -> None:
    model, shape = PRESETS["llama-3.2-3b"], Shape(batch_size=4, gradient_checkpointing=False)
    now = estimate(model, shape).total
    found = changes(model, shape, 12 * GB)
    by_name = {(change.setting, change.value): change for change in found}
    again = by_name["gradient_checkpointing", True]
    assert again.fits
    assert now - again.saves == estimate(model, replace(shape, gradient_checkpointing=True)).total
    assert not by_name["lora_r", 16].fits
    assert ("batch_size", 1) in by_name
    assert by_name["mode", "qlora"].saves > 3 * GB
    assert ("mode", "lora") not in by_name  # what changes nothing is not offered


def test_full_fine_tuning_is_for_models_of_up_to_4b() -> None:
    require_trainable_in_full(PRESETS["qwen-3.5-4b"], "qwen-3.5-4b")
    with pytest.raises(TrainingError, match=r"mistral-7b has 7\.2B") as caught:
        require_trainable_in_full(PRESETS["mistral-7b"], "mistral-7b")
    assert caught.value.code == "RUNTIME_FULL_FT_MODEL_TOO_LARGE"
    assert "lora" in caught.value.hint
    assert trained_parameters(PRESETS["smollm2-135m"], Shape(mode="full")) == parameters(PRESETS["smollm2-135m"])


def test_full_fine_tuning_keeps_float32_weights_where_they_fit_and_bf16_ones_elsewhere() -> None:
    config = RunConfig(data="d", model="llama-3.2-1b", mode="full", max_seq_length=1024, gradient_checkpointing=True)
    needed = {}
    for dtype in ("float32", "bfloat16"):
        shape = Shape.of(replace(config, weights_dtype=dtype), memory=2**40)
        needed[dtype] = estimate(PRESETS["llama-3.2-1b"], shape).total
    assert needed["bfloat16"] < 0.8 * needed["float32"]
    assert weights_dtype(config, needed["float32"]) == "float32"
    assert weights_dtype(config, needed["float32"] - 1) == "bfloat16"
    assert weights_dtype(config, 0) == "float32"  # a CPU, or a card without bf16
    assert weights_dtype(replace(config, weights_dtype="float32"), 1) == "float32"
    # 3B in bf16 with an 8-bit optimizer: 2 + 2 + 2 bytes a weight, and 1/32 for the scales.
    count = parameters(PRESETS["smollm3-3b"])
    parts = estimate(PRESETS["smollm3-3b"], Shape(mode="full", weights_dtype="bfloat16", optim="paged_adamw_8bit"))
    assert parts.weights + parts.gradients + parts.optimizer == round((6 + 1 / 32) * count)


def test_of_several_processes_each_has_its_share_of_the_optimizers_state_and_all_else_whole() -> None:
    model, shape = PRESETS["smollm3-3b"], Shape(mode="full", weights_dtype="bfloat16")
    one, two = (estimate(model, replace(shape, processes=processes)) for processes in (1, 2))
    assert (one.optimizer, two.optimizer) == (8 * parameters(model), 4 * parameters(model))
    assert two == replace(one, optimizer=two.optimizer)
    # The embedding is updated by one process: beyond a share of its size more processes gain nothing.
    many = estimate(model, replace(shape, processes=64))
    assert many.optimizer == 8 * model.vocabulary * model.hidden
    assert Shape.of(RunConfig(data="d", processes=2)).processes == 2


@pytest.mark.parametrize("packing", [True, False])
def test_a_pair_is_two_sequences_of_a_pass(packing: bool) -> None:
    config = RunConfig(data="rows", packing=packing, max_seq_length=1024, batch_size=4)
    twice = Shape.of(replace(config, batch_size=8))
    for method in ("dpo", "orpo", "simpo"):
        assert estimate(LLAMA_8B, Shape.of(replace(config, method=method))) == estimate(LLAMA_8B, twice)
    assert Shape.of(replace(config, method="kto")) == Shape.of(config)
    one = replace(config, batch_size=1, max_seq_length=16_384)  # more than a packed pass holds otherwise
    assert estimate(LLAMA_8B, Shape.of(replace(one, method="dpo"))).total > estimate(LLAMA_8B, Shape.of(one)).total
