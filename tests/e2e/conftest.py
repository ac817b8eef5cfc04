from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from place import Place
from tiny_language_model import write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Iterator[Place]:
    made = Place(tmp_path, tiny_model)
    yield made
    made.kill_engines()
