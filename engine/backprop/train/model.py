"""The model of a run: where its files are, loading it in the mode asked for, and reporting what is really in memory."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from backprop.core import rules
from backprop.core.errors import (
    GPUNotAvailableError,
    InvalidSettingError,
    ModelLoadError,
    TrainingError,
    some,
)
from backprop.core.events import DatasetPrepared, Event, ModelLoaded, ModelLoading
from backprop.core.extras import require_modules
from backprop.core.models import find_architecture, repository_of, settings_of
from backprop.core.settings import RunConfig
from backprop.data.tokenizer import ChatTokenizer
from backprop.hardware import estimate, fit
from backprop.hardware.devices import installed_version
from backprop.hardware.estimate import ROOMY
from backprop.hardware.fit import first_batch_size
from backprop.train import four_bit, mlx_model
from backprop.train.loss import Loss, Traits, traits_of
from backprop.train.modes import Mode, mode_named
from backprop.train.packing import Batching

OTHER_SENSES = re.compile(r"vision|visual|audio|multi_modal|^mtp")
"""Tensors that a language model may leave in its file: towers for images and sounds, heads for several tokens."""
Emit = Callable[[Event], None]
BaseScores: TypeAlias = dict[tuple[str, Batching, int, tuple[int, ...]], tuple[Loss, float]]
"""What the untouched model makes of micro-batches, and in how many seconds: by the fingerprint of the rows that they
are of, how these are batched, the first one of the piece that was collated, and the micro-batch's places in that."""


@dataclass
class Loaded:
    """A model ready to be trained, and its tokenizer. ``dtype`` is what it computes in, and that of frozen weights."""

    model: Any
    mode: Mode
    chat: ChatTokenizer
    path: Path
    device: torch.device
    dtype: torch.dtype
    traits: Traits
    base_scores: BaseScores = field(default_factory=dict)
    """What is known of held-out rows before they are evaluated (``ahead``)."""

    def autocast(self) -> torch.autocast:
        """Inside, layers work in the precision of the frozen weights."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def choose_device(backend: str) -> torch.device:
    """The torch device that ``backend`` (auto, cuda, cpu or mlx) means on this machine.

    Raises:
        GPUNotAvailableError: CUDA was asked for and does not work.
    """
    works = torch.cuda.is_available()
    if backend == "cuda" and not works:
        built = torch.version.cuda is not None
        raise GPUNotAvailableError(
            "CUDA was asked for and cannot be used" + ("" if built else ": this torch is built without CUDA"),
            hint="use --backend cpu" if built else "install a CUDA build of torch, or use --backend cpu",
        )
    return torch.device("cuda" if works and backend in ("auto", "cuda") else "cpu")


def choose_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def resolved(config: RunConfig) -> RunConfig:
    """``config`` with everything chosen that can be chosen before the model and the data are loaded.

    Open afterwards is what depends on the rows (``core.rules.for_rows``).
    """
    device, free = _device_and_memory(config)
    if device.type == "cuda" and config.processes > (cards := torch.cuda.device_count()):
        raise GPUNotAvailableError(
            f"the run has {config.processes} processes, which need a card each, and {cards} can be used",
            hint=f"--processes {cards}, or --backend cpu; a run goes on with as many as it was begun with",
        )
    config = fit.fitted(config, free).config
    if config.fp8:
        _require_fp8(config.mode, torch.cuda.get_device_capability(device) if device.type == "cuda" else None)
    if config.mode == "qlora":
        four_bit.require_installed()
    apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    backend = rules.backend(config, cuda=device.type == "cuda", apple=apple, mlx=mlx_model.is_installed())
    if backend == "mlx":
        require_modules("--backend mlx", "mlx", "mlx", "mlx_lm")
    batch = first_batch_size(config, free) if config.batch_size == "auto" else config.batch_size
    checkpointing = config.gradient_checkpointing
    fit.require_size(config)
    full = config.mode == "full"
    bf16 = choose_dtype(device) == torch.bfloat16
    return msgspec.structs.replace(
        config,
        backend=backend,
        batch_size=batch,
        gradient_accumulation=config.gradient_accumulation or rules.accumulation(batch),
        gradient_checkpointing=(device.type == "cuda" and free < ROOMY) if checkpointing is None else checkpointing,
        **{"weights_dtype": estimate.weights_dtype(config, free if bf16 else 0)} if full else rules.adapter(config),
    )


def _require_fp8(mode: str, capability: tuple[int, int] | None) -> None:
    if problem := rules.fp8_problem(mode, capability):
        hint = "leave --fp8 out" + ("" if mode == "full" else ", or add --mode full")
        raise InvalidSettingError(f"fp8: {problem}", hint=hint, details={"field": "fp8"})
    require_modules("--fp8", "fp8", "torchao")


def _device_and_memory(config: RunConfig) -> tuple[torch.device, int]:
    """Where a run works, and the bytes of its card that are free; 0 on a CPU."""
    device = choose_device(config.backend)
    return device, torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def longest_rows(config: RunConfig) -> int:
    """Tokens of a row that this machine takes at most (``hardware.fit.longest_rows``)."""
    return fit.longest_rows(config, _device_and_memory(config)[1])


def by_memory(asked: RunConfig) -> dict[str, str]:
    """The reasons for what the free memory of this machine decided, by setting; ``asked`` has what was left open."""
    return fit.fitted(asked, _device_and_memory(asked)[1]).reasons


def for_lengths(config: RunConfig, asked: RunConfig, data: DatasetPrepared) -> rules.Chosen:
    """``config`` with what the lengths of its rows decide about: their limit, and how many of them a pass takes.

    Args:
        config: a ``resolved`` one.
        asked: the same with what nobody has said still open.
    """
    if config.max_seq_length != "auto":
        return rules.Chosen(config, {})
    reasons = {
        "max_seq_length": rules.length_reason(
            data.p99, data.answers_fit, data.max_length, traces=config.reasoning_trace
        )
    }
    still_open = rules.by_lengths(asked)
    known = resolved(msgspec.structs.replace(config, max_seq_length=data.max_length, **still_open))
    chosen = [name for name, said in still_open.items() if said != getattr(known, name)]
    return rules.Chosen(known, reasons | dict.fromkeys(chosen, f"rows of up to {data.max_length:,} tokens"))


def load_base(
    path: Path, device: torch.device, dtype: torch.dtype, trust_remote_code: bool = False, *, nf4: bool = False
) -> Any:
    """The model in ``path`` with its weights in ``dtype`` on ``device``, read from safetensors only.

    Args:
        nf4: its linear layers below the head in 4 bits, multiplied with in ``dtype``.

    Raises:
        ModelLoadError: the weights are damaged, of an unknown architecture, not those of the architecture that the
            configuration names, or need code that is not trusted.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            device_map={"": device} if nf4 or device.type == "cuda" else None,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # listed below, with their names
            # None would let a model that is quantised already pass for one that is not.
            **({"quantization_config": four_bit.quantization(dtype)} if nf4 else {}),
        )
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{path} does not fit the GPU's memory",
            hint="take a smaller model" if nf4 else "load it in 4 bits (--mode qlora), or take a smaller model",
            code="RUNTIME_GPU_OOM",
            details={} if nf4 else {"remedy": {"mode": "qlora"}},
        ) from error
    except Exception as error:  # a damaged file or a foreign architecture can raise anything in there
        why = (str(error).splitlines() or [""])[0]
        raise ModelLoadError(
            f"the model in {path} cannot be loaded: {type(error).__name__}: {why[:300]}",
            hint=_way_out(path, str(error)),
        ) from error
    model, found = loaded
    _require_every_weight(path, found)
    if nf4:
        four_bit.require_in_force(model, path)
    # Greedy means greedy: no penalty, minimum, beam or forbidden token that the model's files suggest for chatting.
    model.generation_config = GenerationConfig()
    return model


def _way_out(path: Path, why: str) -> str:
    """What to do about a model that could not be loaded for the reason ``why``."""
    settings = settings_of(path)
    kind = settings.get("model_type")
    if method := settings.get("quantization_config"):
        name = method.get("quant_method", "unknown") if isinstance(method, dict) else "unknown"
        return f"its weights are quantised ({name}): name the model that it was made from, in 16 or 32 bits"
    for words, hint in {
        "trust_remote_code": "the model brings its own code: allow it with --trust-remote-code if you trust its author",
        "does not recognize this architecture": f"transformers {installed_version('transformers')} does not know the "
        f"type {kind!r}: a newer version may, or choose another model",
        "Unrecognized configuration class": f"the type {kind!r} does not continue text: choose a model that does",
    }.items():
        if words in why:
            return hint
    return "try to fetch or copy it again"


def _require_every_weight(path: Path, found: dict[str, Any]) -> None:
    """Refuse a model whose files do not fit: what they lack would be random, and nothing else would tell.

    Tied weights, and tensors that an architecture no longer has a use for, are not in transformers' lists.

    Args:
        found: as ``from_pretrained`` reports it with ``output_loading_info``.
    """
    wrong = {
        "missing": sorted(found["missing_keys"]),
        "of another shape": sorted(name for name, *_ in found["mismatched_keys"]),
        "unexpected": sorted(name for name in found["unexpected_keys"] if not OTHER_SENSES.search(name)),
    }
    if any(wrong.values()):
        raise ModelLoadError(
            f"the weights in {path} are not those of the architecture in its config.json: "
            + "; ".join(f"{what}: {some(names)}" for what, names in wrong.items() if names),
            hint="fetch the model again; if a program of yours wrote it, compare the names of its tensors with the "
            "original's",
            details={"path": str(path), **wrong},
        )


def require_known_tokens(model: Any, ids: Any, chat: ChatTokenizer) -> None:
    """Refuse token ids beyond the model's embedding before it is asked for them.

    Raises:
        ModelLoadError: the tokenizer is not the model's.
    """
    size, largest = model.get_input_embeddings().weight.shape[0], int(np.max(ids))
    if largest >= size:
        raise ModelLoadError(
            f"the tokenizer writes {chat.token(largest)!r} as token {largest}, and the model knows {size} tokens only "
            f"(0 to {size - 1})",
            hint="tokenizer and weights are not of the same model: fetch or copy both again",
            details={"token": chat.token(largest), "id": largest, "embedding": size},
        )


def untrained_tokens(model: Any, ids: Any, chat: ChatTokenizer) -> list[str]:
    """Special tokens among ``ids`` that the model never learned: their embeddings are zero, or one and the same."""
    used = sorted(chat.special_ids & set(np.flatnonzero(np.bincount(ids)).tolist()))
    rows = model.get_input_embeddings().weight.detach()[used].float()
    same = (rows[:, None] == rows[None]).all(dim=2).sum(dim=1) > 1
    return [chat.token(id) for id, bad in zip(used, (same | (rows == 0).all(dim=1)).tolist(), strict=True) if bad]


def load(config: RunConfig, path: Path, emit: Emit, now: datetime | None = None) -> Loaded:
    """Load the model in ``path`` in the mode of a ``resolved`` configuration; ``now`` is for its chat template.

    Emits ``model_loading`` while it works and ``model_loaded`` with what was measured.

    Raises:
        ModelLoadError, InvalidSettingError, GPUNotAvailableError
        TrainingError: what is in memory is not what was asked for.
    """
    emit(ModelLoading(model=config.model, stage="load"))
    if config.mode == "full":
        fit.require_trainable_in_full(find_architecture(str(path)), config.model)
    device = choose_device(config.backend)
    mlx = config.backend == "mlx"
    dtype = mlx_model.choose_dtype() if mlx else choose_dtype(device)
    chat = ChatTokenizer.load(path, now)
    mode: Mode = mode_named(config.mode)(config, repository_of(config.model) or str(path))
    if config.mode == "qlora":
        four_bit.require_usable(device)

    def base(*, dtype: torch.dtype = dtype, **options: Any) -> Any:
        return load_base(path, device, dtype, config.trust_remote_code, **options)

    model = mode.load((lambda: mlx_model.shell(path)) if mlx else base)
    if mlx:
        model = mlx_model.MlxModel(model, path, config, dtype)
    with evaluating(model):
        traits = traits_of(model)
    if traits.sees_what_follows:
        raise ModelLoadError(
            f"the model in {path} sees the tokens that it should predict: it would learn to copy them",
            hint="choose a model that continues text (a causal one, with a decoder)",
        )
    loaded = Loaded(model, mode, chat, path, device, dtype, traits)
    emit(_measured(loaded, config))
    return loaded


def _measured(loaded: Loaded, config: RunConfig) -> ModelLoaded:
    """Facts about the weights in memory; raises where they contradict the configuration."""
    trainable = loaded.mode.trainable(loaded.model)
    frozen = [weight for weight in loaded.model.parameters() if not weight.requires_grad]
    wrong = {str(each.dtype) for each in frozen if each.is_floating_point() and each.dtype != loaded.dtype}
    if wrong:
        raise TrainingError(
            f"the weights in memory are not what was asked for: frozen ones in {wrong} instead of {loaded.dtype}",
            hint="this is a defect; the versions of torch, transformers and peft are in `backprop info`",
        )
    mlx = loaded.model if config.backend == "mlx" else None
    threads = f"cpu ({torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''})"
    device = f"cuda ({torch.cuda.get_device_name(loaded.device)})" if loaded.device.type == "cuda" else threads
    return ModelLoaded(
        model=config.model,
        path=str(loaded.path),
        device=mlx.device_name if mlx else device,
        mode=config.mode,
        dtype=config.weights_dtype or str(loaded.dtype).removeprefix("torch."),
        parameters=mlx.frozen
        if mlx
        else sum(four_bit.size(weight) for weight in (loaded.model.parameters() if config.mode == "full" else frozen)),
        trainable_parameters=sum(weight.numel() for weight in trainable.values()),
        targets=loaded.mode.targets,
        notes=loaded.mode.notes,
        share_4bit=four_bit.share(loaded.model),
    )


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside, and whatever it was before again outside, also after an exception."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def use_all_cores(processes: int = 1) -> None:
    """One thread per core that this process may run on and does not leave to the run's other ``processes``.

    ``OMP_NUM_THREADS`` overrides it.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
