"""The model that a person named, fetched where its files are not on this machine yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from backprop.core.errors import ModelLoadError
from backprop.core.events import ModelLoading
from backprop.core.models import find_model, repository_of, require_weights
from backprop.core.presets import EMBEDDED_MODEL
from backprop.fetch import embedded, hub

WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.py", "merges.txt", "vocab.txt", "LICENSE*"]
"""Code that a model brings too, which is run only where it is trusted."""
UNWANTED = ["original/*", "onnx/*", "consolidated*"]
Emit = Callable[[ModelLoading], None]


def fetch_model(name: str, emit: Emit) -> Path:
    """The directory with the files of ``name``: a preset, a local directory, or a Hugging Face name.

    A whole copy on this machine is used as it is: nobody is asked whether there is a newer one.

    Raises:
        ModelLoadError: there is no such model, or it cannot be fetched.
    """
    found = find_model(name)
    if found is not None:
        return found
    return embedded.ensure(emit) if name == EMBEDDED_MODEL else require_weights(_fetch(repository_of(name), emit))


def _fetch(repository: str, emit: Emit) -> Path:
    """Directory of ``repository`` in the Hugging Face cache, downloaded where it is missing.

    Raises:
        ModelLoadError: ``DEP_MODEL_DOWNLOAD_FAILED``, saying whether it is missing, gated, offline or broken off.
    """

    def failed(why: str, hint: str, unknown: bool) -> ModelLoadError:
        return ModelLoadError(
            f"{repository} could not be fetched: {why}",
            hint=f"{hint}; or use the small model: --model {EMBEDDED_MODEL}",
            code="DEP_MODEL_DOWNLOAD_FAILED",
            retryable=True,
        )

    def progress(done: int, total: int) -> None:
        emit(ModelLoading(model=repository, stage="download", done=done, total=total))

    progress(0, 0)
    with hub.refusals(repository, "model", failed):
        info = HfApi().model_info(repository, files_metadata=True)
        return hub.download(repository, info.siblings or [], WANTED, progress, ignore_patterns=UNWANTED)
