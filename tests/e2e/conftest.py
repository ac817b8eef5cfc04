from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from place import Place


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Iterator[Place]:
    made = Place(tmp_path, tiny_model)
    yield made
    made.kill_engines()
