"""What free memory decides of a run (mode, LoRA preset, batch size, length of rows), and what would make it fit."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress

from msgspec import Struct
from msgspec.structs import replace

from backprop.core import rules
from backprop.core.architecture import Architecture
from backprop.core.definition import settings
from backprop.core.errors import InvalidSettingError, ModelLoadError, TrainingError
from backprop.core.models import find_architecture
from backprop.core.presets import LORA_PRESETS
from backprop.core.settings import RunConfig
from backprop.hardware.estimate import ADAPTER, CPU_TOKEN_BUDGET, Shape, estimate, parameters

_GIB = 2**30
_LENGTHS = range(64, 2**15 + 1, 64)
"""Limits on the length of rows that are looked at, in tokens."""
MOST_FULL = 4_300_000_000
"""Parameters of the largest model that is fine-tuned in full: those that are called 4B."""


class Change(Struct, frozen=True):
    """A setting that would save memory: how many bytes, and whether the run fits with this change alone."""

    setting: str
    value: int | str | bool
    saves: int
    fits: bool


def require_size(config: RunConfig) -> None:
    """Refuse full fine-tuning of a model that is known to be too large; one that has to be fetched first is not yet.

    Raises:
        TrainingError: as ``require_trainable_in_full``.
    """
    if config.mode == "full":
        with suppress(ModelLoadError):
            require_trainable_in_full(find_architecture(config.model), config.model)


def require_trainable_in_full(model: Architecture, name: str) -> None:
    """Refuse to train every weight of a large model.

    Raises:
        TrainingError: ``RUNTIME_FULL_FT_MODEL_TOO_LARGE``.
    """
    if (count := parameters(model)) > MOST_FULL:
        raise TrainingError(
            f"full fine-tuning takes models of up to 4B parameters, and {name} has {count / 1e9:.1f}B",
            hint="train an adapter (--mode lora), or a smaller model: smollm3-3b, llama-3.2-3b, llama-3.2-1b",
            code="RUNTIME_FULL_FT_MODEL_TOO_LARGE",
            details={"model": name, "parameters": count, "remedy": {"mode": "lora"}},
        )


def changes(model: Architecture, shape: Shape, memory: int) -> list[Change]:
    """What would take less memory, the least harmful first: same results, then slower, then learning less.

    Args:
        memory: bytes that the run has to fit in.
    """
    halved, fast = max(1, shape.batch_size // 2), rules.adapter(RunConfig(data="", lora_preset="fast"))
    smaller: list[tuple[str, int | str | bool]] = [
        *(("gradient_checkpointing", True), ("batch_size", halved), ("batch_size", 1), ("lora_dropout", 0)),
        *(("weights_dtype", "bfloat16"), ("optim", "adamw_8bit")) * (shape.mode == "full"),
        *(("mode", "lora"), ("mode", "qlora"), ("lora_r", 16), ("lora_preset", "fast")),
        *(("max_seq_length", 1024), ("max_seq_length", 512)),
    ]
    now = estimate(model, shape).total
    found: dict[tuple[str, int | str | bool], Change] = {}
    for setting, value in smaller:
        given = {name: fast[name] for name in ADAPTER} if setting == "lora_preset" else {setting: value}
        needed = estimate(model, replace(shape, **given)).total
        # Less than a hundredth is not worth a change.
        if now - needed > now / 100 and _is_setting(setting, value):
            found[setting, value] = Change(setting, value, now - needed, needed <= memory)
    return list(found.values())


def first_batch_size(config: RunConfig, free: int) -> int:
    """Rows of a forward pass that a run begins with: a power of two that divides ``rules.ROWS_PER_STEP``.

    On a card the most that are estimated to fit, and for a model that is not on this machine yet what its size says; on
    a CPU as many as fill a packed pass. Where the passes of a step are given, its rows follow from this: they stay few.

    Args:
        free: bytes of the card; 0 on a CPU.
    """
    most = rules.ROWS_PER_STEP if config.gradient_accumulation is None else 4 if free else 1
    sizes = [size for size in (1, 2, 4, 8, 16) if size <= most]
    shape = Shape.of(config, memory=free)
    if not free:
        tokens = shape.sequences * shape.max_seq_length
        return next((size for size in sizes if size * tokens >= CPU_TOKEN_BUDGET), sizes[-1])
    try:
        model = find_architecture(config.model)
    except ModelLoadError:
        return min(sizes[-1], 4 if free >= 23 * _GIB else 2 if free >= 15 * _GIB else 1)
    return max((each for each in sizes if estimate(model, replace(shape, batch_size=each)).total <= free), default=1)


def fitted(config: RunConfig, free: int) -> rules.Chosen:
    """``config`` with what the free memory decides: the mode, and which LoRA preset ``auto`` is.

    LoRA where the model fits in 16 bits, its micro-batches of one row; else QLoRA. A preset may fill three quarters of
    the memory: the rest is for longer rows and larger micro-batches.

    Args:
        free: bytes of the card; 0 on a CPU.
    """
    values: dict[str, tuple[str, str]] = {}
    try:
        model = find_architecture(config.model) if free else None
        why = "on a CPU"
    except ModelLoadError:
        model, why = None, "how much memory the model needs is not known"

    def needs(known: RunConfig) -> int:
        assert model is not None
        return estimate(model, replace(Shape.of(known, memory=free), batch_size=1)).total

    if config.mode == "auto":
        values["mode"] = "lora", why
        if model is not None:
            needed = needs(replace(config, mode="lora"))
            values["mode"] = (
                "lora" if needed <= free else "qlora",
                f"with its weights in 16 bits the run takes {needed / _GIB:.1f} GiB, and {free / _GIB:.1f} are free",
            )
        config = replace(config, mode=values["mode"][0])
    if config.lora_preset == "auto" and config.lora_r is not None:
        values["lora_preset"] = "balanced", "the rank was given"
    elif config.lora_preset == "auto":
        values["lora_preset"] = "fast", f"{why}: the smallest"
        for name in LORA_PRESETS if model is not None else ():
            needed = needs(replace(config, lora_preset=name))
            values["lora_preset"] = name, f"takes {needed / _GIB:.1f} GiB, and {free / _GIB:.1f} are free"
            if needed <= 0.75 * free:
                break
    config = replace(config, **{name: value for name, (value, _) in values.items()})
    told = {name: why for name, (_, why) in values.items() if free or name == "lora_preset"}
    return rules.Chosen(config, told)


def longest_rows(config: RunConfig, free: int) -> int:
    """Tokens of a row that a card takes, one row at a time; the usual limit where that cannot be told.

    Args:
        free: bytes of the card; 0 on a CPU.
    """
    usual = rules.usual_length(traces=config.reasoning_trace)
    try:
        model = find_architecture(config.model)
    except ModelLoadError:
        return usual
    shape = replace(Shape.of(config, memory=free), batch_size=1)
    fitting = bisect_right(
        _LENGTHS, free, key=lambda tokens: estimate(model, replace(shape, max_seq_length=tokens)).total
    )
    return _LENGTHS[fitting - 1] if fitting else usual


def _is_setting(name: str, value: object) -> bool:
    """Whether this version trains with that value."""
    try:
        settings()[name].parse(value, name)
    except InvalidSettingError:
        return False
    return True
