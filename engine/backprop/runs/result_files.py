"""The files of a result, and whether they are as their run saved them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from backprop.core.files import read_json, sha256

IDENTITY = "backprop.json"
"""Lies beside a result and says what it is."""


def changed_files(result: Path) -> list[str]:
    """What of a result is not as a run saved it, in words: weights, scale, tokenizer and template."""
    try:
        identity = read_json(result / IDENTITY, dict[str, Any])
        saved: dict[str, str] = identity.get("files") or identity.get("weights") or {}  # earlier runs kept only these
        changed = [name for name, digest in saved.items() if result_digest(result / name) != digest]
    except (OSError, ValueError) as error:
        return [f"{result}: it cannot be told whether it is as it was saved: {error}"]
    return [f"{result / name} is not the file that the run saved" for name in changed]


def result_digest(path: Path) -> str:
    """SHA-256 of a file of a result; of an adapter's settings without the base's name, which says where that is now."""
    if path.name != "adapter_config.json":
        return sha256(path)
    settings = read_json(path, dict[str, Any])
    settings.pop("base_model_name_or_path", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
