"""Weights of a model on disk, read one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from backprop.core.errors import ExportError, ModelLoadError
from backprop.export.weights import StoredWeights, as_stored, row_pieces


def write(path: Path, dtype: str, shape: list[int], content: bytes) -> Path:
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)
    return path


@pytest.mark.parametrize(("dtype", "stored"), [("F32", "<f4"), ("F16", "<f2"), ("BF16", "<u2")])
def test_a_tensor_that_is_read_in_pieces_is_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, stored: str
) -> None:
    monkeypatch.setattr("backprop.export.weights._PIECE", 4)
    numbers = np.array([[1.5, -2.0, 0.25], [3.0, -0.5, 8.0], [-1.0, 0.0, 64.0]], np.float32)
    raw = (numbers.view("<u4") >> 16).astype("<u2") if dtype == "BF16" else numbers.astype(stored)

    weights = StoredWeights([write(tmp_path / "w.safetensors", dtype, [3, 3], raw.tobytes())])
    pieces = list(row_pieces((3, 3)))

    assert len(pieces) == 3
    for found in (weights.read("w"), np.concatenate([weights.read("w", rows) for rows in pieces])):
        np.testing.assert_array_equal(found, numbers)
        assert found.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([weights.stored("w", rows) for rows in pieces]), raw)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_what_is_copied_as_it_is_stored_is_finite(tmp_path: Path, dtype: str) -> None:
    bits = np.array([[0, 0x3C00], [0xBC00, 0x7BFF if dtype == "F16" else 0x7F7F]], "<u2")
    copied = {"F16": bits.view("<f2"), "BF16": bits}[dtype]
    assert as_stored("w", copied, dtype).tobytes() == bits.tobytes()
    for wrong in (0x7F80, 0xFF80, 0xFFFF):  # infinite, or no number, in both types
        bits[1, 0] = wrong
        with pytest.raises(ExportError, match="w holds values that are not finite"):
            as_stored("w", copied, dtype)


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
