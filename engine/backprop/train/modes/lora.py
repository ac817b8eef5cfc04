"""LoRA: adapters on frozen weights (https://arxiv.org/abs/2106.09685), PEFT's layers and files."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from backprop.core.errors import TrainingError
from backprop.core.presets import ALL_LINEAR, LORA_PRESETS
from backprop.core.rules import held_size, require_layers
from backprop.core.settings import RunConfig, settings_with_effect
from backprop.train import four_bit
from backprop.train.checkpoint import seed_random, trained_parameters
from backprop.train.lora_start import begin

with four_bit.hidden():
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

KERNELS_PAST_OUT_PROJ = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Architectures whose kernels go past a module, so that PEFT refuses an adapter on it."""


class LoRA:
    """Adapters are always float32: in bf16 their updates would be rounded away.

    Args:
        config: as resolved.
        base_name: what the saved adapter names as its base.
    """

    def __init__(self, config: RunConfig, base_name: str) -> None:
        self._config = config
        self._base_name = base_name
        self.targets: list[str] = []
        self.notes: list[str] = []

    def load(self, base: Callable[..., Any]) -> PeftModel:
        model = base()
        self.targets, self.notes = choose_targets(model, self._config)
        self.notes += experts_note(model)
        seed_random(self._config.seed)
        start = self._config.init_lora_weights
        rank, alpha = self.held_size
        adapter = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=self._config.lora_dropout or 0.0,
            target_modules=self.targets,
            use_dora=self._config.use_dora,
            use_rslora=self._config.use_rslora,
            init_lora_weights="gaussian" if start == "gaussian" else True,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self._base_name,
        )
        adapted = get_peft_model(model, adapter)
        self.notes += begin(adapted, start)
        return adapted

    @property
    def held_size(self) -> tuple[int, float]:
        """Rank and alpha of the adapters in memory (``core.rules.held_size``)."""
        return held_size(settings_with_effect(self._config))

    def trainable(self, model: Any) -> dict[str, torch.nn.Parameter]:
        found = trained_parameters(model)
        if not found or any("lora_" not in name for name in found):
            raise TrainingError("the adapters are not what is trained", code="RUNTIME_NOTHING_IS_TRAINING")
        ranks = {weight.shape[0] for name, weight in found.items() if "lora_A" in name}
        kinds = {weight.dtype for weight in found.values()}
        if ranks != {self.held_size[0]} or kinds != {torch.float32}:
            raise TrainingError(
                f"the adapters in memory are not what was asked for: ranks {ranks}, in {kinds}",
                hint="this is a defect; the versions of torch, transformers and peft are in `backprop info`",
            )
        return found

    def save(self, model: Any, target: Path) -> None:
        # "auto" for embeddings would ask the hub about the base model.
        model.save_pretrained(target, safe_serialization=True, save_embedding_layers=False)
        (target / "README.md").unlink(missing_ok=True)

    def base_answers(self, model: Any) -> AbstractContextManager[Any]:
        without: AbstractContextManager[Any] = model.disable_adapter()
        return without


def choose_targets(model: Any, config: RunConfig) -> tuple[list[str], list[str]]:
    """Kinds of layer that get an adapter, and what has to be said about the choice.

    They are found among the model's own linear layers below its head. A preset for all of them takes them all, whatever
    their names. One for some takes those that exist, and where an architecture has none of them, because they are one
    layer there, the linear layers of its attention.

    Raises:
        InvalidSettingError: the person named a layer that the model lacks.
    """
    layers = _linear_layers(model)
    kinds = set(layers.values())
    require_layers(config, kinds)
    wanted = list(config.target_modules or [])
    preset = list(LORA_PRESETS[config.lora_preset].target_modules if config.lora_preset else ALL_LINEAR)
    missing = [name for name in wanted if name not in kinds]
    found = [name for name in wanted if name in kinds]
    notes = []
    if wanted == list(ALL_LINEAR):
        others = sorted(kinds.difference(found))
        if not found:
            notes.append("the preset's layers are not in this architecture: adapters are on all linear ones")
        elif others:
            notes.append(f"adapters are on all linear layers, in this architecture {', '.join(others)} too")
        found += others
    elif wanted == preset and not found:
        found = sorted({kind for name, kind in layers.items() if "attn" in name or "attention" in name})
        found = found or sorted(kinds)
        notes.append(f"this architecture has no {', '.join(preset)}: adapters are on {', '.join(found)}")
    elif missing:
        notes.append(f"this architecture has no {', '.join(missing)}: adapters are on {', '.join(found)} only")
    numbered = [(match[0], kind) for name, kind in layers.items() if (match := re.match(r".*?\.\d+(?=\.)", name))]
    blocks = {block for block, _ in numbered}
    reached = {block for block, kind in numbered if kind in found}
    if len(reached) < len(blocks):
        notes.append(f"{', '.join(found)}: {len(reached)} of {len(blocks)} layers have them, the others get no adapter")
    return found, notes


def _linear_layers(model: Any) -> dict[str, str]:
    """The linear layers that can have an adapter, by name, with their kind, which is the last part of the name.

    All below the head, except those for images and sounds.
    """
    head = model.get_output_embeddings()
    linear, unfit = {}, set()
    if getattr(getattr(model, "config", None), "model_type", "") in KERNELS_PAST_OUT_PROJ:
        unfit.add("out_proj")
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        # An architecture's own kind of linear layer may return anything: a router returns scores too.
        if not isinstance(module, torch.nn.Linear | Conv1D) or type(module).__module__.startswith(
            "transformers.models"
        ):
            unfit.add(kind)  # PEFT chooses by kind: one that other modules have too would reach those
        elif module is not head and not re.search(r"vision|visual|audio", name):
            linear[name] = kind
    unfit |= taken_for_experts(model)
    return {name: kind for name, kind in linear.items() if kind not in unfit}


def taken_for_experts(model: Any) -> set[str]:
    """Kinds of linear layer that PEFT, in some architectures, takes for what is one tensor of all experts there.

    An adapter for them (in shared experts, and in layers without experts) would be made for that tensor instead.
    """
    kinds = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    read = LoraConfig(target_modules=sorted(kinds))
    convert_peft_config_for_transformers(read, model, None)
    return kinds.difference(read.target_modules or ())


def experts_note(model: Any) -> list[str]:
    """What has to be said of a model (without adapters) whose experts are one tensor for all: none gets an adapter."""
    own = [module for module in model.modules() if not type(module).__module__.startswith("torch.")]
    experts = sum(each.numel() for module in own for each in module.parameters(recurse=False) if each.ndim == 3)
    if not experts:
        return []
    share = experts / sum(each.numel() for each in model.parameters())
    also = ", ".join(sorted(taken_for_experts(model)))
    return [
        f"the experts ({share:.0%} of the weights) get no adapter: they are no linear layers"
        + (f"; nor do {also}, whose names PEFT takes for theirs" if also else "")
    ]


MODE = LoRA
