"""Fetching a model that a person named from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from backprop.core.errors import ModelLoadError
from backprop.core.events import Event, ModelLoading

WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt", "LICENSE*"]
UNWANTED = ["original/*", "onnx/*", "*.bin", "*.gguf", "consolidated*"]


def fetch(repository: str, emit: Callable[[Event], None]) -> Path:
    """Directory of ``repository`` (``owner/name``) in the Hugging Face cache, downloaded where it is missing.

    With ``HF_HUB_OFFLINE=1`` only the cache is looked at.

    Raises:
        ModelLoadError: ``DEP_MODEL_DOWNLOAD_FAILED``, saying whether it is missing, gated, offline or broken off.
    """
    emit(ModelLoading(model=repository, stage="download"))
    try:
        return Path(snapshot_download(repository, allow_patterns=WANTED, ignore_patterns=UNWANTED))
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
    except (HfHubHTTPError, OSError) as error:
        raise _failed(repository, str(error), "try again: what was fetched so far is kept") from error


def _failed(repository: str, why: str, hint: str) -> ModelLoadError:
    return ModelLoadError(
        f"{repository} could not be fetched: {why}", hint=hint, code="DEP_MODEL_DOWNLOAD_FAILED", retryable=True
    )
