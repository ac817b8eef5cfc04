"""Where things are kept when the usual place cannot be used."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from backprop.core import paths
from backprop.core.errors import InputError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paths.temporary_folder.cache_clear()
    yield tmp_path
    paths.temporary_folder.cache_clear()


def test_without_a_home_the_cache_is_a_folder_of_this_user_alone(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert temporary not in paths.cache_dir().parents
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/dev/null")
    cache = paths.cache_dir()
    assert cache == temporary / f"backprop-{os.getuid()}"
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_cache_that_others_can_fill_is_not_used(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = temporary / f"backprop-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/dev/null")
    assert paths.cache_dir() != planted
    assert paths.cache_dir() == paths.cache_dir()


def test_the_home_of_nobody_is_said() -> None:
    with pytest.raises(InputError, match="~nobody-at-all"):
        paths.expand("~nobody-at-all/rows.jsonl")
