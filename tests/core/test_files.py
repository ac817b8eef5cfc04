"""A file or folder is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from backprop.core.files import new_folder, remove, sha256, write_file


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_file(path, b"old")

    def refuse(descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_replaces_another_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "adapter"

    def write(content: str) -> None:
        with new_folder(path) as folder:
            (folder / "weights").write_text(content)
            if content == "half":
                raise ValueError(content)

    write("first")
    write("second")
    with pytest.raises(ValueError, match="half"):
        write("half")
    assert (path / "weights").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_files_and_folders_are_removed_whole(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
