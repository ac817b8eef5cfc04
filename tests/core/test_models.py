"""One answer to where a model's files are, for everybody who asks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from backprop.core import paths
from backprop.core.errors import ModelLoadError
from backprop.core.models import find_model, find_tokenizer, repository_of, weight_files
from huggingface_hub import constants

NAME = "somebody/a-model"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of ``NAME`` in the Hugging Face cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--somebody--a-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    folder = repository / "snapshots" / "abc"
    folder.mkdir(parents=True)
    return folder


EMPTY = (2).to_bytes(8, "little") + b"{}"
"""Weights without a tensor."""


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(EMPTY if name.endswith(".safetensors") else b"{}")


def test_a_name_that_is_nothing_is_refused_with_the_presets() -> None:
    for ask in (find_model, find_tokenizer, repository_of):
        with pytest.raises(ModelLoadError, match="no preset, no directory and no Hugging Face name") as caught:
            ask("no-such-model")
        assert "smollm2-135m" in caught.value.hint


def test_a_copy_that_lacks_a_part_of_its_weights_is_not_whole(snapshot: Path) -> None:
    assert find_model(NAME) is None
    write(snapshot, "config.json", "tokenizer.json", "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert find_model(NAME) is None
    assert find_tokenizer(NAME) == snapshot
    write(snapshot, "model-00002-of-00002.safetensors")
    assert find_model(NAME) == snapshot


def test_a_directory_is_taken_as_it_is_and_pickled_weights_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer.json")
    assert find_tokenizer(str(tmp_path)) == tmp_path
    with pytest.raises(ModelLoadError, match="is no model directory"):
        find_model(str(tmp_path))
    write(tmp_path, "config.json", "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"no \.safetensors weights"):
        find_model(str(tmp_path))
    write(tmp_path, "model.safetensors")
    assert find_model(str(tmp_path)) == tmp_path


MODEL = ("config.json", "model.safetensors")
INDEX = "model.safetensors.index.json"


def pointer(folder: Path) -> None:
    write(folder, "config.json")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n")


def two_sets(folder: Path) -> None:
    write(folder, *MODEL, "a.safetensors", "b.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))


def half_of_them(folder: Path) -> None:
    two_sets(folder)
    for name in ("b.safetensors", "model.safetensors"):
        (folder / name).unlink()


def half_a_file(folder: Path) -> None:
    write(folder, "config.json", "a.safetensors")
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (folder / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(7))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}))


def half_a_header(folder: Path) -> None:
    write(folder, *MODEL)
    (folder / "model.safetensors").write_bytes(EMPTY[:-1])


def index_of(places: Any) -> Any:
    def make(folder: Path) -> None:
        write(folder, "config.json", "a.safetensors")
        (folder.parent / "outside.safetensors").write_text("{}")
        (folder / INDEX).write_text(json.dumps({"weight_map": places}))

    return make


def a_pipe(folder: Path) -> None:
    write(folder, *MODEL)
    os.mkfifo(folder / "tokenizer_config.json")


def an_adapter(folder: Path) -> None:
    write(folder, "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))


def a_runs_adapter(folder: Path) -> None:
    an_adapter(folder)
    write(folder.parent, "run.json")


@pytest.mark.parametrize(
    ("make", "said", "hint"),
    [
        (lambda folder: write(folder, *MODEL, "adapter_config.json"), "an adapter beside the model", "move adapter_"),
        (an_adapter, "is an adapter for the model owner/base", "name its base, owner/base"),
        (a_runs_adapter, "is an adapter for the model owner/base", "`backprop fork "),
        (lambda folder: write(folder, "run.json"), "the directory of a run", "`backprop fork "),
        (pointer, "model.safetensors is a Git LFS pointer", "lfs pull"),
        (two_sets, "two sets of weights: model.safetensors, and 2 others", "keep the one"),
        (half_of_them, "lacks 1 of its files of weights, the first of them 'b.safetensors'", "copy the model again"),
        (half_a_file, r"b\.safetensors has \d+ bytes where its header tells of \d+", "copy this file again"),
        (half_a_header, r"model\.safetensors is cut off", "copy this file again"),
        (index_of({"x": "../outside.safetensors"}), "lacks 1 of its files .* '../outside.safetensors'", ""),
        (index_of({"x": ["a.safetensors"]}), "index.json does not say where", "copy it again"),
        (index_of([]), "index.json does not say where", "copy it again"),
        (a_pipe, "tokenizer_config.json cannot be read: it is a named pipe", ""),
        (lambda folder: (write(folder, *MODEL), (folder / "config.json").write_text('{"a')), "config.json cannot", ""),
        (lambda folder: (folder.parent / "model").write_bytes(b"GGUF"), "is a file", "name the folder"),
    ],
    ids=[
        "stray adapter",
        "adapter",
        "adapter of a run",
        "run",
        "LFS",
        "two sets",
        "half",
        "half a file",
        "half a header",
        "outside",
        "list",
        "no map",
        "pipe",
        "torn",
        "file",
    ],
)
def test_what_is_no_model_is_refused_as_what_it_is(make: Any, said: str, hint: str, tmp_path: Path) -> None:
    make(tmp_path / "model")
    with pytest.raises(ModelLoadError, match=said) as caught:
        find_model(str(tmp_path / "model"))
    assert hint in caught.value.hint


def test_an_index_of_files_that_are_not_there_is_no_second_set(tmp_path: Path) -> None:
    two_sets(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert find_model(str(tmp_path)) == tmp_path
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_other_weights_beside_those_of_the_index_are_not_the_models(tmp_path: Path) -> None:
    two_sets(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    assert weight_files(find_model(str(tmp_path)) or tmp_path) == [tmp_path / f"{name}.safetensors" for name in "ab"]


def test_a_directory_that_is_gone_and_the_address_of_a_model_are_understood() -> None:
    with pytest.raises(ModelLoadError, match="there is no model directory /gone/model") as caught:
        find_model("/gone/model")
    assert "take --model NEW_PATH" in caught.value.hint
    assert repository_of("https://huggingface.co/somebody/a-model") == "somebody/a-model"


def test_a_preset_is_looked_for_under_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert repository_of("qwen2.5-7b") == "Qwen/Qwen2.5-7B-Instruct"
    with pytest.raises(ModelLoadError, match="the tokenizer of qwen"):
        find_tokenizer("qwen2.5-7b")
    with pytest.raises(ModelLoadError, match="not on this machine") as caught:
        find_tokenizer("smollm2-135m")
    assert "backprop demo" in caught.value.hint
    write(paths.model_cache("smollm2-135m"), "tokenizer.json")
    assert find_tokenizer("smollm2-135m") == paths.model_cache("smollm2-135m")
