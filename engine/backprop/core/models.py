"""Where the files of a model are on this machine: of a preset, a local directory, or a Hugging Face name.

Everybody who needs a model or its tokenizer asks here: training (which fetches what is missing, ``fetch.models``),
``validate --model`` and the Data screen. Nothing in here opens a socket.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from backprop.core import paths
from backprop.core.errors import ModelLoadError
from backprop.core.presets import EMBEDDED_MODEL, MODEL_PRESETS

MANIFEST = "manifest.json"
"""Lists the files of the embedded model with their sizes and hashes."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def repository_of(name: str) -> str:
    """The Hugging Face name that the model ``name`` comes from; empty for the embedded one and for a local directory.

    Raises:
        ModelLoadError: it is no preset, no directory and no Hugging Face name.
    """
    if name in MODEL_PRESETS:
        return MODEL_PRESETS[name].repo
    if Path(name).expanduser().exists():
        return ""
    if not _REPOSITORY.fullmatch(name) or name.startswith("."):
        raise ModelLoadError(
            f"there is no model {name!r}: it is no preset, no directory and no Hugging Face name (owner/name)",
            hint="presets: " + ", ".join(MODEL_PRESETS),
            details={"model": name},
        )
    return name


def find_model(name: str) -> Path | None:
    """The directory with all files of the model ``name``; ``None`` where they have to be fetched first.

    Raises:
        ModelLoadError: there is no such model, or the directory that was named holds none.
    """
    folder = _folder(name)
    if name == EMBEDDED_MODEL:
        return folder if is_complete(folder) else None
    if repository_of(name):
        return folder if _has_all_files(folder) else None
    return require_weights(folder)


def find_tokenizer(name: str) -> Path:
    """The directory with the tokenizer of the model ``name``, for work that needs no weights.

    Raises:
        ModelLoadError: there is no such model, or its tokenizer is not on this machine.
    """
    folder = _folder(name)
    if not (folder / "tokenizer.json").is_file():
        fetched = "a run that trains it fetches it"
        if name == EMBEDDED_MODEL:
            fetched = "`backprop demo` fetches the small model once (93 MB)"
        raise ModelLoadError(
            f"the tokenizer of {name} is not on this machine",
            hint=f"name a directory that holds tokenizer.json; {fetched}",
            details={"model": name},
        )
    return folder


def known_models() -> list[tuple[str, str]]:
    """Name and place of the models on this machine that are no presets: in this directory, in the hub's cache."""
    from huggingface_hub import constants

    presets = {preset.repo for preset in MODEL_PRESETS.values()}
    here = [path.parent for path in Path().glob("*/config.json") if any(path.parent.glob("*.safetensors"))]
    names = [folder.name[8:].replace("--", "/") for folder in Path(constants.HF_HUB_CACHE).glob("models--*--*")]
    cached = [name for name in names if name not in presets and _has_all_files(_snapshot(name))]
    found = [(f"./{path}", "a folder of this directory") for path in sorted(here)]
    return found + [(name, "in the Hugging Face cache") for name in sorted(cached)]


def require_weights(folder: Path) -> Path:
    """``folder``, if it holds a model with weights in safetensors.

    Raises:
        ModelLoadError: it does not.
    """
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder} has no config.json, so it is no model directory", hint="name the folder itself")
    if not any(folder.glob("*.safetensors")):
        raise ModelLoadError(
            f"{folder} has no .safetensors weights",
            hint="weights in pickle files (.bin) can run code and are not read; convert the model to safetensors first",
        )
    return folder


def is_complete(folder: Path) -> bool:
    """Whether every file that the embedded model's manifest lists is there with its size."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return bool(files) and all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _folder(name: str) -> Path:
    if name == EMBEDDED_MODEL:
        return paths.model_cache(name)
    repository = repository_of(name)
    return _snapshot(repository) if repository else Path(name).expanduser()


def _snapshot(repository: str) -> Path:
    """Where the Hugging Face cache keeps the newest copy of ``repository``; nothing may be there."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    commit = folder / "refs" / "main"
    return folder / "snapshots" / (commit.read_text().strip() if commit.is_file() else "none")


def _has_all_files(folder: Path) -> bool:
    """Whether the configuration, the tokenizer and all weights of a copy in the cache are there."""
    index = folder / "model.safetensors.index.json"
    weights = {"model.safetensors"}
    if index.is_file():
        weights = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / name).is_file() for name in ("config.json", "tokenizer.json", *weights))
