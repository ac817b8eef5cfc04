"""The result of a run: its adapter, tokenizer files and a note of what it is, on disk whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from backprop.core.errors import TrainingError
from backprop.core.files import flush_folder
from backprop.core.settings import RunConfig
from backprop.data.tokenizer import FILES
from backprop.train.model import Loaded
from backprop.train.resume import file_hash, settings_with_effect

IDENTITY = "backprop.json"
_TOKENIZER_FILES = (*FILES, "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")


def save_adapter(loaded: Loaded, target: Path, *, run_id: str, config: RunConfig, fingerprint: str, steps: int) -> None:
    """Write what was trained into ``target``, replacing what is there.

    All files go into a folder beside it and are flushed; one rename makes them the result. ``backprop.json`` says
    which run, base model, data and configuration it is from, and has the hash of each file of weights.

    Raises:
        TrainingError: ``RUNTIME_IO_FAILED``; what was in ``target`` is still there.
    """
    staging = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        loaded.mode.save(loaded.model, staging)
        for name in _TOKENIZER_FILES:
            if (loaded.path / name).is_file():
                shutil.copyfile(loaded.path / name, staging / name)
        settings = json.dumps(settings_with_effect(config), sort_keys=True)
        identity = {
            "run_id": run_id,
            "model": config.model,
            "model_path": str(loaded.path),
            "data": fingerprint,
            "config": hashlib.sha256(settings.encode()).hexdigest(),
            "steps": steps,
            "weights": {path.name: file_hash(path) for path in sorted(staging.glob("*.safetensors"))},
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
