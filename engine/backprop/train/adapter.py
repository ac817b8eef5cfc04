"""The result of a run: its adapter, tokenizer files and a note of what it is, on disk whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import msgspec
from safetensors import safe_open

from backprop.core.errors import TrainingError
from backprop.core.files import flush_folder
from backprop.core.settings import RunConfig
from backprop.data.tokenizer import FILES
from backprop.train.model import Loaded

IDENTITY = "backprop.json"
WEIGHTS = "adapter_model.safetensors"
_TOKENIZER_FILES = (*FILES, "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")


def config_hash(config: RunConfig) -> str:
    """Hash of every setting that decides about the weights: not the run's name or where it is put."""
    settings = msgspec.to_builtins(config)
    for name in ("output_dir", "run_name", "sample_prompts", "sample_tokens"):
        settings.pop(name)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def save_adapter(loaded: Loaded, target: Path, *, run_id: str, config: RunConfig, data_key: str, steps: int) -> None:
    """Write the adapter into ``target``, replacing what is there.

    All files go into a folder beside it and are flushed; one rename makes them the result. ``backprop.json`` says
    which run, base model, data and configuration the adapter is from, and has the hash of its weights.

    Raises:
        TrainingError: ``RUNTIME_IO_FAILED``; what was in ``target`` is still there.
    """
    staging = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        # "auto" for embeddings would ask the hub about the base model.
        loaded.model.save_pretrained(staging, safe_serialization=True, save_embedding_layers=False)
        (staging / "README.md").unlink(missing_ok=True)
        for name in _TOKENIZER_FILES:
            if (loaded.path / name).is_file():
                shutil.copyfile(loaded.path / name, staging / name)
        identity = {
            "run_id": run_id,
            "model": config.model,
            "model_path": str(loaded.path),
            "data": data_key,
            "config": config_hash(config),
            "steps": steps,
            "weights_sha256": file_sha256(staging / WEIGHTS),
        }
        (staging / IDENTITY).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        for path in staging.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        flush_folder(staging)
        _swap(staging, target)
    except OSError as error:
        raise TrainingError(
            f"the adapter could not be saved in {target}: {error.strerror or error}",
            hint="make room or choose another --output; the run's checkpoints are untouched",
            code="RUNTIME_IO_FAILED",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def adapter_moved(adapter: Path) -> bool:
    """Whether training changed the saved adapter: LoRA's B starts at zero, so an untrained one is zero everywhere."""
    with safe_open(adapter / WEIGHTS, "pt") as tensors:
        return any(bool(tensors.get_tensor(name).any()) for name in tensors.keys() if "lora_B" in name)  # noqa: SIM118
