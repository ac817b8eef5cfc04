"""The parts of writing a GGUF file that do not depend on what is in it (``docs/gguf.md`` in the source of ggml)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_VERSION,
    GGUF_MAGIC,
    GGUF_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
)
from numpy.typing import NDArray

from backprop.export.gguf.quantize import tensor_bytes

Progress = Callable[[str, int, int], None]
"""Told the tensor, the bytes that are written and all that will be; may raise to stop the work."""

FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    **{
        name: LlamaFileType[f"MOSTLY_{name.upper()}"]
        for name in ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0", "q3_k_m", "q2_k")
    },
}


_NUMBERS = {
    **{GGUFValueType.BOOL: "?", GGUFValueType.FLOAT32: "<f4", GGUFValueType.FLOAT64: "<f8"},
    **{GGUFValueType[f"UINT{8 * size}"]: f"<u{size}" for size in (1, 2, 4, 8)},
    **{GGUFValueType[f"INT{8 * size}"]: f"<i{size}" for size in (1, 2, 4, 8)},
}


def begin_file(arch: MODEL_ARCH, kind: str, provenance: Mapping[str, str]) -> GGUFWriter:
    """A file's first values: what it is, what it is called and where it comes from.

    Args:
        provenance: ``general.`` values by name; ``base_model`` has a place of its own.
    """
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[arch])
    writer.add_type(kind)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for key, value in provenance.items():
        if key != "base_model":
            writer.add_string(f"general.{key}", value)
        elif value:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, value)
    return writer


def add_tensor_infos(
    writer: GGUFWriter, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, GGMLQuantizationType]
) -> int:
    """Announce all tensors in the file's table; how many bytes they are together."""
    total = 0
    for name, shape in shapes.items():
        size = tensor_bytes(shape, types[name])
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, types[name])
        total += size
    return total


def write_tensors(
    writer: GGUFWriter, target: Path, pieces: Iterator[tuple[str, NDArray[Any]]], *, total: int, progress: Progress
) -> None:
    """Write the file: what was given to ``writer``, then the tensors in the order in which they were announced.

    Args:
        pieces: each tensor's name and its next rows, in its type.
    """
    done, current = 0, ""
    with target.open("wb") as file:
        file.write(packed_head(writer))
        for name, data in pieces:
            if name != current:
                file.write(bytes(-file.tell() % writer.data_alignment))
                current = name
            progress(name, done, total)
            file.write(data.data)
            done += data.nbytes
        file.write(bytes(-file.tell() % writer.data_alignment))
    progress(current, done, total)


def packed_head(writer: GGUFWriter) -> bytes:
    """All that stands before the tensors. The package would pack it too, at two calls for each token and merge."""
    values, tensors = writer.kv_data[0], writer.tensors[0]
    parts = [struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(tensors), len(values))]
    for key, each in values.items():
        parts += [_packed_text(key), struct.pack("<I", each.type), _packed(each.value, each.type, each.sub_type)]
    offset = 0
    for name, tensor in tensors.items():
        sizes = tensor.shape[::-1]
        parts.append(_packed_text(name))
        parts.append(struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, tensor.dtype, offset))
        offset += tensor.nbytes + -tensor.nbytes % writer.data_alignment
    return b"".join(parts)


def _packed(value: Any, kind: GGUFValueType, of: GGUFValueType | None = None) -> bytes:
    """A value as the file holds it; ``of`` is the type of an array's items, else that of the first."""
    if kind == GGUFValueType.STRING:
        return _packed_text(value)
    if kind != GGUFValueType.ARRAY:
        return np.array(value, _NUMBERS[kind]).tobytes()
    of = of or GGUFValueType.get_type(value[0])
    texts = of == GGUFValueType.STRING
    items = b"".join(map(_packed_text, value)) if texts else np.array(value, _NUMBERS[of]).tobytes()
    return struct.pack("<IQ", of, len(value)) + items


def _packed_text(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(8, "little") + encoded
