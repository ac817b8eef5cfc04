"""Where the files of a model are on this machine: of a preset, a local directory, or a Hugging Face name.

Everybody who needs a model or its tokenizer asks here: training (which fetches what is missing, ``fetch.models``),
``validate --model`` and the Data screen. Nothing in here opens a socket.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from backprop.core import architecture, paths
from backprop.core.architecture import Architecture
from backprop.core.errors import ModelLoadError
from backprop.core.files import open_regular, read_json
from backprop.core.presets import EMBEDDED_MODEL, MODEL_PRESETS

MANIFEST = "manifest.json"
"""Lists the files of the embedded model with their sizes and hashes."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""All weights in one file, or the list of the files that they are spread over."""
_REPOSITORY = re.compile(r"(?:https?://huggingface\.co/)?([\w.-]+/[\w.-]+)")


def repository_of(name: str) -> str:
    """The Hugging Face name that the model ``name`` comes from; empty for the embedded one and for a local directory.

    Raises:
        ModelLoadError: it is no preset, no directory and no Hugging Face name.
    """
    if name in MODEL_PRESETS:
        return MODEL_PRESETS[name].repo
    if Path(name).expanduser().exists():
        return ""
    if name.startswith(("/", ".", "~")):
        hint = "check the path; if it was moved, resume, extend, fork and generate take --model NEW_PATH"
        raise ModelLoadError(f"there is no model directory {name}", hint=hint, details={"model": name})
    if (match := _REPOSITORY.fullmatch(name)) is None:
        raise ModelLoadError(
            f"there is no model {name!r}: it is no preset, no directory and no Hugging Face name (owner/name)",
            hint="presets: " + ", ".join(MODEL_PRESETS),
            details={"model": name},
        )
    return match[1]


def require_model(name: str) -> None:
    """That ``name`` is a preset, a Hugging Face name, or a directory with a model or its tokenizer.

    Raises:
        ModelLoadError: it is none, and what it is instead.
    """
    folder = Path(name).expanduser()
    if name != EMBEDDED_MODEL and not repository_of(name) and not (folder / "tokenizer.json").is_file():
        _require_configuration(folder)


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


def find_architecture(name: str) -> Architecture:
    """The architecture of the model ``name``: a preset's is known, another one's is read from its ``config.json``.

    Raises:
        ModelLoadError: there is no such model, it is not on this machine, or its configuration does not tell.
    """
    for preset, known in architecture.PRESETS.items():
        if name in (preset, MODEL_PRESETS[preset].repo):
            return known
    file = _folder(name) / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelLoadError(
            f"the config.json of {name} is not on this machine",
            hint="name a directory that holds it; a run that trains the model fetches it",
            details={"model": name},
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}", hint="fetch or copy the model again") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{file} is no model's configuration", hint="fetch or copy the model again")
    return architecture.read_architecture(config, name)


def require_weights(folder: Path) -> Path:
    """``folder``, if it holds one model with weights in safetensors.

    Raises:
        ModelLoadError: it does not, and what it is instead.
    """
    _require_configuration(folder)
    weights = {path.name for path in folder.glob("*.safetensors")}
    if not weights:
        raise ModelLoadError(
            f"{folder} has no .safetensors weights",
            hint="weights in pickle files (.bin) can run code and are not read; convert the model to safetensors first",
        )
    for path in (*folder.glob("*.json"), *folder.glob("*.safetensors")):
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                pointer = file.read(len(_POINTER)) == _POINTER
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error.strerror}", hint="fetch or copy it again") from error
        if pointer:
            raise ModelLoadError(f"{path} is a Git LFS pointer, not the file", hint=f"`git -C {folder} lfs pull`")
    settings_of(folder)
    listed = _listed_weights(folder)
    missing = sorted(listed - weights)
    if missing and SINGLE not in weights:
        raise ModelLoadError(
            f"{folder} lacks {len(missing)} of its files of weights, the first of them {missing[0]!r}",
            hint="fetch or copy the model again",
        )
    if not missing and SINGLE in weights - listed:
        raise ModelLoadError(
            f"{folder} holds two sets of weights: {SINGLE}, and {len(listed)} others that {INDEX} lists",
            hint="keep the one that is meant, and move the other away",
        )
    for path in weight_files(folder):
        if damage := _damage(path):
            raise ModelLoadError(f"{path} {damage}", hint="fetch or copy this file again")
    return folder


def _damage(path: Path) -> str:
    """What is wrong with a file of safetensors by its header, which says how long the file is; empty: nothing."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= size - 8 else b""
    try:
        places = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        whole = 8 + length + max(places, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "is cut off, or no safetensors file"
    return "" if size == whole else f"has {size:,} bytes where its header tells of {whole:,}: it was not copied whole"


def _require_configuration(folder: Path) -> None:
    if folder.is_file():
        hint = "name the folder that holds it"
        if folder.suffix == ".gguf":
            hint = "GGUF is a format for answering: name the model that it was made from"
        raise ModelLoadError(f"{folder} is a file, no model directory", hint=hint)
    has_config, has_adapter = ((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    if has_config and has_adapter:
        hint = "move adapter_config.json and adapter_model.safetensors away"
        raise ModelLoadError(f"{folder} holds an adapter beside the model", hint=hint)
    if has_adapter:
        base = settings_of(folder, "adapter_config.json").get("base_model_name_or_path") or "unknown"
        ours = (folder.parent / "run.json").is_file()
        hint = f"`backprop fork {folder.parent}` starts from it" if ours else f"name its base, {base}"
        raise ModelLoadError(f"{folder} is an adapter for the model {base}, not a model", hint=hint)
    if (folder / "run.json").is_file():
        hint = f"`backprop fork {folder}` starts from its weights"
        raise ModelLoadError(f"{folder} is the directory of a run, not a model", hint=hint)
    if not has_config:
        raise ModelLoadError(f"{folder} has no config.json, so it is no model directory", hint="name the folder itself")


def weight_files(folder: Path) -> list[Path]:
    """The weights of the model in ``folder``, which is whole, without others beside them: some bring a second set."""
    single, listed = folder / SINGLE, sorted(_listed_weights(folder))
    return [single] if single.is_file() else [folder / name for name in listed]


_POINTER = b"version https://git-lfs"


def settings_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A model's configuration.

    Raises:
        ModelLoadError: it cannot be read; the file is named.
    """
    try:
        return read_json(folder / name, dict[str, Any])
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder / name} cannot be read: {error}", hint="fetch or copy it again") from error


def _listed_weights(folder: Path) -> set[str]:
    """The files of weights that the index lists, or the single one where there is no index."""
    if not (folder / INDEX).is_file():
        return {SINGLE}
    places = settings_of(folder, INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelLoadError(f"{folder / INDEX} does not say where which tensor is", hint="fetch or copy it again")
    return set(places.values())


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
    return all((folder / name).is_file() for name in ("config.json", "tokenizer.json", *_listed_weights(folder)))
