"""The result of a run: what was trained, tokenizer files and a note of what it is, on disk whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from backprop.core import files
from backprop.core.architecture import for_older_readers
from backprop.core.errors import CheckpointError, TrainingError
from backprop.core.refused import is_full
from backprop.core.settings import RunConfig, settings_with_effect
from backprop.data.tokenizer import FILES, ChatTokenizer
from backprop.runs.result_files import IDENTITY, result_digest
from backprop.train.checkpoint import system_error
from backprop.train.model import Loaded

TOKENIZER_FILES = (*FILES, "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")


def save_result(
    loaded: Loaded,
    target: Path,
    *,
    run_id: str,
    config: RunConfig,
    fingerprint: str,
    base: dict[str, str],
    steps: int,
    on_texts: bool = False,
) -> None:
    """Write what was trained into the folder ``target``, replacing what is there.

    ``backprop.json`` says which run, base model, data and configuration it is from, and has the hash of every file.

    Args:
        base: the hash of each file of the base model, by its name.
        on_texts: whether it was trained on plain texts, so that a whole model gets no chat template it did not have.

    Raises:
        TrainingError: ``RUNTIME_IO_FAILED``, or ``RUNTIME_DISK_FULL``; what was in ``target`` is still there.
    """
    settings = json.dumps(settings_with_effect(config), sort_keys=True)
    try:
        with files.new_folder(target) as folder:
            loaded.mode.save(loaded.model, folder)
            copy_tokenizer(loaded.path, folder)
            if whole := (folder / "config.json").is_file():
                if not (loaded.path / "generation_config.json").is_file():  # the one in memory knows no end
                    ends = {"eos_token_id": sorted(loaded.chat.end_ids)}
                    (folder / "generation_config.json").write_text(json.dumps(ends) + "\n", encoding="utf-8")
                copy_beside(loaded.path, folder)
                config_of_any_reader = for_older_readers(files.read_json(folder / "config.json", dict[str, Any]))
                (folder / "config.json").write_text(json.dumps(config_of_any_reader, indent=2) + "\n", encoding="utf-8")
            write_what_was_learned(loaded.chat, folder, template=not (whole and on_texts))
            identity = {
                "run_id": run_id,
                "mode": config.mode,
                "model": config.model,
                "model_path": str(loaded.path),
                "base": base,
                "data": fingerprint,
                "config": hashlib.sha256(settings.encode()).hexdigest(),
                "steps": steps,
                "dtype": config.weights_dtype or "float32",
                "files": {path.name: result_digest(path) for path in sorted(folder.iterdir())},
            }
            (folder / IDENTITY).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as failed:
        error = failed if isinstance(failed, OSError) else system_error(failed, target)
        full = is_full(error)
        raise TrainingError(
            f"the result could not be saved in {target}: {error.strerror or error}",
            hint="make room or choose another --output; the run's checkpoints are untouched",
            code="RUNTIME_DISK_FULL" if full else "RUNTIME_IO_FAILED",
            retryable=full,
        ) from error


def copy_tokenizer(base: Path, folder: Path) -> None:
    """The tokenizer's files of the model in ``base``, as they are."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def base_of(adapter: Path) -> str:
    """The base model that an adapter's folder names: by the run that saved it, or by PEFT.

    Raises:
        CheckpointError: neither does.
    """
    for file, key in (
        (IDENTITY, "model_path"),
        (IDENTITY, "model"),
        ("adapter_config.json", "base_model_name_or_path"),
    ):
        try:
            name = files.read_json(adapter / file, dict[str, Any]).get(key)
        except (OSError, ValueError):
            continue
        if isinstance(name, str) and name and (key != "model_path" or Path(name).is_dir()):
            return name
    raise CheckpointError(f"{adapter} does not say which model it is for", hint="name it with --model")


def copy_beside(base: Path, folder: Path) -> None:
    """What a whole model has beside weights, settings and tokenizer: its licence, and code of its own."""
    for path in base.iterdir():
        if path.name.upper().startswith("LICENSE") or path.suffix == ".py":
            shutil.copyfile(path, folder / path.name)


def write_what_was_learned(chat: ChatTokenizer, folder: Path, *, template: bool = True) -> None:
    """What the model's files do not say and whoever loads the result needs: the template, and what ends an answer."""
    if template and not chat.brings_template:
        (folder / "chat_template.jinja").write_text(chat.template.source, encoding="utf-8")
    if chat.new_end is not None:
        file = folder / "generation_config.json"
        settings = json.loads(file.read_bytes()) if file.is_file() else {}
        settings["eos_token_id"] = sorted(chat.end_ids)
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
