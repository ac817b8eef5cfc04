"""Types and rows of quantised tensors. The expected types are what llama.cpp's quantiser wrote for such models
(``benchmarks/gguf_quantize.py`` compares all of them, byte by byte, where llama.cpp is installed)."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from backprop.core.architecture import Architecture
from backprop.core.errors import ExportError
from backprop.core.exports import PRECISIONS
from backprop.export.gguf.quantize import MIXTURES, fallback_notes, predicted_bytes, quantize, tensor_bytes, tensor_type
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

LLAMA = Architecture("llama", 32, 512, 1024, 8, 2, 64, 640, False)
NARROW = Architecture("llama", 30, 576, 1536, 9, 3, 64, 49152, True)
WIDE = (512, 512)


def kinds(part: str, precision: str, model: Architecture = LLAMA) -> dict[int, str]:
    """The layers in which the part has another type than in the last but one, with it and layer -1 for the usual."""
    found = [tensor_type(f"blk.{n}.{part}.weight", WIDE, precision, model).name for n in range(model.layers)]
    usual = min(set(found), key=lambda kind: (-found.count(kind), kind))
    return {-1: usual} | {n: kind for n, kind in enumerate(found) if kind != usual}


def test_every_precision_of_the_product_has_its_mixture() -> None:
    assert list(MIXTURES) == list(PRECISIONS)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("output_norm.weight", (512,)),
        ("blk.0.attn_q.bias", (512,)),
        ("blk.0.attn_q_norm.weight", (64,)),
        ("rope_freqs.weight", (32,)),
        ("blk.0.ssm_conv1d.weight", (512, 4)),
    ],
)
def test_vectors_and_what_is_tiny_stay_exact(name: str, shape: tuple[int, ...], precision: str) -> None:
    assert tensor_type(name, shape, precision, LLAMA) == T.F32


def test_q4_k_m_stores_values_and_down_better_at_both_ends_and_in_every_third_layer() -> None:
    better = dict.fromkeys((*range(4), *range(6, 28, 3), *range(28, 32)), "Q6_K")
    assert kinds("attn_v", "q4_k_m") == {-1: "Q4_K"} | better
    assert kinds("ffn_down", "q4_k_m") == {-1: "Q4_K"} | better
    assert kinds("attn_output", "q4_k_m") == {-1: "Q4_K"}


@pytest.mark.parametrize(
    ("precision", "part", "wanted"),
    [
        ("q4_k_s", "attn_v", {-1: "Q4_K"} | dict.fromkeys(range(4), "Q5_K")),
        ("q4_k_s", "ffn_down", {-1: "Q4_K"} | dict.fromkeys(range(4), "Q5_K")),
        ("q3_k_m", "attn_v", {-1: "Q4_K", 0: "Q5_K", 1: "Q5_K"}),
        ("q3_k_m", "ffn_down", {-1: "Q4_K", 0: "Q5_K", 1: "Q5_K"}),
        ("q3_k_m", "attn_output", {-1: "Q4_K"}),
        ("q3_k_m", "ffn_up", {-1: "Q3_K"}),
        ("q2_k", "attn_v", {-1: "Q4_K"}),
        ("q2_k", "ffn_down", {-1: "Q3_K"}),
        ("q2_k", "attn_output", {-1: "Q3_K"}),
        ("q2_k", "attn_k", {-1: "Q2_K"}),
        ("q5_k_s", "attn_v", {-1: "Q5_K"}),
        ("q4_0", "ffn_down", {-1: "Q4_0"}),
        ("q8_0", "attn_v", {-1: "Q8_0"}),
        ("bf16", "ffn_down", {-1: "BF16"}),
    ],
)
def test_the_parts_of_other_precisions(precision: str, part: str, wanted: dict[int, str]) -> None:
    assert kinds(part, precision) == wanted


def test_values_that_few_heads_share_are_stored_better() -> None:
    own = Architecture("llama", 4, 512, 1024, 8, 4, 64, 640, False)
    assert kinds("attn_v", "q2_k", own) == {-1: "Q3_K"}
    large = Architecture("llama", 80, 512, 1024, 8, 2, 64, 640, False)
    assert set(kinds("attn_v", "q4_k_m", large).values()) == {"Q5_K", "Q6_K"}
    assert kinds("attn_qkv", "q4_k_s", Architecture("phi3", 4, 512, 1024, 8, 8, 64, 640, False)) == {-1: "Q5_K"}


@pytest.mark.parametrize(
    ("precision", "tied", "embedding"),
    [("q4_k_m", False, "Q4_K"), ("q4_k_m", True, "Q6_K"), ("q8_0", True, "Q8_0"), ("q2_k", False, "Q2_K")],
)
def test_the_head_is_stored_better_and_so_is_an_embedding_that_is_the_head(
    precision: str, tied: bool, embedding: str
) -> None:
    model = Architecture("llama", 4, 512, 1024, 8, 2, 64, 640, tied)
    assert tensor_type("token_embd.weight", WIDE, precision, model).name == embedding
    head = "Q8_0" if precision == "q8_0" else "Q6_K"
    assert tensor_type("output.weight", WIDE, precision, model).name == head


@pytest.mark.parametrize(
    ("precision", "row", "wanted"),
    [
        ("q2_k", 576, "Q4_0"),
        ("q3_k_m", 576, "Q4_0"),
        ("q4_k_m", 576, "Q5_0"),
        ("q5_k_m", 576, "Q5_1"),
        ("q6_k", 576, "Q8_0"),
        ("q8_0", 576, "Q8_0"),
        ("q4_k_m", 80, "F16"),
        ("q8_0", 80, "F16"),
    ],
)
def test_rows_that_the_type_cannot_hold_get_a_wider_one(precision: str, row: int, wanted: str) -> None:
    assert tensor_type("blk.1.attn_k.weight", (64, row), precision, NARROW).name == wanted


def test_such_tensors_are_counted_and_said() -> None:
    shapes = {"blk.1.attn_k.weight": (192, 576), "blk.0.ffn_down.weight": (576, 1536), "output_norm.weight": (576,)}
    assert fallback_notes(shapes, "q4_k_m", NARROW) == [
        "1 of 3 tensors have rows that q4_k_m cannot hold and are stored in a wider type (1 as q5_0): "
        "the file is larger than q4_k_m usually is"
    ]
    assert fallback_notes(shapes, "f16", NARROW) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_are_of_the_predicted_size_and_near_the_weights(precision: str) -> None:
    array = np.random.default_rng(0).standard_normal((4, 512), np.float32)
    kind = MIXTURES[precision].most
    rows = quantize(array, kind, "w")
    assert rows.nbytes == tensor_bytes(array.shape, kind)
    error = np.abs(dequantize(rows.view(np.uint8), kind) - array).max()
    assert error <= {"f32": 0, "f16": 2e-3, "bf16": 2e-2, "q8_0": 2e-2, "q6_k": 0.1}.get(precision, 0.9)


def test_bf16_rounds_to_the_nearest_and_to_even_in_the_middle() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x00018000, 0xBF818000], np.uint32)
    assert quantize(bits.view(np.float32), T.BF16, "w").view(np.uint16).tolist() == [
        *(0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x0002, 0xBF82),
    ]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [T.F32, T.BF16, T.Q4_K])
def test_a_weight_that_is_no_number_is_refused_by_name(wrong: float, kind: T) -> None:
    array = np.zeros((2, 256), np.float32)
    array[1, 7] = wrong
    with pytest.raises(ExportError, match=r"blk\.0\.attn_q\.weight holds values that are not finite"):
        quantize(array, kind, "blk.0.attn_q.weight")


def test_a_weight_too_large_for_float16_is_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"output\.weight holds 7e\+04, which is more than F16 holds"):
        quantize(np.full((1, 256), -70000.0, np.float32), T.F16, "output.weight")


def test_the_size_of_all_tensors_is_known_before(tmp_path) -> None:
    shapes = {"token_embd.weight": (5, 256), "blk.0.ffn_down.weight": (3, 288), "output_norm.weight": (7,)}
    model = Architecture("llama", 1, 256, 288, 4, 2, 64, 5, True)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for name, shape in shapes.items():
        kind = tensor_type(name, shape, "q4_k_m", model)
        writer.add_tensor(name, quantize(np.zeros(shape, np.float32), kind, name), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert predicted_bytes(shapes, "q4_k_m", model) == (tmp_path / "a.gguf").stat().st_size - reader.data_offset
