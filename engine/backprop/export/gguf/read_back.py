"""The tensors of a GGUF file against the weights they were made from, by rules that the writer does not share.

Names go through the ``gguf`` package's own table. What llama.cpp stores otherwise than transformers does (rotated rows
interleaved, norms with their 1, recurrent heads in another order) is written down here a second time, as places and
values, so that a mistake of the writer is not made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFReader, ReaderTensor, get_tensor_name_map
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from numpy.typing import NDArray

from backprop.core.errors import GGUFError
from backprop.export.gguf.tokenization import value
from backprop.export.weights import Weights, row_pieces, taken, widened

Array = NDArray[np.float32]
ERRORS: dict[Kind, float] = {
    **{Kind.F32: 1e-6, Kind.F16: 1e-3, Kind.BF16: 6e-3, Kind.Q8_0: 0.03, Kind.Q6_K: 0.08},
    **{Kind.Q5_K: 0.15, Kind.Q5_1: 0.15, Kind.Q5_0: 0.15, Kind.Q4_K: 0.25, Kind.Q4_0: 0.25, Kind.Q3_K: 0.4},
    Kind.Q2_K: 0.6,
}
"""Largest error of a tensor, as a part of its own size (root of mean squares): about twice what rounding does to
weights of any distribution. Another tensor in its place, or rows in another order, are off by 1.4."""
_A_ROW, _ANY_ROW = 2.0, 0.95
"""A single row may be off by twice as much, but never as far as one that is missing."""
_SMALLEST = {Kind.F32: 0.0, Kind.BF16: 0.0, Kind.F16: 1e-7}
"""Values below which a type holds nothing; quantised types keep their scales in 16 bits."""
_NOT_LANGUAGE = ("vision", "visual", "multi_modal_projector", "mtp.", "rotary_emb.", "audio")
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the writer makes from the configuration."""


def compare_tensors(
    file: GGUFReader, weights: Weights, config: dict[str, Any], read_one: Callable[[], object]
) -> tuple[list[str], str]:
    """What is wrong, in words, and what was compared.

    Args:
        config: the model's ``config.json``.
        read_one: called after each tensor.

    Raises:
        GGUFError: the file is of an architecture that ``gguf`` does not know.
    """
    stored = {tensor.name: tensor for tensor in file.tensors}
    wanted = _places(file, weights, stored)
    wrong = [f"{name} has no place in the file" for name, place in wanted if place is None]
    known = {place for _, place in wanted}
    wrong += [f"{name} is in the file and not in the model" for name in stored if name not in known | set(_COMPUTED)]
    made = list(transforms(value(file, "general.architecture"), config))
    worst = (0.0, "", Kind.F32)
    for name, place in wanted:
        if place is None:
            continue
        if place not in stored:
            wrong.append(f"{place} is missing")
            continue
        tensor, expected = stored[place], weights.shape(name)
        read: Callable[..., NDArray[Any]] = partial(taken, weights, name, tensor.tensor_type.name)
        if changes := [change for ends, change in made if name.endswith(ends)]:
            whole = read()
            for change in changes:
                whole = change(whole)
            expected, read = whole.shape, whole.__getitem__
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if shape != expected:
            wrong.append(f"{place} has the shape {shape}, not {expected}")
            continue
        error, row = _error(tensor, shape, read)
        read_one()
        worst = max(worst, (error, place, tensor.tensor_type))
        limit = ERRORS[tensor.tensor_type]
        if not error <= limit or not row <= min(limit * _A_ROW, _ANY_ROW):
            kind = tensor.tensor_type.name.lower()
            wrong.append(
                f"{place} ({kind}) is off by {error:.3g} of its size, one row by {row:.3g}: more than rounding"
            )
    error, at, coarsest = worst
    return wrong, f"{len(wanted)} tensors, the largest error {error:.2%} of its size ({at}, {coarsest.name.lower()})"


def _places(file: GGUFReader, weights: Weights, stored: dict[str, ReaderTensor]) -> list[tuple[str, str | None]]:
    """Each tensor of the model with its name in the file."""
    name = value(file, "general.architecture")
    arch = next((arch for arch, known in MODEL_ARCH_NAMES.items() if known == name), None)
    if arch is None:
        raise GGUFError(f"the file is of the architecture {name!r}, which is not known")
    names = get_tensor_name_map(arch, int(value(file, f"{name}.block_count", 0)))

    def place(tensor: str) -> str | None:
        plain = tensor.replace("language_model.", "").replace(".dt_bias", ".dt_proj.bias")
        found = names.get_name(plain, (".weight", ".bias"))
        if found == "output.weight" and found not in stored:
            return "token_embd.weight"
        return found

    return [(each, place(each)) for each in weights.names() if not any(part in each for part in _NOT_LANGUAGE)]


def transforms(arch: str, config: dict[str, Any]) -> list[tuple[str | tuple[str, ...], Callable[[Array], Array]]]:
    """What the file has instead of the model's own tensor, by the ending of the model's name."""
    text = config.get("text_config") or config
    heads = int(text["num_attention_heads"])
    kv_heads = int(text.get("num_key_value_heads") or heads)
    if arch in ("llama", "smollm3"):
        return [
            (("q_proj.weight", "q_proj.bias"), lambda array: array[_interleaved(len(array), heads)]),
            (("k_proj.weight", "k_proj.bias"), lambda array: array[_interleaved(len(array), kv_heads)]),
        ]
    if arch in ("gemma2", "gemma3"):
        return [("norm.weight", lambda array: array + np.float32(1))]
    if arch == "qwen35":
        return list(_recurrent(text))
    return []


def _interleaved(rows: int, heads: int) -> NDArray[np.intp]:
    """For each row of a projection in the file the model's: what rotation pairs, half a head apart, are neighbours."""
    width = rows // heads
    head, within = np.divmod(np.arange(rows), width)
    rows_of_model: NDArray[np.intp] = head * width + within % 2 * (width // 2) + within // 2
    return rows_of_model


def _recurrent(text: dict[str, Any]) -> Iterator[tuple[str | tuple[str, ...], Callable[[Array], Array]]]:
    """Qwen 3.5's recurrent layers: value heads in the order of their place within a key head, decay as it is used."""
    keys, values = int(text["linear_num_key_heads"]), int(text["linear_num_value_heads"])
    fused = 2 * keys * int(text["linear_key_head_dim"])

    def order(width: int, before: int = 0) -> NDArray[np.intp]:
        head, within = np.divmod(np.arange(values * width), width)
        model_head = head % keys * (values // keys) + head // keys
        return np.concatenate([np.arange(before), before + model_head * width + within])

    wide = int(text["linear_value_head_dim"])
    one_more = ("input_layernorm.weight", "post_attention_layernorm.weight", "q_norm.weight", "k_norm.weight")
    yield (*one_more, "model.norm.weight"), lambda array: array + np.float32(1)
    yield ("in_proj_b.weight", "in_proj_a.weight", "dt_bias"), lambda array: array[order(1)]
    yield "A_log", lambda array: -np.exp(array[order(1)])
    yield "in_proj_z.weight", lambda array: array[order(wide)]
    yield "in_proj_qkv.weight", lambda array: array[order(wide, fused)]
    yield "conv1d.weight", lambda array: array.reshape(len(array), -1)[order(wide, fused)]
    yield "linear_attn.out_proj.weight", lambda array: array[:, order(wide)]


def _error(
    tensor: ReaderTensor, shape: tuple[int, ...], expected: Callable[[slice], NDArray[Any]]
) -> tuple[float, float]:
    """The error of the whole tensor and of its worst row, each as a part of its size; infinite if it is no number.

    Args:
        expected: gives rows in float32, or in the tensor's type where the model's own are copied.
    """
    kind, data = tensor.tensor_type, tensor.data.reshape(shape[0], -1)
    smallest = _SMALLEST.get(kind, 1e-5) * shape[-1] ** 0.5
    off = size = worst = 0.0
    for rows in row_pieces(shape):
        array, written = expected(rows), data[rows]
        if array.dtype != np.float32 and array.tobytes() == written.tobytes():
            continue
        if len(shape) == 1:
            written = written.reshape(1, -1)
        part = widened(array).reshape(len(written), -1).astype(np.float64)
        read = np.asarray(dequantize(written, kind), np.float64)
        # What the type cannot hold at all is not counted.
        row = np.maximum(np.sqrt(((read - part) ** 2).sum(1)) - smallest, 0)
        whole = np.sqrt((part**2).sum(1))
        if not np.isfinite(row).all():
            return np.inf, np.inf
        worst = max(worst, float((row / np.maximum(whole, 1e-30)).max()))
        off, size = off + float((row**2).sum()), size + float((whole**2).sum())
    return (off / max(size, 1e-60)) ** 0.5, worst
