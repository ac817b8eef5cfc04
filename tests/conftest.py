"""Every test gets its own home, and a machine that chooses as every other one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pinned_machine
import pytest
from forked_engines import EngineHost
from small_hub import Hub, small_hub
from tiny_language_model import write_model

pinned_machine.pin_environment()


def pytest_unconfigure() -> None:
    pinned_machine.clean_up()


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Home, cache, data and settings directories of this test alone: it reads and writes nothing of the person's."""
    home = tmp_path_factory.mktemp("home")
    # A patch of its own: a test that undoes its patches stays at home.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in ("CACHE", "DATA", "CONFIG", "STATE"):
            patch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
        patch.delenv("HF_HOME")
        yield home


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a language model of two layers with a tokenizer of its own."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def engine_host() -> Iterator[EngineHost]:
    """Where the engines of many tests are forked from, so that each has what it imports at once."""
    with EngineHost() as host:
        yield host


@pytest.fixture(scope="module")
def shared_start(engine_host: EngineHost) -> Iterator[None]:
    """Engines, jobs and followers that the tests of a file start are forked from ``engine_host``."""
    with engine_host.in_use():
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in of the Hugging Face Hub, which this test and its engines take for the real one."""
    with small_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield hub
