"""LoRA: adapters on frozen weights (https://arxiv.org/abs/2106.09685), PEFT's layers and files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from backprop.core.errors import InvalidSettingError, TrainingError
from backprop.core.presets import LORA_PRESETS
from backprop.core.settings import RunConfig
from backprop.train.checkpoint import seed_random, trained_parameters


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
        seed_random(self._config.seed)
        adapter = LoraConfig(
            r=self._config.lora_r,  # type: ignore[arg-type]
            lora_alpha=self._config.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=self._config.lora_dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self._base_name,
        )
        return get_peft_model(model, adapter)

    def trainable(self, model: Any) -> dict[str, torch.nn.Parameter]:
        found = trained_parameters(model)
        if not found or any("lora_" not in name for name in found):
            raise TrainingError("the adapters are not what is trained", code="RUNTIME_NOTHING_IS_TRAINING")
        ranks = {weight.shape[0] for name, weight in found.items() if "lora_A" in name}
        kinds = {weight.dtype for weight in found.values()}
        if ranks != {self._config.lora_r} or kinds != {torch.float32}:
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

    Named ones that the model lacks are an error when the person named them; a preset's are narrowed to those that
    exist, and an architecture with none of them gets adapters on all its linear layers (but not the head).

    Raises:
        InvalidSettingError: a layer was named that the model lacks.
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
