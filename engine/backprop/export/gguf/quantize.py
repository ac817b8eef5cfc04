"""Which tensor of a GGUF file is stored as which type, and the conversion of its rows.

The types are those that llama.cpp's own quantiser chooses when it has no importance matrix, so that a file has the
size, the speed and the quality that its precision is known for (``llama_tensor_get_type_impl`` and
``tensor_type_fallback`` in ``src/llama-quant.cpp`` of the llama.cpp that comes with llama-cpp-python 0.3.36). The rows
are ``libgguf``'s, which are llama.cpp's byte for byte and use every core.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import libgguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType
from msgspec import Struct
from numpy.typing import NDArray

from backprop.core.architecture import Architecture
from backprop.export.weights import as_stored, require_finite

_T = GGMLQuantizationType
Shape = tuple[int, ...]
Place = Callable[[int, int], bool]
"""Whether a layer, of how many, is one of those that get a better type."""


class Mixture(Struct, frozen=True):
    """A precision: the type of most tensors, and of those parts that suffer more from rounding.

    For a part the first place that holds decides.
    """

    most: GGMLQuantizationType
    values: tuple[tuple[Place, GGMLQuantizationType], ...] = ()
    down: tuple[tuple[Place, GGMLQuantizationType], ...] = ()
    output: GGMLQuantizationType | None = None


def _everywhere(layer: int, layers: int) -> bool:
    return True


def _first(count: int) -> Place:
    return lambda layer, layers: layer < count


def _first_part(of: int) -> Place:
    return lambda layer, layers: layer < layers // of


def _ends_and_every_third(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


MIXTURES: dict[str, Mixture] = {
    "f32": Mixture(_T.F32),
    "f16": Mixture(_T.F16),
    "bf16": Mixture(_T.BF16),
    "q8_0": Mixture(_T.Q8_0),
    "q6_k": Mixture(_T.Q6_K),
    "q5_k_m": Mixture(_T.Q5_K, ((_ends_and_every_third, _T.Q6_K),), ((_ends_and_every_third, _T.Q6_K),)),
    "q5_k_s": Mixture(_T.Q5_K),
    "q4_k_m": Mixture(_T.Q4_K, ((_ends_and_every_third, _T.Q6_K),), ((_ends_and_every_third, _T.Q6_K),)),
    "q4_k_s": Mixture(_T.Q4_K, ((_first(4), _T.Q5_K),), ((_first_part(8), _T.Q5_K),)),
    "q4_0": Mixture(_T.Q4_0),
    "q3_k_m": Mixture(
        _T.Q3_K,
        ((_first(2), _T.Q5_K), (_everywhere, _T.Q4_K)),
        ((_first_part(16), _T.Q5_K), (_everywhere, _T.Q4_K)),
        _T.Q4_K,
    ),
    "q2_k": Mixture(_T.Q2_K, ((_everywhere, _T.Q3_K),), ((_everywhere, _T.Q3_K),), _T.Q3_K),
}
"""One row for each word of ``core.exports.PRECISIONS``."""

_NARROWER = {_T.Q2_K: _T.Q4_0, _T.Q3_K: _T.Q4_0, _T.Q4_K: _T.Q5_0, _T.Q5_K: _T.Q5_1, _T.Q6_K: _T.Q8_0}
"""The type with blocks of 32 that stands in for one with blocks of 256."""
_STORED_EXACTLY = ("_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d.weight")
_LLAMA = ("llama", "mistral")


def tensor_type(name: str, shape: Shape, precision: str, model: Architecture) -> GGMLQuantizationType:
    """What the tensor ``name`` (as in the file) is stored as.

    Args:
        shape: as numpy has it, rows last but one.
        precision: a word of ``core.exports.PRECISIONS``.
        model: ``tied`` says that the file has no ``output.weight``.
    """
    if _stays_exact(name, shape):
        return _T.F32
    wanted = _wanted(name, precision, shape[-1], model)
    if shape[-1] % _block(wanted) == 0:
        return wanted
    narrower = _NARROWER.get(wanted, wanted)
    return narrower if shape[-1] % _block(narrower) == 0 else _T.F16


def fallback_notes(shapes: Mapping[str, Shape], precision: str, model: Architecture) -> list[str]:
    """What has to be said of tensors whose rows are no multiple of the block that the precision asks for."""
    others = [
        tensor_type(name, shape, precision, model).name.lower()
        for name, shape in shapes.items()
        if not _stays_exact(name, shape) and shape[-1] % _block(_wanted(name, precision, shape[-1], model))
    ]
    if not others:
        return []
    kinds = " and ".join(f"{others.count(kind)} as {kind}" for kind in sorted(set(others)))
    return [
        f"{len(others)} of {len(shapes)} tensors have rows that {precision} cannot hold and are stored in a wider type"
        f" ({kinds}): the file is larger than {precision} usually is"
    ]


def predicted_bytes(shapes: Mapping[str, Shape], precision: str, model: Architecture) -> int:
    """Bytes of all tensors in a file, the gaps between them included; what stands before them is not."""
    total = 0
    for name, shape in shapes.items():
        size = tensor_bytes(shape, tensor_type(name, shape, precision, model))
        total += size + -size % GGUF_DEFAULT_ALIGNMENT
    return total


def tensor_bytes(shape: Shape, kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor that is stored as ``kind``."""
    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * size


def quantize(array: NDArray[Any], kind: GGMLQuantizationType, name: str) -> NDArray[Any]:
    """The tensor as ``kind``: quantised rows of ``uint8``, with every other axis as it was.

    Args:
        array: float32, or what is stored as ``kind`` already.
        name: the tensor's, for errors.

    Raises:
        ExportError: a weight is not finite, or too large for 16 bits; ``name`` is in the message.
    """
    if kind in (_T.F32, _T.F16, _T.BF16):
        return as_stored(name, array, kind.name)
    require_finite(name, array)
    return cast(NDArray[Any], libgguf.quantize_rows(array, kind))


def _stays_exact(name: str, shape: Shape) -> bool:
    """Whether a tensor is left in 32 bits: vectors, norms and what is tiny or read element by element."""
    matrix = len(shape) > 1 and any(size > 1 for size in shape[:-1])
    return not matrix or not name.endswith(".weight") or name.endswith(_STORED_EXACTLY)


def _wanted(name: str, precision: str, row: int, model: Architecture) -> GGMLQuantizationType:
    """The type by llama.cpp's rules, before it is looked whether rows of ``row`` weights fit it."""
    mixture = MIXTURES[precision]
    most = mixture.most
    if most in (_T.F32, _T.F16, _T.BF16):
        return most
    if name == "output.weight" or (name == "token_embd.weight" and model.tied):
        if most == _T.Q8_0 or row % _block(most):
            return _T.Q8_0
        return _T.Q6_K
    found = re.match(r"blk\.(\d+)\.", name)
    layer = int(found[1]) if found else 0
    if "attn_v.weight" in name or "attn_qkv.weight" in name:
        return _values(mixture, layer, model)
    if "ffn_down" in name:
        return next((kind for place, kind in mixture.down if place(layer, model.layers)), most)
    if "attn_output.weight" in name:
        return mixture.output or most
    return most


def _values(mixture: Mixture, layer: int, model: Architecture) -> GGMLQuantizationType:
    """The values' type. Where many query heads share them they are few and matter more."""
    kind = next((kind for place, kind in mixture.values if place(layer, model.layers)), mixture.most)
    if mixture.most == _T.Q2_K and model.heads // model.kv_heads >= 4:
        kind = _T.Q4_K
    shared = model.family == "qwen2" or (model.family in _LLAMA and model.heads != model.kv_heads)
    if model.layers == 80 and shared and kind in (_T.Q3_K, _T.Q4_K):
        return _T.Q5_K
    return kind


def _block(kind: GGMLQuantizationType) -> int:
    return int(GGML_QUANT_SIZES[kind][0])
