"""The files that a model and its tokenizer are read from, and whether they are those of then.

A run is refused before anything of it is changed where its base model is another one. What else it depends on is known
once its rows are (``train.persistence.resume``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backprop.core.errors import RunError
from backprop.core.files import sha256
from backprop.core.models import find_model

WHOLE_FILE = 256 * 2**20
"""Larger files are hashed in part: reading a 15 GB model again costs minutes on a slow disk."""
MODEL_FILES = re.compile(r".*\.(json|safetensors|model|jinja|txt|py)")
BASE_FILES = re.compile(r"config\.json|.*\.safetensors")
"""What an adapter's meaning depends on."""
_PIECES = 256
_PIECE = 2**16


def model_hashes(folder: Path) -> dict[str, str]:
    """The hash of each file that a model and its tokenizer are read from, by its name."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and MODEL_FILES.fullmatch(path.name)]
    return {path.name: file_hash(path) for path in files}


def model_differences(saved: dict[str, Any], now: dict[str, str], files: re.Pattern[str] = MODEL_FILES) -> list[str]:
    """Those ``files`` of the model that are not as in the identity ``saved``."""
    found = []
    for name, before, after in changes(saved.get("model", {}), now):
        word = "is missing" if after is _ABSENT else "is new" if before is _ABSENT else "was changed"
        found += [f"the model's file {name} {word}"] if files.fullmatch(name) else []
    return found


def base_differences(saved: dict[str, str], folder: Path) -> list[str]:
    """What of the base model in ``folder`` has another hash than in ``saved``, its tokenizer apart."""
    return model_differences({"model": saved}, model_hashes(folder), BASE_FILES)


def require_same_model(
    name: str, saved: dict[str, Any], why: str, files: re.Pattern[str] = MODEL_FILES
) -> dict[str, str]:
    """Refuse the model ``name`` where its ``files`` are on this machine and not as in the identity ``saved``.

    Returns:
        The hash of each of its files, by name; none where they were not looked at.

    Raises:
        ModelLoadError: there is no such model.
        RunError: ``STATE_IDENTITY_MISMATCH``: ``why`` with the list of differences.
    """
    folder = find_model(name) if "model" in saved else None
    hashes = {} if folder is None else model_hashes(folder)
    if hashes and (found := model_differences(saved, hashes, files)):
        raise RunError(
            f"{why}: " + "; ".join(found),
            code="STATE_IDENTITY_MISMATCH",
            hint="put its files back, or say with --model where they are now",
            details={"differences": found},
        )
    return hashes


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as ``sha256:…``; above ``WHOLE_FILE`` of its length and evenly spread pieces, as ``pieces:…``.

    A file of the Hugging Face cache is a link to a blob that is named by its SHA-256: that name is taken.
    """
    target = path.resolve()
    if target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name):
        return f"sha256:{target.name}"
    size = target.stat().st_size
    if size <= WHOLE_FILE:
        return "sha256:" + sha256(target)
    with target.open("rb") as file:
        digest = hashlib.sha256(str(size).encode())
        for number in range(_PIECES):
            file.seek((size - _PIECE) * number // (_PIECES - 1))
            digest.update(file.read(_PIECE))
    return "pieces:" + digest.hexdigest()


_ABSENT = object()


def changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Names whose values differ, those of ``before`` first, with both values."""
    for name in [*before, *(name for name in after if name not in before)]:
        was, is_now = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if was != is_now:
            yield name, was, is_now


def shown(value: Any) -> str:
    return "not there" if value is _ABSENT else repr(value)
