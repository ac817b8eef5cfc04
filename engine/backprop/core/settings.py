"""A run's configuration: every setting with its meaning, its range and its default, in one place.

Flags, variables, settings files, saved configurations, the library's parameters and the Configure screen are made from
these fields (``core.definition`` says of each what they need). What a field left open (``None`` or ``"auto"``) becomes
is chosen when the run starts and recorded in ``run_started`` and ``settings_chosen``.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from backprop.core.errors import InvalidSettingError
from backprop.core.presets import DEFAULT_MODEL, EMBEDDED_MODEL

_Positive: TypeAlias = Annotated[int, Meta(ge=1)]
_FromZero: TypeAlias = Annotated[int, Meta(ge=0)]
_AboveZero: TypeAlias = Annotated[float, Meta(gt=0)]
_Text: TypeAlias = Annotated[str, Meta(min_length=1)]
LARGEST = 2**53
"""The largest whole number that a setting takes: every reader of JSON gives it back."""
_SHOWN = 120
_HALF = re.compile("[\ud800-\udfff]")
"""Halves of surrogate pairs, which no UTF-8 file can hold."""

SECTIONS = {
    "data": "what is learned from",
    "model": "what is trained, and where",
    "training": "how long, how fast, in what steps",
    "lora": "the adapter",
    "evaluation": "how well it goes",
    "checkpoints": "what is kept, and when",
    "safety": "memory and heat",
    "run": "where the run is kept, and under which name",
    "multi_run": "several runs in sequence, merged into one adapter",
    "ui": "the application in a browser",
    "security": "what must be asked for in so many words",
}
"""The parts of a settings file, with their meaning, in the order in which people meet them."""


def _is(section: str, meaning: str, **more: Any) -> Meta:
    """What a setting is beside its type: fields of ``core.definition.Setting``."""
    return Meta(description=meaning, extra={"section": section, **more})


_data, _model, _training, _lora, _evaluation, _checkpoints, _safety, _run, _multi, _ui, _security = (
    partial(_is, name) for name in SECTIONS
)


class RunConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """Settings of one training run. Field order is the order in which people meet them.

    ``None`` where ``"auto"`` is the default is found in records of earlier versions: their rules go on for their runs.

    Raises:
        InvalidSettingError: a value that no file could hold and give back, wherever it came from; or a start of the
            adapters that does not go with the rest.
    """

    data: Annotated[
        _Text,
        _data(
            "dataset: a file, or owner/name[@revision][:configuration][:split]",
            common=True,
            key="path",
            flags=("--data", "-d"),
        ),
    ]
    model: Annotated[
        _Text,
        _model(
            "preset, local directory or Hugging Face name",
            common=True,
            key="name",
            flags=("--model", "-m"),
            rule=f"{DEFAULT_MODEL} on a GPU, else {EMBEDDED_MODEL}",
        ),
    ] = EMBEDDED_MODEL
    method: Annotated[
        Literal["sft", "dpo", "orpo", "simpo", "kto"],
        _training(
            "what is learned; sft: to answer as the rows do; dpo, orpo, simpo: from pairs; kto: from labels",
            common=True,
        ),
    ] = "sft"
    mode: Annotated[
        Literal["auto", "lora", "qlora", "full"],
        _model(
            "which weights are trained", common=True, rule="LoRA; on a GPU that the 16-bit model does not fit, QLoRA"
        ),
    ] = "auto"
    weights_dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        _model(
            "what full fine-tuning keeps weights in; bfloat16 rounds updates by chance",
            rule="float32; bfloat16 on a GPU that has it, where float32 does not fit",
        ),
    ] = None
    fp8: Annotated[
        bool,
        _model("full fine-tuning: linear layers multiply in 8-bit floats (torchao, cards of capability 8.9 and up)"),
    ] = False
    use_unsloth: Annotated[
        bool,
        _model(
            "say where Unsloth is installed that it is not used: layers and losses are this program's own",
            flags=("--unsloth",),
        ),
    ] = True
    backend: Annotated[
        Literal["auto", "cuda", "cpu", "mlx"],
        _model(
            "where it runs; mlx: LoRA by sft through mlx_lm",
            rule="CUDA where it works, MLX on Apple Silicon where it is installed and can, else the CPU",
        ),
    ] = "auto"
    processes: Annotated[
        _Positive,
        _model("processes that share each step's rows and the optimizer's state; on GPUs each has a card of its own"),
    ] = 1

    steps: Annotated[
        _Positive | None, _training("optimizer steps", common=True, unit="steps", rule="as the epochs say")
    ] = None
    epochs: Annotated[
        _AboveZero | Literal["auto"] | None,
        _training(
            "passes over the data, instead of steps",
            common=True,
            unit="epochs",
            rule="3 below 1,000 rows, 2 below 10,000, else 1",
        ),
    ] = "auto"
    samples: Annotated[_Positive | None, _data("train on the first N usable rows only", unit="rows")] = None
    batch_size: Annotated[
        _Positive | Literal["auto"],
        _training(
            "rows per forward pass",
            common=True,
            unit="rows",
            rule="as many as are estimated to fit, 16 at most; on a GPU then measured",
        ),
    ] = "auto"
    gradient_accumulation: Annotated[
        _Positive | None, _training("forward passes per optimizer step", rule="16 rows per step together")
    ] = None
    learning_rate: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        _training(
            "peak learning rate",
            common=True,
            flags=("--lr",),
            rule="by the model's family and hidden size, rows per step, whether the run is short, and the method",
        ),
    ] = None
    dpo_beta: Annotated[_AboveZero, _training("dpo: worth of a reward; less lets the model move further")] = 0.1
    orpo_beta: Annotated[_AboveZero, _training("orpo: weight of the odds ratio beside the likelihood")] = 0.1
    simpo_beta: Annotated[_AboveZero, _training("simpo: worth of a token's log-probability")] = 2.0
    simpo_gamma: Annotated[
        Annotated[float, Meta(ge=0)], _training("simpo: the margin by which the chosen side is to win")
    ] = 1.0
    kto_beta: Annotated[_AboveZero, _training("kto: worth of a reward; less lets the model move further")] = 0.1
    scheduler: Annotated[Literal["cosine", "linear", "constant"], _training("learning-rate curve after warm-up")] = (
        "cosine"
    )
    warmup_steps: Annotated[
        _FromZero | Literal["auto"] | None,
        _training(
            "steps of linear warm-up", unit="steps", rule="5 % of the steps, 10 to 100, at most a fifth of the run"
        ),
    ] = "auto"
    optim: Annotated[
        Literal["adamw", "adamw_8bit", "paged_adamw_8bit"],
        _training("the optimizer; with 8 bits (bitsandbytes) its state takes a quarter, paged may leave the GPU"),
    ] = "adamw"
    weight_decay: Annotated[float, Meta(ge=0, le=1), _training("AdamW weight decay")] = 0.0
    max_grad_norm: Annotated[_AboveZero, _training("gradients are clipped to this norm")] = 1.0
    max_seq_length: Annotated[
        Annotated[int, Meta(ge=16)] | Literal["auto"],
        _data(
            "longest row in tokens",
            common=True,
            unit="tokens",
            rule="from the data: 99 % of rows whole, no answer lost, if it fits; 8192 for reasoning traces",
        ),
    ] = "auto"
    train_on_responses: Annotated[bool, _data("loss on the assistant's turns alone")] = True
    reasoning_trace: Annotated[
        bool, _data("train answers with their <think>…</think> whole, whatever the chat template makes of it")
    ] = False
    packing: Annotated[bool, _data("several rows share one sequence, kept apart by a block mask")] = True
    gradient_checkpointing: Annotated[
        bool | None,
        _safety(
            "recompute activations: less memory, about a third slower", rule="on where a GPU has less than 40 GB free"
        ),
    ] = None

    lora_preset: Annotated[
        Literal["auto", "quality", "balanced", "fast"] | None,
        _lora(
            "rank, alpha, dropout and layers at once: 256, 64 or 16; auto: the largest that fits, on a CPU fast",
            common=True,
        ),
    ] = None
    lora_r: Annotated[Annotated[int, Meta(ge=1, le=4096)] | None, _lora("rank", rule="the preset's, else 32")] = None
    lora_alpha: Annotated[
        _AboveZero | None,
        _lora("scale times rank", rule="as the rank; with a preset its own, or twice the rank that is given"),
    ] = None
    lora_dropout: Annotated[
        Annotated[float, Meta(ge=0, lt=1)] | None, _lora("dropout before the adapter", rule="0; 0.05 with a preset")
    ] = None
    target_modules: Annotated[
        Annotated[list[_Text], Meta(min_length=1)] | None,
        _lora("layers that get an adapter, by name, or all-linear", rule="the preset's, else all linear ones"),
    ] = None
    use_dora: Annotated[bool, _lora("DoRA: directions by the adapter, lengths by a vector; slower")] = False
    use_rslora: Annotated[bool, _lora("rsLoRA: alpha is divided by the root of the rank, for high ranks")] = False
    init_lora_weights: Annotated[
        Literal["default", "gaussian", "pissa", "loftq"],
        _lora("how adapters begin; pissa: main directions of the weights; loftq: what 4 bits lose of them"),
    ] = "default"

    held_out: Annotated[
        _Text,
        _evaluation(
            "rows to evaluate on: none, a share such as 0.1, or a file",
            common=True,
            rule="5 %, 16 to 512 rows; of fewer than 160 a tenth",
        ),
    ] = "auto"
    eval_steps: Annotated[
        _Positive | Literal["auto"] | None,
        _evaluation(
            "steps between evaluations",
            unit="steps",
            rule="ten over the run, fewer where they would take more than a tenth of its time",
        ),
    ] = "auto"
    eval_base: Annotated[
        bool, _evaluation("score the untouched model on the held-out rows first, to say at the end whether it helped")
    ] = True
    early_stopping: Annotated[
        _Positive | None, _evaluation("stop after so many evaluations in a row without a better one")
    ] = None
    save_steps: Annotated[
        _Positive | None, _checkpoints("steps between checkpoints, beside those by time", unit="steps")
    ] = None
    save_minutes: Annotated[
        _AboveZero | Literal["auto"],
        _checkpoints(
            "minutes between checkpoints",
            unit="minutes",
            rule="10, more where a save was measured to take over a twentieth of that",
        ),
    ] = "auto"
    keep_best: Annotated[_Positive, _checkpoints("checkpoints kept for their held-out loss, beside the newest")] = 3
    oom_recovery: Annotated[bool, _safety("out of memory: halve the batch, up to three times")] = True
    gpu_max_temp: Annotated[
        float, Meta(ge=50, le=110), _safety("pause at this GPU temperature; pacing begins 10 degrees below", unit="°C")
    ] = 90.0

    seed: Annotated[int, Meta(ge=0, lt=2**32), _training("same seed, data and machine: same run")] = 42
    output_dir: Annotated[_Text, _run("run directories are made in here", common=True, flags=("--output", "-o"))] = (
        "./output"
    )
    run_name: Annotated[str | None, _run("a name for people; the run id stays", common=True, key="name")] = None
    mapping: Annotated[
        dict[str, str], _data("which field of a row holds what, as instruction=question", flags=("--map",))
    ] = {}
    skip_bad: Annotated[bool, _data("train on although some rows cannot be used", common=True)] = False
    sample_prompts: Annotated[
        list[_Text], _evaluation("answered before the first step and after the last", flags=("--sample-prompt",))
    ] = []
    sample_tokens: Annotated[int, Meta(ge=1, le=4096), _evaluation("longest sample, in tokens", unit="tokens")] = 96
    report_to: Annotated[
        list[Literal["none", "wandb", "tensorboard", "mlflow", "trackio"]] | None,
        _run(
            "trackers that get the curves: none, wandb, tensorboard, mlflow, trackio",
            rule="those that are installed and configured",
        ),
    ] = None
    trust_remote_code: Annotated[bool, _model("run code that the model brings along", per_run=True)] = False

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if problem := unwritable(getattr(self, name)):
                raise InvalidSettingError(f"{name}: {problem}", details={"field": name})
        for name in ("use_dora", "use_rslora"):
            if self.mode == "full" and getattr(self, name):
                raise InvalidSettingError(
                    f"{name}: {_NO_ADAPTER}", hint="leave it out, or --mode lora", details={"field": name}
                )
        if problem := self._start_problem():
            raise InvalidSettingError(
                f"init_lora_weights {self.init_lora_weights}: {problem}",
                hint="--init-lora-weights default begins adapters as usual",
                details={"field": "init_lora_weights"},
            )

        if self.backend == "mlx" and (other := self.beyond_mlx()):
            raise InvalidSettingError(
                f"backend mlx trains LoRA by sft, in one process: {other} is beyond it",
                hint="--backend auto runs it where it can; or leave that out",
                details={"field": "backend"},
            )

    def beyond_mlx(self) -> str:
        """The first of these settings that the MLX backend cannot carry out; empty where it can all."""
        beyond = {
            f"method {self.method}": self.method != "sft",
            f"mode {self.mode}": self.mode not in ("auto", "lora"),
            "use_dora": self.use_dora,
            f"init_lora_weights {self.init_lora_weights}": self.init_lora_weights in ("pissa", "loftq"),
            f"processes {self.processes}": self.processes > 1,
            "trust_remote_code": self.trust_remote_code,
        }
        return next((name for name, wanted in beyond.items() if wanted), "")

    def _start_problem(self) -> str:
        """Why adapters cannot begin as asked; empty where they can."""
        start = self.init_lora_weights
        if start != "default" and self.mode == "full":
            return _NO_ADAPTER
        if start in ("pissa", "loftq") and self.use_dora:
            return "DoRA measures the lengths of the weights before this start would be put in"
        if start == "pissa" and self.mode == "qlora":
            return "the 4-bit weights stay as they are, so that there is no residual to quantise; loftq is for them"
        if start == "pissa" and self.weight_decay:
            return "weight decay would wear the start away that the weights are held against"
        if start == "loftq" and self.mode not in ("auto", "qlora"):
            return "it makes up for what 4 bits lose, and the weights are in 16: it needs --mode qlora"
        return ""


_NO_ADAPTER = "mode full trains the weights themselves, so that there is no adapter"
WITHOUT_EFFECT = frozenset(
    {
        *("output_dir", "run_name", "sample_prompts", "sample_tokens", "report_to", "use_unsloth"),
        *("data", "model", "mapping", "skip_bad", "samples", "reasoning_trace"),
        *("eval_steps", "eval_base", "early_stopping", "save_steps", "save_minutes", "keep_best"),
        *("oom_recovery", "gpu_max_temp"),
    }
)
"""Settings that do not reach the weights, or reach them only through the model's files and the tokenised rows."""


class MultiConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """Settings of a session of several runs, beside the ``RunConfig`` of each of them."""

    tasks: Annotated[
        list[_Text],
        _multi(
            "datasets in the order in which they are learned; of one, each run takes a part",
            common=True,
            flags=("--data", "-d"),
        ),
    ] = []
    runs: Annotated[
        _Positive | None,
        _multi("runs one after another", common=True, rule="one for each dataset; of one the preset's, else 5"),
    ] = None
    replay: Annotated[
        Annotated[float, Meta(ge=0, lt=1)],
        _multi("share of each run's rows that are of earlier runs; a little keeps much", common=True),
    ] = 0.0
    merge_mode: Annotated[
        Literal["slao", "linear", "ties", "dare"],
        _multi("how a run's adapter is merged with those before it; slao: B alone, by 1/sqrt of the run's number"),
    ] = "slao"
    merge_weight: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        _multi("linear: weight of the new adapter; 1 keeps the last one", rule="1/sqrt of the run's number"),
    ] = None
    merge_drop: Annotated[
        Annotated[float, Meta(ge=0, lt=1)],
        _multi("ties: share of the smallest values that is left out; dare: of those drawn by chance"),
    ] = 0.2
    final_lr: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        _multi("peak learning rate of the last run, where it falls from run to run"),
    ] = None
    lr_decay: Annotated[Literal["linear", "cosine"], _multi("how it falls from --lr to --final-lr")] = "linear"
    run_patience: Annotated[
        _Positive | None, _multi("stop after so many runs in a row without a lower mean held-out loss")
    ] = None
    min_similarity: Annotated[
        Annotated[float, Meta(ge=-1, le=1)] | None,
        _multi("keep a run out whose update has a smaller cosine to what was merged before"),
    ] = None
    max_forgetting: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        _multi("keep a run out whose merge raises the mean held-out loss of earlier runs by more", unit="nats"),
    ] = None


class AppConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    """Settings of the program itself. They are at the top of a settings file where they have no section."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        _is("", "what is logged: this, and what is worse", rule="info where a log file is named, else warning"),
    ] = None
    log_json: Annotated[bool, _is("", "log lines as JSON")] = False
    log_file: Annotated[str | None, _is("", "a file that the log is appended to, beside the run's engine.log")] = None
    remote_command: Annotated[
        str | None, _is("", "the path of backprop on the machine that --host names", rule="looked for there")
    ] = None
    ui_output_dir: Annotated[
        _Text, _ui("the only directory that is written to from a browser", flags=("--output", "-o"))
    ] = "~/.backpropagate/ui-outputs"
    require_auth_for_share: Annotated[bool, _security("backprop ui serves other machines with a password alone")] = True


def unwritable(value: Any) -> str:
    """Why ``run.json`` could not hold ``value`` and give it back; empty where it can."""
    try:
        return _unwritable(value)
    except RecursionError:
        return "it is nested too deep"


def _unwritable(value: Any) -> str:
    match value:
        case float() if not math.isfinite(value):
            return f"a finite number is needed, not {value}"
        case int() if abs(value) > LARGEST:
            return f"at most {LARGEST}"
        case str() if "\0" in value:
            return "a NUL character is in no file name and no text"
        case str() if _HALF.search(value):
            return f"{shown(value)} is not UTF-8: a file of that name has to be renamed"
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
    lengths = [name for name in ("steps", "epochs") if nearer.get(name) not in (None, "auto")]
    if len(lengths) == 1:
        merged.update({"epochs": "auto"} if lengths == ["steps"] else {"steps": None})
    return merged


def settings_with_effect(config: RunConfig) -> dict[str, Any]:
    """The settings that reach the weights, as plain values."""
    return {name: value for name, value in msgspec.to_builtins(config).items() if name not in WITHOUT_EFFECT}
