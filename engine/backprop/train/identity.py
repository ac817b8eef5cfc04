"""What a checkpoint depends on, so that a run is never continued with something else.

An identity is a nested dictionary of plain values: ``model`` (a hash of each file, tokenizer files included),
``template`` (of the chat template), ``data`` (the key of the tokenised rows), ``config`` (settings that have an effect
on the weights) and ``libraries`` (versions).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from backprop.core.settings import RunConfig

LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "safetensors", "numpy")
_MODEL_FILES = re.compile(r".*\.(json|safetensors|model|jinja|txt|py)")
_WITHOUT_EFFECT = frozenset(
    {
        *("output_dir", "run_name", "sample_prompts", "sample_tokens"),
        *("data", "model", "mapping", "skip_bad", "samples"),
        *("eval_steps", "early_stopping", "save_steps", "save_minutes", "keep_best", "oom_recovery", "gpu_max_temp"),
    }
)
"""Settings that do not reach the weights, or reach them only through the model's files and the tokenised rows."""
WHOLE_FILE = 256 * 2**20
"""Larger files are hashed in part: reading a 15 GB model again costs minutes on a slow disk."""
_PIECES = 256
_PIECE = 2**16


def identity(config: RunConfig, model_path: Path, chat_template: str | None, data_key: str) -> dict[str, Any]:
    """The identity of a run.

    Args:
        config: as resolved.
        model_path: the directory that model and tokenizer are loaded from.
        chat_template: as used to render rows.
        data_key: key of the tokenised rows, which stands for the data's bytes and all that made tokens of them.
    """
    settings = msgspec.to_builtins(config)
    return {
        "model": {path.name: file_hash(path) for path in sorted(model_path.iterdir()) if _is_model_file(path)},
        "template": hashlib.sha256((chat_template or "").encode()).hexdigest(),
        "data": data_key,
        "config": {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT},
        "libraries": {"python": platform.python_version(), **_versions()},
    }


def identity_differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was when the checkpoint was made; each would make the continued run another run.

    Versions of libraries are not among them; see ``library_differences``.
    """
    found = []
    for key, before, after in _changes(_without_libraries(saved), _without_libraries(now)):
        part, _, name = key.partition(".")
        if part == "config":
            found.append(f"{name} was {_shown(before)} and is {_shown(after)}")
        elif part == "model":
            word = "is missing" if after is _ABSENT else "is new" if before is _ABSENT else "was changed"
            found.append(f"the model's file {name} {word}")
        elif part == "data":
            found.append("the data, or how it becomes tokens, was changed")
        elif part == "template":
            found.append("the chat template was changed")
        else:
            found.append(f"{key} was {_shown(before)} and is {_shown(after)}")
    return found


def library_differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Libraries of another version than when the checkpoint was made: results may differ in the last bits."""
    changes = _changes(saved.get("libraries", {}), now.get("libraries", {}))
    return [f"{name} was {_shown(before)} and is {_shown(after)}" for name, before, after in changes]


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as ``sha256:…``; above ``WHOLE_FILE`` of its length and evenly spread pieces, as ``pieces:…``.

    A file of the Hugging Face cache is a link to a blob that is named by its SHA-256: that name is taken.
    """
    target = path.resolve()
    if target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name):
        return f"sha256:{target.name}"
    size = target.stat().st_size
    with target.open("rb") as file:
        if size <= WHOLE_FILE:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for number in range(_PIECES):
            file.seek((size - _PIECE) * number // (_PIECES - 1))
            digest.update(file.read(_PIECE))
    return "pieces:" + digest.hexdigest()


_ABSENT = object()


def _changes(before: Any, after: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            inner = f"{place}.{key}" if place else key
            yield from _changes(before.get(key, _ABSENT), after.get(key, _ABSENT), inner)
    elif before != after:
        yield place, before, after


def _without_libraries(whole: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in whole.items() if key != "libraries"}


def _shown(value: Any) -> str:
    return "not there" if value is _ABSENT else repr(value)


def _is_model_file(path: Path) -> bool:
    return path.is_file() and _MODEL_FILES.fullmatch(path.name) is not None


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
