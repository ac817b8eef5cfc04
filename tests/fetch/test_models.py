"""Fetching from the hub, with the two calls into its client played: there is no hub in a test."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from backprop.core.errors import ModelLoadError
from backprop.core.events import ModelLoading
from backprop.fetch import models
from huggingface_hub.errors import GatedRepoError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

NAME = "somebody/a-model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "LOOK_SECONDS", 0.01)
    files = [SimpleNamespace(rfilename="model.safetensors", size=100), SimpleNamespace(rfilename="a.bin", size=900)]
    monkeypatch.setattr(models.HfApi, "model_info", lambda self, name, files_metadata: SimpleNamespace(siblings=files))
    return tmp_path


def refused(kind: type[Exception]) -> Any:
    def snapshot(name: str, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        raise kind.__new__(kind)  # its constructor wants the answer of a server

    return snapshot


@pytest.mark.parametrize(
    ("kind", "words", "hint"),
    [(GatedRepoError, "accept a licence", "HF_TOKEN"), (RepositoryNotFoundError, "no such model", "check the name")],
)
def test_a_refusal_says_which_it_is(
    cache: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], words: str, hint: str
) -> None:
    monkeypatch.setattr(models, "snapshot_download", refused(kind))

    with pytest.raises(ModelLoadError, match=words) as caught:
        models.fetch(NAME, lambda event: None)
    assert hint in caught.value.hint


def test_without_a_network_the_hub_cannot_be_reached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(api: Any, name: str, files_metadata: bool) -> Any:
        raise HTTPError("no such host")

    monkeypatch.setattr(models, "snapshot_download", refused(LocalEntryNotFoundError))
    monkeypatch.setattr(models.HfApi, "model_info", look_up)

    with pytest.raises(ModelLoadError, match="cannot be reached") as caught:
        models.fetch(NAME, lambda event: None)
    assert caught.value.code == "DEP_MODEL_DOWNLOAD_FAILED"
    assert caught.value.retryable


def test_the_bytes_that_arrived_are_reported_against_those_that_are_wanted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = cache / "models--somebody--a-model" / "blobs"
    blobs.mkdir(parents=True)
    half_seen = threading.Event()

    def snapshot(name: str, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        (blobs / "weights.incomplete").write_bytes(b"x" * 50)
        assert half_seen.wait(20)
        return str(cache)

    def emit(event: Any) -> None:
        if isinstance(event, ModelLoading) and (event.done, event.total) == (50, 100):
            half_seen.set()

    monkeypatch.setattr(models, "snapshot_download", snapshot)

    assert models.fetch(NAME, emit) == cache
    assert half_seen.is_set()


def test_a_whole_copy_in_the_cache_asks_nobody(cache: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, local_files_only: bool = False, **options: Any) -> str:
        asked.append(local_files_only)
        return str(tiny_model)

    monkeypatch.setattr(models, "snapshot_download", snapshot)

    assert models.fetch(NAME, lambda event: pytest.fail("nothing is fetched")) == tiny_model
    assert asked == [True]


def test_a_copy_that_lacks_a_part_of_its_weights_is_not_whole(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    monkeypatch.setattr(models, "snapshot_download", lambda name, local_files_only=False, **options: str(tmp_path))

    assert models.in_cache(NAME) is None
    (tmp_path / "model-00002-of-00002.safetensors").write_text("")
    assert models.in_cache(NAME) == tmp_path
