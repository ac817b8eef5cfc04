"""Fetching a model that a person named from the Hugging Face Hub."""

from __future__ import annotations

import fnmatch
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from backprop.core.errors import ModelLoadError
from backprop.core.events import Event, ModelLoading

WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt", "LICENSE*"]
UNWANTED = ["original/*", "onnx/*", "consolidated*"]
LOOK_SECONDS = 0.5


def fetch(repository: str, emit: Callable[[Event], None]) -> Path:
    """Directory of ``repository`` (``owner/name``) in the Hugging Face cache, downloaded where it is missing.

    A copy in the cache that is whole is used as it is: nobody is asked whether there is a newer one. With
    ``HF_HUB_OFFLINE=1`` only the cache is looked at.

    Raises:
        ModelLoadError: ``DEP_MODEL_DOWNLOAD_FAILED``, saying whether it is missing, gated, offline or broken off.
    """
    cached = in_cache(repository)
    if cached is not None:
        return cached
    emit(ModelLoading(model=repository, stage="download"))
    try:
        total = _bytes_to_fetch(repository)
        download: Future[str] = Future()
        # A daemon: whoever wants out does not wait for the rest of a download.
        threading.Thread(target=_download, args=(repository, download), name="download", daemon=True).start()
        while wait([download], timeout=LOOK_SECONDS).not_done:
            done = min(_bytes_in_cache(repository), total) if total else _bytes_in_cache(repository)
            emit(ModelLoading(model=repository, stage="download", done=done, total=total))
        return Path(download.result())
    except GatedRepoError as error:
        raise _failed(
            repository,
            "its owner asks people to accept a licence first",
            f"accept it at https://huggingface.co/{repository}, then set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise _failed(
            repository, "there is no such model, or it is private", "check the name; HF_TOKEN gives access to your own"
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise _failed(
            repository,
            "it is not in the local cache and the hub cannot be reached",
            "check the network and HF_HUB_OFFLINE, or use the small model: --model smollm2-135m",
        ) from error
    except HfHubHTTPError as error:
        raise _failed(repository, str(error), "try again: what was fetched so far is kept") from error
    except HTTPError as error:  # of the client's own library: no connection, no name server, a timeout
        raise _failed(
            repository, f"the hub cannot be reached ({error})", "check the network, then try again"
        ) from error
    except OSError as error:
        raise _failed(repository, str(error), "try again: what was fetched so far is kept") from error


def in_cache(repository: str) -> Path | None:
    """The cached copy of ``repository`` if all its weights and its tokenizer are there. Opens no socket."""
    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weights = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        weights = {"model.safetensors"}
    wanted = {"config.json", "tokenizer.json", *weights}
    return folder if all((folder / name).is_file() for name in wanted) else None


def _download(repository: str, result: Future[str]) -> None:
    try:
        result.set_result(snapshot_download(repository, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except BaseException as error:  # raised where it is waited for
        result.set_exception(error)


def _bytes_to_fetch(repository: str) -> int:
    files = HfApi().model_info(repository, files_metadata=True).siblings or []
    return sum(file.size or 0 for file in files if _is_wanted(file.rfilename))


def _is_wanted(name: str) -> bool:
    def fits(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    return fits(WANTED) and not fits(UNWANTED)


def _bytes_in_cache(repository: str) -> int:
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    total = 0
    for path in blobs.glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # an unfinished file was renamed meanwhile
            continue
    return total


def _failed(repository: str, why: str, hint: str) -> ModelLoadError:
    return ModelLoadError(
        f"{repository} could not be fetched: {why}", hint=hint, code="DEP_MODEL_DOWNLOAD_FAILED", retryable=True
    )
