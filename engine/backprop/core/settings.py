"""A run's configuration: every setting with its meaning, its range and its default, in one place.

Command-line flags, the library's parameters and the Configure screen are made from these fields. What was chosen
for a field left open (``None`` or ``"auto"``) is resolved by the engine and recorded in ``run_started.config``.
"""

from __future__ import annotations

import difflib
import errno
import functools
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from backprop.core.datasets import data_files, is_hub_name
from backprop.core.errors import DatasetNotFoundError, InputError, InvalidSettingError
from backprop.core.paths import expand
from backprop.core.presets import EMBEDDED_MODEL, MODEL_PRESETS

_Positive: TypeAlias = Annotated[int, Meta(ge=1)]
_AboveZero: TypeAlias = Annotated[float, Meta(gt=0)]
_Text: TypeAlias = Annotated[str, Meta(min_length=1)]
LARGEST = 2**53
"""The largest whole number that a setting takes: every reader of JSON gives it back."""
_SHOWN = 120
_HALF = re.compile("[\ud800-\udfff]")
"""Halves of surrogate pairs, which no UTF-8 file can hold."""


class RunConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """Settings of one training run. Field order is the order in which people meet them.

    Raises:
        InvalidSettingError: a value that no file could hold and give back, wherever it came from.
    """

    data: Annotated[_Text, Meta(description="dataset: a file, or owner/name[@revision][:configuration][:split]")]
    model: Annotated[_Text, Meta(description="preset, local directory or Hugging Face name")] = EMBEDDED_MODEL
    method: Annotated[Literal["sft"], Meta(description="what is learned; sft: to answer as the rows do")] = "sft"
    mode: Annotated[Literal["auto", "lora"], Meta(description="which weights are trained; auto is LoRA")] = "auto"
    backend: Annotated[Literal["auto", "cuda", "cpu"], Meta(description="where it runs; auto: CUDA where it works")] = (
        "auto"
    )

    steps: Annotated[
        _Positive | None, Meta(description="optimizer steps; given neither steps nor epochs: one epoch")
    ] = None
    epochs: Annotated[_AboveZero | None, Meta(description="passes over the data, instead of steps")] = None
    samples: Annotated[_Positive | None, Meta(description="train on the first N usable rows only")] = None
    batch_size: Annotated[
        _Positive | Literal["auto"], Meta(description="rows per forward pass; auto: from free memory")
    ] = "auto"
    gradient_accumulation: Annotated[int, Meta(ge=1, description="forward passes per optimizer step")] = 4
    learning_rate: Annotated[float, Meta(gt=0, le=1, description="peak learning rate")] = 2e-4
    scheduler: Annotated[
        Literal["cosine", "linear", "constant"], Meta(description="learning-rate curve after warm-up")
    ] = "cosine"
    warmup_steps: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="steps of linear warm-up; open: 5 % of the steps, at most 100"),
    ] = None
    weight_decay: Annotated[float, Meta(ge=0, le=1, description="AdamW weight decay")] = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0, description="gradients are clipped to this norm")] = 1.0
    max_seq_length: Annotated[int, Meta(ge=16, description="longest row in tokens")] = 2048
    train_on_responses: Annotated[bool, Meta(description="loss on the assistant's turns alone")] = True
    packing: Annotated[bool, Meta(description="several rows share one sequence, kept apart by a block mask")] = True
    gradient_checkpointing: Annotated[
        bool | None, Meta(description="recompute activations: less memory, about a third slower")
    ] = None

    lora_preset: Annotated[
        Literal["quality", "balanced", "fast"], Meta(description="rank, alpha and layers at once")
    ] = "balanced"
    lora_r: Annotated[Annotated[int, Meta(ge=1, le=4096)] | None, Meta(description="rank; open: the preset's")] = None
    lora_alpha: Annotated[
        _AboveZero | None, Meta(description="scale times rank; open: the preset's, twice the rank if that is given")
    ] = None
    lora_dropout: Annotated[float, Meta(ge=0, lt=1, description="dropout before the adapter")] = 0.05
    target_modules: Annotated[
        Annotated[list[_Text], Meta(min_length=1)] | None, Meta(description="layers that get an adapter")
    ] = None

    held_out: Annotated[
        _Text, Meta(description="rows to evaluate on: auto (5 %, 16 to 512 rows), none, a share such as 0.1, or a file")
    ] = "auto"
    eval_steps: Annotated[
        _Positive | None,
        Meta(description="steps between evaluations; open: ten over the run, none before as many rows were trained"),
    ] = None
    early_stopping: Annotated[
        _Positive | None, Meta(description="stop after so many evaluations in a row without a better one")
    ] = None
    save_steps: Annotated[_Positive | None, Meta(description="steps between checkpoints, beside those by time")] = None
    save_minutes: Annotated[float, Meta(gt=0, description="minutes between checkpoints")] = 10.0
    keep_best: Annotated[int, Meta(ge=1, description="checkpoints kept for their held-out loss, beside the newest")] = 3
    oom_recovery: Annotated[bool, Meta(description="out of memory: halve the batch, up to three times")] = True
    gpu_max_temp: Annotated[
        float, Meta(ge=50, le=110, description="pause at this GPU temperature; pacing begins 10 degrees below")
    ] = 90.0

    seed: Annotated[int, Meta(ge=0, lt=2**32, description="same seed, data and machine: same run")] = 42
    output_dir: Annotated[str, Meta(min_length=1, description="run directories are made in here")] = "./output"
    run_name: Annotated[str | None, Meta(description="a name for people; the run id stays")] = None
    mapping: Annotated[
        dict[str, str], Meta(description="which field of a row holds what, as instruction=question")
    ] = {}
    skip_bad: Annotated[bool, Meta(description="train on although some rows cannot be used")] = False
    sample_prompts: Annotated[list[_Text], Meta(description="answered before the first step and after the last")] = []
    sample_tokens: Annotated[int, Meta(ge=1, le=4096, description="longest sample, in tokens")] = 96
    trust_remote_code: Annotated[bool, Meta(description="run code that the model brings along")] = False

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            _require_writable(name, getattr(self, name))


def _require_writable(name: str, value: Any) -> None:
    try:
        problem = _unwritable(value)
    except RecursionError:
        problem = "it is nested too deep"
    if problem:
        raise InvalidSettingError(f"{name}: {problem}", hint=_meaning(name), details={"field": name})


WITHOUT_EFFECT = frozenset(
    {
        *("output_dir", "run_name", "sample_prompts", "sample_tokens"),
        *("data", "model", "mapping", "skip_bad", "samples"),
        *("eval_steps", "early_stopping", "save_steps", "save_minutes", "keep_best", "oom_recovery", "gpu_max_temp"),
    }
)
"""Settings that do not reach the weights, or reach them only through the model's files and the tokenised rows."""


def _unwritable(value: Any) -> str:
    """Why ``run.json`` could not hold ``value`` and give it back; empty where it can."""
    match value:
        case float() if not math.isfinite(value):
            return f"a finite number is needed, not {value}"
        case int() if abs(value) > LARGEST:
            return f"at most {LARGEST}"
        case str() if "\0" in value:
            return "a NUL character is in no file name and no text"
        case str() if _HALF.search(value):
            return f"{shown(value)} is not UTF-8"
        case list() | tuple():
            return next((problem for item in value if (problem := _unwritable(item))), "")
        case dict():
            return _unwritable([*value.keys(), *value.values()])
        case None | int() | float() | str():
            return ""
    return f"no setting is of type {type(value).__name__}"


def shown(value: Any) -> str:
    """A value as an error message says it, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in itself
        text = f"this {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-20:]}"


def override(values: dict[str, Any], nearer: dict[str, Any]) -> dict[str, Any]:
    """Settings with those that were named nearer to the person on top.

    The length of a run is one thing with two names: a nearer ``epochs`` also replaces ``steps``, and the other way.
    """
    merged = {**values, **nearer}
    lengths = [name for name in ("steps", "epochs") if nearer.get(name) is not None]
    if len(lengths) == 1:
        merged["epochs" if lengths == ["steps"] else "steps"] = None
    return merged


def config_from(values: dict[str, Any]) -> RunConfig:
    """Build a configuration from plain values. Paths may be ``os.PathLike``, numbers those of numerical libraries.

    Raises:
        InvalidSettingError: an unknown name (with the nearest known one) or a value outside its range.
    """
    known = RunConfig.__struct_fields__
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name)[:_SHOWN], known, n=1)
            raise InvalidSettingError(
                f"unknown setting {shown(name)}",
                hint=f"did you mean {near[0]!r}?" if near else "`backprop train --help` lists the settings",
                details={"field": str(name)[:_SHOWN]},
            )
    plain = {name: _plain(value) for name, value in values.items()}
    for name, value in plain.items():
        _require_writable(name, value)
    try:
        config = msgspec.convert(plain, RunConfig)
    except msgspec.ValidationError as error:
        text = str(error)
        place = re.search(r"\$\.([^`]*)", text)
        path = place[1] if place else ""
        wrong = text.partition(" - at")[0]
        given = f", not {shown(values[path])}" if path in values else ""
        field = re.split(r"\W", path)[0]
        raise InvalidSettingError(
            f"{path or 'configuration'}: {wrong[0].lower()}{wrong[1:]}{given}",
            hint=_meaning(field),
            details={"field": field},
        ) from None
    if config.steps is not None and config.epochs is not None:
        raise InvalidSettingError(
            "steps and epochs were both given", hint="give one of --steps and --epochs", details={"field": "epochs"}
        )
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # Scalars of numpy, torch and their like are no numbers to a decoder.
    scalar = getattr(value, "item", None)
    return scalar() if callable(scalar) and getattr(value, "shape", None) == () else value


def _meaning(name: str) -> str:
    return f"{name}: {setting_help(name)}" if setting_help(name) else ""


def settings_with_effect(config: RunConfig) -> dict[str, Any]:
    """The settings that reach the weights, as plain values."""
    return {name: value for name, value in msgspec.to_builtins(config).items() if name not in WITHOUT_EFFECT}


def locate(config: RunConfig, *, rows_in_memory: bool = False) -> RunConfig:
    """Make the paths of a configuration absolute: the engine and whoever looks at the run may stand elsewhere.

    The name of a dataset on the Hugging Face Hub stays as it is: the engine fetches it. With ``rows_in_memory`` the
    data is no file yet, and is left alone.

    Raises:
        DatasetNotFoundError: the data file, or that of held-out rows, does not exist; the nearest name is suggested.
    """
    changes = {"output_dir": str(_expand("output_dir", config.output_dir)), "model": locate_model(config.model)}
    if not rows_in_memory:
        data = _expand("data", config.data)
        if _is_file(data):
            changes["data"] = str(data)
        elif not is_hub_name(config.data):
            raise _no_data(data, "data")
    held_out = held_out_file(config.held_out)
    if held_out is not None:
        if not _is_file(held_out):
            raise _no_data(held_out, "held_out")
        changes["held_out"] = str(held_out)
    return msgspec.structs.replace(config, **changes)


def locate_model(name: str) -> str:
    """The absolute path of a model's folder; a preset, or a name on the Hugging Face Hub, as it is.

    Raises:
        InputError: the path begins in the home directory of somebody unknown.
    """
    if name in MODEL_PRESETS:
        return name
    folder = _expand("model", name)
    return str(folder) if folder.is_dir() else name


def held_out_file(held_out: str) -> Path | None:
    """The file that the setting ``held_out`` names, absolute; ``None`` where it is a word or a number.

    Raises:
        InputError: the path begins in the home directory of somebody unknown.
    """
    if held_out in ("auto", "none"):
        return None
    try:
        float(held_out)
    except ValueError:
        return _expand("held_out", held_out)
    return None


def _expand(setting: str, text: str) -> Path:
    details = {"field": setting}
    try:
        path = expand(text)
        if setting != "output_dir":  # which is refused when a run is made in it
            path.stat()
    except InputError as error:
        raise InputError(f"{setting}: {error.message}", hint=error.hint, details=details) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            why = f"a name is longer than the file system allows: {shown(text)}"
            raise InputError(f"{setting}: {why}", hint="shorten it", details=details) from None
    return path


def _is_file(path: Path) -> bool:
    try:
        return bool(data_files(path))
    except OSError:  # a name that no file can have
        return False


def _no_data(data: Path, field: str) -> DatasetNotFoundError:
    details = {"path": str(data), "field": field}
    if data.is_dir():
        hint = "a dataset is a file: .jsonl, .json, .csv, .parquet or .txt"
        return DatasetNotFoundError(f"{data} is a directory", hint=hint, details=details)
    if data.exists():
        hint = "it would have to be read twice: write it into a file first"
        return DatasetNotFoundError(f"{data} is a pipe or a device, not a file", hint=hint, details=details)
    beside = [entry.name for entry in data.parent.iterdir() if entry.is_file()] if data.parent.is_dir() else []
    near = difflib.get_close_matches(data.name, beside, n=1)
    what = "dataset" if field == "data" else "file of held-out rows"
    hint = f"did you mean {data.parent / near[0]}?" if near else f"look at the path of the {what}"
    return DatasetNotFoundError(f"there is no {what} {data}", hint=hint, details=details)


def setting_help(name: str) -> str:
    """The one-line meaning of a setting; empty for a name that is none."""
    return _descriptions().get(name, "")


@functools.cache
def _descriptions() -> dict[str, str]:
    schema = msgspec.json.schema(RunConfig)["$defs"]["RunConfig"]["properties"]
    return {name: spec["description"] for name, spec in schema.items()}
