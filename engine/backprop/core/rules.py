"""Defaults that depend on the model, the rows and the machine: each with its reason in words.

Sources: the sweeps behind tinker-cookbook's ``hyperparam_utils`` and "LoRA Without Regret" (Thinking Machines, 2025):
the learning rate by family, hidden size and batch, ten times that of full fine-tuning, higher for short runs; rank 32
with alpha as the rank; batches of at most 32. All linear layers and no dropout: Biderman 2024 (arXiv:2405.09673).

What is chosen depends on nothing but what the functions are given: the configuration, the model's ``config.json``, the
rows, and of the machine what it takes. A run that is continued takes what reached its weights from its checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from backprop.core import events
from backprop.core.errors import InvalidSettingError
from backprop.core.methods import METHODS
from backprop.core.presets import ALL_LINEAR, EVERY_LAYER, LORA_PRESETS, TRAINING_PRESETS
from backprop.core.settings import RunConfig

ROWS_PER_STEP = 16
USUAL_LENGTH = 2048
"""Tokens of the longest row where neither the person nor the data has said it, and the most that data alone says where
memory cannot be looked at."""
TRACE_LENGTH = 8192
"""The same for rows with reasoning traces."""
_LENGTH_STEP = 64
RANK = 32
_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
"""How the best learning rate falls with the hidden size, by the beginning of ``model_type``."""
_UNCALIBRATED = 1e-4
_HIGHEST = 1e-3
"""No model of the sweep was small enough to need more."""
_SHORT_RUN = 100
_METHOD_SHARES = {
    "dpo": (0.05, "5e-6 in the handbook's recipe zephyr-7b-dpo-qlora"),
    "orpo": (0.08, "8e-6 in its paper"),
    "simpo": (0.05, "5e-7 for all weights in its paper, of which LoRA takes ten times"),
    "kto": (0.05, "5e-7 for all weights in its paper, of which LoRA takes ten times"),
}
"""Rates of preference methods as shares of sft's, which for the 7B and 8B models they are published for is 1e-4."""
_EVALUATIONS = 10
_SHARE = 0.1
"""Evaluating takes at most this share of a run's time."""
SAVE_MINUTES = 10.0
SAVING_SHARE = 0.05
"""Checkpoints that come by time take at most this share of it."""
_FORWARD = 1 / 3
"""Time of a row that is only evaluated, as a share of one that is trained."""


_ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "target_modules")


def require_layers(config: RunConfig, kinds: set[str]) -> None:
    """Refuse ``target_modules`` that a person named among the ``kinds`` of linear layer that a model has.

    Those of a preset, and all linear ones, are taken as far as there are any.

    Raises:
        InvalidSettingError: the model lacks some of them.
    """
    preset = LORA_PRESETS[config.lora_preset].target_modules if config.lora_preset else ALL_LINEAR
    wanted = tuple(adapter(config)["target_modules"])
    missing = [name for name in wanted if name not in kinds]
    if missing and wanted not in (preset, ALL_LINEAR):
        raise InvalidSettingError(
            f"target_modules: the model has no linear layer called {', '.join(missing)}",
            hint="its layers: " + ", ".join(sorted(kinds)),
            details={"field": "target_modules"},
        )


def _usual(name: str) -> Any:
    return getattr(RunConfig(data=" "), name)


_METHOD_SETTINGS = {name: _usual(name) for name in RunConfig.__struct_fields__ if name.partition("_")[0] in METHODS}
"""Settings of one method, whose name theirs begin with, and their defaults."""


class Chosen(NamedTuple):
    """A configuration with less left open, and the reason for each value that was chosen."""

    config: RunConfig
    reasons: dict[str, str]


def backend(config: RunConfig, *, cuda: bool, apple: bool, mlx: bool) -> Literal["cuda", "cpu", "mlx"]:
    """Where a run works.

    Args:
        cuda: whether CUDA works here.
        apple: whether this is Apple Silicon.
        mlx: whether mlx_lm is installed.
    """
    if config.backend != "auto":
        return config.backend
    return "cuda" if cuda else "mlx" if apple and mlx and not config.beyond_mlx() else "cpu"


def fp8_problem(mode: str, capability: tuple[int, int] | None) -> str:
    """Why a run's linear layers cannot multiply in 8-bit floats; empty where they can.

    Args:
        capability: compute capability of the card; ``None`` where the run is on none.
    """
    if mode != "full":
        return f"in mode {mode} it would be slower: torchao computes gradients of frozen weights too"
    if capability is None:
        return "the run is on no NVIDIA card"
    if capability < (8, 9):
        return "the card has compute capability {}.{}, and 8-bit floats are from 8.9 on".format(*capability)
    return ""


def accumulation(batch_size: int) -> int:
    """Forward passes per optimizer step: 16 rows together."""
    return max(1, ROWS_PER_STEP // batch_size)


def adapter(config: RunConfig) -> dict[str, Any]:
    """Rank, alpha, dropout and layers: those given, else those of the LoRA preset, else the rule's."""
    preset = LORA_PRESETS.get(config.lora_preset or "")
    rank = config.lora_r or (preset.r if preset else RANK)
    usual = float(rank) if preset is None else preset.alpha if config.lora_r is None else 2.0 * rank
    dropout = config.lora_dropout
    layers = ALL_LINEAR if config.target_modules == [EVERY_LAYER] else config.target_modules
    return {
        "lora_r": rank,
        "lora_alpha": config.lora_alpha or usual,
        "lora_dropout": (0.05 if preset else 0.0) if dropout is None else dropout,
        "target_modules": list(layers or (preset.target_modules if preset else ALL_LINEAR)),
    }


def by_lengths(asked: RunConfig) -> dict[str, Any]:
    """The settings that follow from the lengths of the rows where nobody has said the limit, as they were asked for."""
    batch = ("batch_size", "gradient_accumulation") if asked.batch_size == "auto" else ()
    return {name: getattr(asked, name) for name in (*batch, "weights_dtype")}


def held_size(settings: Mapping[str, Any]) -> tuple[int, float]:
    """Rank and alpha of the adapters in memory and in files, which scale as those asked for.

    One that begins with the weights' main directions (PiSSA) has that start beside it, with the opposite sign: twice
    the rank, and the base model's own weights stay what they are.
    """
    rank, alpha = settings["lora_r"], settings["lora_alpha"]
    if settings.get("init_lora_weights") != "pissa":
        return rank, alpha
    return 2 * rank, alpha * (math.sqrt(2) if settings.get("use_rslora") else 2)


def epochs(rows: int) -> float:
    """Passes over the data where no length was given."""
    return 3.0 if rows < 1_000 else 2.0 if rows < 10_000 else 1.0


def warmup(steps: int) -> int:
    """Steps of warm-up: 5 %, 10 to 100, and at most a fifth of a short run."""
    return min(max(10, round(0.05 * steps)), 100, steps // 5)


def usual_length(*, traces: bool) -> int:
    """The limit of rows, with reasoning traces or without, where nothing else says one."""
    return TRACE_LENGTH if traces else USUAL_LENGTH


def sequence_length(p99: int, answers_fit: int, most: int, *, traces: bool = False) -> int:
    """Tokens of the longest row: 99 % of the rows are whole and no answer is lost, as far as ``most`` allows.

    Args:
        p99, answers_fit: of the rows before anything is cut (``core.events.DatasetPrepared``).
        most: what model and memory take.
        traces: reasoning traces are trained: what they take, whatever the rows' lengths.
    """
    return min(TRACE_LENGTH if traces else _LENGTH_STEP * -(-max(p99, answers_fit) // _LENGTH_STEP), most)


def length_reason(p99: int, answers_fit: int, chosen: int, *, traces: bool = False) -> str:
    """Why ``sequence_length`` chose what it did."""
    if traces:
        why = f"{TRACE_LENGTH:,} for reasoning traces"
        return why if chosen >= TRACE_LENGTH else f"the most that model and memory take, of {why}"
    why = f"99 % of the rows have at most {p99:,} tokens"
    why += f", and every answer fits from {answers_fit:,} on" if answers_fit > p99 else ""
    return why if chosen >= max(p99, answers_fit) else f"the most that model and memory take; {why}"


def evaluation_steps(steps: int, rows_per_step: int, held_out: int) -> int:
    """Steps between evaluations: ten over the run, fewer where they would take more than a tenth of its time.

    The last step is always evaluated.
    """
    affordable = int(steps * rows_per_step * _SHARE / (_FORWARD * max(1, held_out)))
    return math.ceil(steps / max(1, min(_EVALUATIONS, affordable)))


def learning_rate(
    model_dir: Path, rows_per_step: int, steps: int, method: str = "sft", *, full: bool = False
) -> tuple[float, str]:
    """The peak learning rate of LoRA for a model and a method, or of full fine-tuning, a tenth of it; and why."""
    family, hidden = _family(model_dir)
    power = next((power for name, power in _EXPONENTS.items() if family.startswith(name)), None)
    if power is None or not hidden:
        rate, why = _UNCALIBRATED, f"{family or 'this model'}: a family that was not calibrated"
    else:
        rate = 5e-4 * (2000 / hidden) ** power * math.sqrt(rows_per_step / 128)
        why = f"{family}, hidden size {hidden}, {rows_per_step} rows per step"
    if steps < _SHORT_RUN:
        rate, why = 1.5 * rate, f"{why}, half as much again for a run of {steps}"
    rate = min(_HIGHEST, rate)
    if full:
        rate, why = rate / 10, f"{why}: a tenth of LoRA's for all weights"
    if method in _METHOD_SHARES:
        share, source = _METHOD_SHARES[method]
        return float(f"{share * rate:.2g}"), f"{method}: {share:g} of sft's {rate:.2g} ({why}), as {source}"
    if full:
        return float(f"{rate:.2g}"), why
    usual = TRAINING_PRESETS["balanced"].learning_rate
    return float(f"{rate:.2g}"), f"{why}; the preset balanced has {usual:g}"


def _family(model_dir: Path) -> tuple[str, int]:
    """``model_type`` and hidden size of a model's text part; empty and 0 where its ``config.json`` does not say."""
    try:
        facts = json.loads((model_dir / "config.json").read_bytes())
        facts = facts.get("text_config") or facts
        return str(facts.get("model_type", "")), int(facts.get("hidden_size") or facts.get("n_embd") or 0)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return "", 0


def for_rows(config: RunConfig, model_dir: Path, *, rows: int, held_out: int, rows_per_step: int, steps: int) -> Chosen:
    """What can be chosen once model and rows are known: how long the run is, warm-up, learning rate, when to evaluate.

    Args:
        config: one for this machine (``train.model.resolved``).
        rows: those that are trained.
        rows_per_step, steps: as the schedule has them (``core.schedule``).
    """
    values: dict[str, tuple[Any, str]] = {}
    if config.epochs == "auto" and config.steps is None:
        values["epochs"] = epochs(rows), f"{rows:,} rows"
    if config.warmup_steps == "auto":
        values["warmup_steps"] = warmup(steps), f"5 % of the run's {steps}, 10 to 100, at most a fifth of them"
    if config.learning_rate is None:
        values["learning_rate"] = learning_rate(
            model_dir, rows_per_step, steps, config.method, full=config.mode == "full"
        )
    if config.eval_steps == "auto":
        every = evaluation_steps(steps, rows_per_step, held_out)
        why = f"{-(-steps // every)} over {steps} steps: {held_out} held-out rows take at most a tenth of the time"
        values["eval_steps"] = every, why
    return Chosen(
        msgspec.structs.replace(config, **{name: value for name, (value, _) in values.items()}),
        {name: why for name, (_, why) in values.items()},
    )


def without_effect(
    config: RunConfig, steps: int, trained: int, held_out: int, evaluated: int | None = None
) -> list[events.Warning]:
    """One warning for each setting that a run of ``steps`` steps, on so many rows, cannot carry out.

    Args:
        trained, held_out: rows.
        evaluated: of those held out; all where that is not known.
    """
    warmup, share = config.warmup_steps, config.held_out
    idle = [
        name
        for name, default in _METHOD_SETTINGS.items()
        if getattr(config, name) != default and not name.startswith(f"{config.method}_")
    ]
    evaluated = held_out if evaluated is None else evaluated
    full = config.mode == "full"
    unused = [name for name in ("lora_preset", *_ADAPTER) if full and getattr(config, name) != _usual(name)]
    unused += ["weights_dtype"] if config.weights_dtype is not None and config.mode not in ("full", "auto") else []
    found = {
        "SETTING_WITHOUT_EFFECT": (
            bool(unused),
            f"{', '.join(unused)}: without effect in mode {config.mode}",
            "leave it out" if full else "--mode full keeps its weights in the type that is asked for",
        ),
        "WARMUP_TOO_LONG": (
            isinstance(warmup, int) and warmup >= steps,
            f"warm-up of {warmup} steps in a run of {steps}: the full rate comes at its end",
            "fewer --warmup-steps, or more steps",
        ),
        "NO_HELD_OUT_ROWS": (
            not held_out and share not in ("auto", "none"),
            f"no row is held out: {share} of {trained} row{'s' if trained > 1 else ''} is none",
            "add rows, or name a file of others",
        ),
        "HELD_OUT_IN_PART": (
            evaluated < held_out,
            f"evaluated on {evaluated} of {held_out} held-out rows: all of them are more than the run's {steps} steps "
            "train",
            "",
        ),
        "EARLY_STOPPING_OFF": (
            not held_out and config.early_stopping is not None,
            "the run will not stop early: no rows are held out to measure it by",
            "hold rows out with --held-out",
        ),
        "SETTING_OF_ANOTHER_METHOD": (
            bool(idle),
            f"{', '.join(idle)} has no effect: the run learns by {config.method}",
            f"leave it out, or choose --method {' or '.join(dict.fromkeys(name.partition('_')[0] for name in idle))}",
        ),
    }
    return [events.Warning(code=code, message=told, hint=hint) for code, (holds, told, hint) in found.items() if holds]
