"""Weights of a model on disk, read one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from backprop.core.errors import ModelLoadError
from backprop.export.weights import StoredWeights


def write(path: Path, dtype: str, shape: list[int], content: bytes) -> Path:
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)
    return path


@pytest.mark.parametrize(("dtype", "stored"), [("F32", "<f4"), ("F16", "<f2"), ("BF16", "<u2")])
def test_a_tensor_that_is_read_in_pieces_is_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, stored: str
) -> None:
    monkeypatch.setattr("backprop.export.weights._PIECE", 7)
    numbers = np.array([[1.5, -2.0, 0.25], [3.0, -0.5, 8.0], [-1.0, 0.0, 64.0]], np.float32)
    raw = (numbers.view("<u4") >> 16).astype("<u2") if dtype == "BF16" else numbers.astype(stored)

    found = StoredWeights([write(tmp_path / "w.safetensors", dtype, [3, 3], raw.tobytes())]).read("w")

    np.testing.assert_array_equal(found, numbers)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    "header", [b"", b"\xff" * 7 + b"\x7f{}", b"\xff\xff\xff\xff\x07\0\0\0{}", b"\2\0\0\0\0\0\0\0[]"]
)
def test_a_header_that_lies_is_no_reason_to_read_what_it_says(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(header)
    with pytest.raises(ModelLoadError, match=r"w\.safetensors cannot be read"):
        StoredWeights([tmp_path / "w.safetensors"])


@pytest.mark.parametrize("kept", [-8, -40])
def test_a_file_that_ends_too_early_is_named_before_anything_is_written(kept: int, tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", "F32", [4, 4], bytes(64))
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ModelLoadError, match=r"w\.safetensors cannot be read"):
        StoredWeights([path])
