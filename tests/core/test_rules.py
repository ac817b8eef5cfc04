"""Defaults that depend on model, rows and machine: the figures they come from, and that they stay put."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backprop.core import rules
from backprop.core.schedule import Schedule
from backprop.core.settings import RunConfig
from msgspec.structs import replace


def model(folder: Path, **facts: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize(
    ("facts", "rows_per_step", "steps", "rate"),
    [
        ({"model_type": "llama", "hidden_size": 4096}, 16, 500, 1.0e-4),  # 8B
        ({"model_type": "qwen2", "hidden_size": 3584}, 16, 500, 1.7e-4),  # 7B
        ({"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3", "hidden_size": 3584}}, 16, 500, 1.7e-4),
        ({"model_type": "llama", "hidden_size": 4096}, 32, 500, 1.4e-4),
        ({"model_type": "llama", "hidden_size": 4096}, 16, 99, 1.5e-4),
        ({"model_type": "llama", "hidden_size": 32}, 16, 500, 1e-3),
        ({"model_type": "gemma3", "hidden_size": 2560}, 16, 500, 1e-4),
        ({"model_type": "llama"}, 16, 500, 1e-4),
    ],
)
def test_the_learning_rate_follows_family_size_and_batch(
    facts: dict[str, Any], rows_per_step: int, steps: int, rate: float, tmp_path: Path
) -> None:
    found, why = rules.learning_rate(model(tmp_path, **facts), rows_per_step, steps)
    assert found == pytest.approx(rate, rel=0.03)
    assert facts.get("text_config", facts)["model_type"] in why


@pytest.mark.parametrize(("method", "rate"), [("dpo", 5e-6), ("orpo", 8e-6), ("simpo", 5e-6), ("kto", 5e-6)])
def test_a_preference_method_has_a_rate_of_its_own_and_says_why(method: str, rate: float, tmp_path: Path) -> None:
    folder = model(tmp_path, model_type="llama", hidden_size=4096)
    found, why = rules.learning_rate(folder, 16, 500, method)
    assert found == pytest.approx(rate, rel=0.03)
    assert why.startswith(f"{method}: ")
    assert "hidden size 4096" in why


def test_a_setting_of_another_method_is_said_to_have_no_effect() -> None:
    def codes(**given: Any) -> list[str]:
        return [each.code for each in rules.without_effect(RunConfig(data="x", **given), 10, 10, 2)]

    assert codes(method="sft", dpo_beta=0.3) == ["SETTING_OF_ANOTHER_METHOD"]
    assert codes(method="dpo", simpo_gamma=0.3) == ["SETTING_OF_ANOTHER_METHOD"]
    assert codes(method="dpo", dpo_beta=0.3) == []
    assert codes(method="simpo", simpo_gamma=0.3, simpo_beta=2.5) == []


@pytest.mark.parametrize("content", [None, "[]", "{", '{"hidden_size": "many"}', '{"hidden_size": 0}'])
def test_a_model_that_does_not_say_what_it_is_is_uncalibrated(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    found, why = rules.learning_rate(tmp_path, 16, 500)
    assert found == 1e-4
    assert "not calibrated" in why


@pytest.mark.parametrize(
    ("given", "rank", "alpha", "dropout"),
    [
        ({}, 32, 32, 0.0),
        ({"lora_r": 8}, 8, 8, 0.0),
        ({"lora_r": 8, "lora_alpha": 5.0}, 8, 5, 0.0),
        ({"lora_preset": "balanced"}, 64, 128, 0.05),
        ({"lora_preset": "balanced", "lora_r": 8}, 8, 16, 0.05),
        ({"lora_preset": "fast", "lora_dropout": 0.0}, 16, 32, 0.0),
    ],
)
def test_alpha_follows_the_rank(given: dict[str, Any], rank: int, alpha: float, dropout: float) -> None:
    found = rules.adapter(RunConfig(data="d", **given))
    assert (found["lora_r"], found["lora_alpha"], found["lora_dropout"]) == (rank, alpha, dropout)


@pytest.mark.parametrize(("batch", "passes"), [(1, 16), (2, 8), (3, 5), (16, 1), (64, 1)])
def test_a_step_has_sixteen_rows(batch: int, passes: int) -> None:
    assert rules.accumulation(batch) == passes


@pytest.mark.parametrize(
    ("rows", "steps", "warmup"), [(1, 3, 0), (160, 30, 6), (999, 189, 10), (1_000, 126, 10), (100_000, 6250, 100)]
)
def test_length_and_warm_up_follow_the_rows(rows: int, steps: int, warmup: int) -> None:
    schedule = Schedule.of(RunConfig(data="d", batch_size=4, gradient_accumulation=4), rows)
    assert (schedule.steps, schedule.warmup_steps) == (steps, warmup)


@pytest.mark.parametrize("steps", [1, 3, 40, 189, 2000])
@pytest.mark.parametrize("held_out", [0, 9, 64, 512, 5000])
def test_evaluating_takes_a_tenth_of_the_time_at_most(steps: int, held_out: int) -> None:
    every = rules.evaluation_steps(steps, 16, held_out)
    evaluations = -(-steps // every)
    assert 1 <= evaluations <= 10
    assert evaluations == 1 or evaluations * held_out / 3 <= 0.1 * steps * 16


@pytest.mark.parametrize(
    ("p99", "answers_fit", "most", "length", "why"),
    [
        (100, 1, 2048, 128, "99 % of the rows have at most 100 tokens"),
        (128, 1, 2048, 128, "at most 128"),
        (100, 700, 2048, 704, "every answer fits from 700 on"),
        (9_000, 1, 2048, 2048, "the most that model and memory take"),
        (90, 1, 100, 100, "99 %"),
    ],
)
def test_the_longest_row_is_the_data_s_own(p99: int, answers_fit: int, most: int, length: int, why: str) -> None:
    assert rules.sequence_length(p99, answers_fit, most) == length
    assert why in rules.length_reason(p99, answers_fit, length)


def test_only_what_is_open_is_chosen(tmp_path: Path) -> None:
    folder = model(tmp_path, model_type="llama", hidden_size=4096)
    given = {"steps": 50, "learning_rate": 0.5, "warmup_steps": 0, "eval_steps": 7}
    facts = {"rows": 100, "held_out": 9, "rows_per_step": 16, "steps": 50}
    config = RunConfig(data="d", **given)
    assert rules.for_rows(config, folder, **facts) == (config, {})
    chosen, reasons = rules.for_rows(RunConfig(data="d"), folder, **facts)
    assert set(reasons) == {"epochs", "learning_rate", "warmup_steps", "eval_steps"}
    assert rules.for_rows(chosen, folder, **facts) == (chosen, {})


def test_the_record_of_an_earlier_version_keeps_its_rules(tmp_path: Path) -> None:
    earlier: dict[str, Any] = {"epochs": None, "warmup_steps": None, "eval_steps": None, "lora_preset": "balanced"}
    earlier |= {"learning_rate": 2e-4, "gradient_accumulation": 4, "lora_dropout": 0.05, "batch_size": 1}
    config = RunConfig(data="d", **earlier)
    schedule = Schedule.of(config, 400)
    assert (schedule.steps, schedule.warmup_steps) == (100, 5)
    assert rules.for_rows(config, tmp_path, rows=400, held_out=20, rows_per_step=4, steps=100) == (config, {})
    assert rules.adapter(config)["lora_alpha"] == 128


def test_full_fine_tuning_learns_at_a_tenth_of_the_rate_and_leaves_the_adapter_settings_alone(tmp_path: Path) -> None:
    folder = model(tmp_path, model_type="llama", hidden_size=2048)
    config = RunConfig(data="d", mode="lora")
    rows = {"rows": 500, "held_out": 0, "rows_per_step": 16, "steps": 500}
    lora = rules.for_rows(config, folder, **rows)
    full = rules.for_rows(replace(config, mode="full"), folder, **rows)
    assert lora.config.learning_rate is not None
    assert full.config.learning_rate == pytest.approx(lora.config.learning_rate / 10, rel=0.02)
    assert "a tenth of LoRA's" in full.reasons["learning_rate"]

    given = replace(config, mode="full", lora_r=8, weights_dtype="float32", warmup_steps=0)
    (told,) = rules.without_effect(given, 10, 20, 0)
    assert (told.code, told.message) == ("SETTING_WITHOUT_EFFECT", "lora_r: without effect in mode full")
    (told,) = rules.without_effect(replace(given, lora_r=None, lora_preset="fast"), 10, 20, 0)
    assert told.message == "lora_preset: without effect in mode full"
    (told,) = rules.without_effect(replace(given, mode="lora"), 10, 20, 0)
    assert told.message == "weights_dtype: without effect in mode lora"
