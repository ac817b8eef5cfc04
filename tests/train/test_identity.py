"""A run is continued only with the model, data and settings that it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from backprop.core.settings import RunConfig
from backprop.train import resume as module
from backprop.train.resume import file_hash, identity, identity_differences, library_differences

CONFIG = RunConfig(data="rows.jsonl", batch_size=2)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "merges.txt"):
        (folder / name).write_bytes(name.encode() * 100)
    return folder


def made(model_path: Path, fingerprint: str = "tokens", **settings: Any) -> dict[str, Any]:
    return identity(msgspec.structs.replace(CONFIG, **settings), model_path, fingerprint)


def test_the_same_run_has_no_differences_even_through_json(model_path: Path) -> None:
    saved = msgspec.json.decode(msgspec.json.encode(made(model_path)))
    assert identity_differences(saved, made(model_path)) == []
    assert library_differences(saved, made(model_path)) == []


def test_settings_that_reach_the_weights_are_named_with_both_values(model_path: Path) -> None:
    now = made(model_path, learning_rate=3e-4, seed=7)
    assert identity_differences(made(model_path), now) == [
        "learning_rate was 0.0002 and is 0.0003",
        "seed was 42 and is 7",
    ]


def test_settings_that_do_not_reach_the_weights_are_free(model_path: Path) -> None:
    now = made(model_path, run_name="again", output_dir="/elsewhere", sample_prompts=["Hello?"], data="moved.jsonl")
    assert identity_differences(made(model_path), now) == []


def test_changed_files_and_data_are_named(model_path: Path) -> None:
    saved = made(model_path)
    content = bytearray((model_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model_path / "model.safetensors").write_bytes(content)
    (model_path / "merges.txt").unlink()
    (model_path / "added.json").write_text("{}")
    assert identity_differences(saved, made(model_path, fingerprint="other")) == [
        "the model's file merges.txt is missing",
        "the model's file model.safetensors was changed",
        "the model's file added.json is new",
        "the data, or how it becomes tokens, was changed",
    ]


def test_a_setting_that_came_later_counts_as_its_default(model_path: Path) -> None:
    saved = made(model_path)
    del saved["config"]["packing"]
    assert identity_differences(saved, made(model_path)) == []
    assert identity_differences(saved, made(model_path, packing=False)) == ["packing was True and is False"]


def test_another_version_of_a_library_is_said_but_no_difference_of_identity(model_path: Path) -> None:
    saved = made(model_path)
    saved["libraries"]["torch"] = "2.0.0"
    saved["libraries"]["a-library-that-is-no-longer-used"] = "1.0"
    assert identity_differences(saved, made(model_path)) == []
    (told,) = library_differences(saved, made(model_path))
    assert told.startswith("torch was '2.0.0' and is ")


def test_a_large_file_is_told_apart_by_length_beginning_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE_FILE", 1000)
    path = tmp_path / "large.safetensors"
    hashes = set()
    for content in (bytes(300_000), bytes(300_001), b"\x01" + bytes(299_999), bytes(299_999) + b"\x01"):
        path.write_bytes(content)
        hashes.add(file_hash(path))
    assert len(hashes) == 4
    assert all(each.startswith("pieces:") for each in hashes)


def test_a_file_of_the_hub_cache_is_known_by_its_blobs_name(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert file_hash(link) == "sha256:" + "ab" * 32
