"""The model of a run: where its files are, loading it, giving it adapters, and saying what is really in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

from backprop.core.errors import GPUNotAvailableError, InvalidSettingError, ModelLoadError, TrainingError
from backprop.core.events import Event, ModelLoaded, ModelLoading
from backprop.core.models import repository_of
from backprop.core.presets import LORA_PRESETS
from backprop.core.settings import RunConfig
from backprop.data.tokenizer import ChatTokenizer

GB = 1024**3
Emit = Callable[[Event], None]


@dataclass
class Loaded:
    """A model with its adapters, ready to be trained, and its tokenizer."""

    model: PeftModel
    chat: ChatTokenizer
    path: Path
    device: torch.device
    dtype: torch.dtype
    """Of the frozen weights. Adapters are always float32: in bf16 their updates would be rounded away."""
    targets: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The same tokenizer in the form that transformers' and TRL's classes ask for."""
        tokens = self.chat.template.tokens
        known = {name: tokens[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token") if name in tokens}
        return PreTrainedTokenizerFast(tokenizer_object=self.chat.tokenizer, **known)


def choose_device(backend: str) -> torch.device:
    """The device that ``backend`` (auto, cuda or cpu) means on this machine.

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
    return torch.device("cuda" if works and backend != "cpu" else "cpu")


def choose_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def resolved(config: RunConfig) -> RunConfig:
    """``config`` with everything chosen that can be chosen before the model and the data are loaded.

    Open afterwards: ``steps``, ``epochs`` and ``warmup_steps`` (they depend on the data).
    """
    preset = LORA_PRESETS[config.lora_preset]
    rank = config.lora_r or preset.r
    alpha = config.lora_alpha or (preset.alpha if config.lora_r is None else 2.0 * rank)
    device = choose_device(config.backend)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    batch = config.batch_size
    checkpointing = config.gradient_checkpointing
    return msgspec.structs.replace(
        config,
        mode="lora",
        backend="cuda" if device.type == "cuda" else "cpu",
        batch_size=(4 if free >= 23 * GB else 2 if free >= 15 * GB else 1) if batch == "auto" else batch,
        gradient_checkpointing=(device.type == "cuda" and free < 40 * GB) if checkpointing is None else checkpointing,
        lora_r=rank,
        lora_alpha=alpha,
        target_modules=config.target_modules or list(preset.target_modules),
    )


def load_base(path: Path, device: torch.device, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """The model in ``path`` with its weights in ``dtype`` on ``device``, read from safetensors only.

    Raises:
        ModelLoadError: the weights are damaged, of an unknown architecture, or need code that is not trusted.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            device_map={"": device} if device.type == "cuda" else None,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(f"{path} does not fit the GPU's memory", code="RUNTIME_GPU_OOM") from error
    except Exception as error:  # a damaged file or a foreign architecture can raise anything in there
        hint = "the model brings its own code: allow it with --trust-remote-code if you trust its author"
        raise ModelLoadError(
            f"the model in {path} cannot be loaded: {type(error).__name__}: {error}",
            hint=hint if "trust_remote_code" in str(error) else "try to fetch or copy it again",
        ) from error
    return model


def load(config: RunConfig, path: Path, emit: Emit) -> Loaded:
    """Load the model in ``path`` and add the adapters of a ``resolved`` configuration.

    Emits ``model_loading`` while it works and ``model_loaded`` with what was measured.

    Raises:
        ModelLoadError, InvalidSettingError, GPUNotAvailableError
        TrainingError: what is in memory is not what was asked for.
    """
    emit(ModelLoading(model=config.model, stage="load"))
    device = choose_device(config.backend)
    dtype = choose_dtype(device)
    chat = ChatTokenizer.load(path)
    base = load_base(path, device, dtype, config.trust_remote_code)
    targets, notes = choose_targets(base, config)
    set_seed(config.seed)
    adapter = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=repository_of(config.model) or str(path),
    )
    model = get_peft_model(base, adapter)
    loaded = Loaded(model, chat, path, device, dtype, targets, notes)
    emit(_measured(loaded, config))
    return loaded


def choose_targets(model: Any, config: RunConfig) -> tuple[list[str], list[str]]:
    """Kinds of layer that get an adapter, and what has to be said about the choice.

    Named ones that the model lacks are an error when the person named them; a preset's are narrowed to those that
    exist, and an architecture with none of them gets adapters on all its linear layers (but not the head).
    """
    head = model.get_output_embeddings()
    linear = {
        n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head
    }
    wanted = list(config.target_modules or [])
    found = [name for name in wanted if name in linear]
    preset = list(LORA_PRESETS[config.lora_preset].target_modules)
    if missing := [name for name in wanted if name not in linear]:
        if wanted != preset:
            raise InvalidSettingError(
                f"the model has no linear layer called {', '.join(missing)}",
                hint="its layers: " + ", ".join(sorted(linear)),
                details={"field": "target_modules"},
            )
        if not found:
            return sorted(linear), ["the preset's layers are not in this architecture: adapters are on all linear ones"]
    return found, []


def _measured(loaded: Loaded, config: RunConfig) -> ModelLoaded:
    """Facts about the weights in memory; raises where they contradict the configuration."""
    model = loaded.model
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    if not trainable or any("lora_" not in name for name in trainable):
        raise TrainingError("the adapters are not what is trained", code="RUNTIME_NOTHING_IS_TRAINING")
    ranks = {p.shape[0] for name, p in trainable.items() if "lora_A" in name}
    wrong = [str(p.dtype) for p in frozen if p.is_floating_point() and p.dtype != loaded.dtype]
    if ranks != {config.lora_r} or any(p.dtype != torch.float32 for p in trainable.values()) or wrong:
        raise TrainingError(
            f"the weights in memory are not what was asked for: ranks {ranks}, frozen weights also {set(wrong)}",
            hint="this is a defect; the versions of torch, transformers and peft are in `backprop info`",
        )
    return ModelLoaded(
        model=config.model,
        path=str(loaded.path),
        device=_device_name(loaded.device),
        mode="lora",
        dtype=str(loaded.dtype).removeprefix("torch."),
        parameters=sum(p.numel() for p in frozen),
        trainable_parameters=sum(p.numel() for p in trainable.values()),
        targets=loaded.targets,
        notes=loaded.notes,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside, and whatever it was before again outside, also after an exception."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def context_length(path: Path) -> int | None:
    """How many positions the model was made for, from its ``config.json``; ``None`` where it does not say."""
    settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    length = settings.get("max_position_embeddings", settings.get("text_config", {}).get("max_position_embeddings"))
    return length if isinstance(length, int) else None


def use_all_cores() -> None:
    """One thread per core that this process may run on; ``OMP_NUM_THREADS`` overrides it."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
