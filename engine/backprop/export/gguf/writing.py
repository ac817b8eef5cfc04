"""The parts of writing a GGUF file that do not depend on what is in it (``docs/gguf.md`` in the source of ggml)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
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
    writer: GGUFWriter,
    target: Path,
    pieces: Iterator[tuple[str, NDArray[Any]]],
    *,
    total: int,
    progress: Progress,
) -> None:
    """Write the file: what was given to ``writer``, then the tensors in the order in which they were announced.

    Args:
        pieces: each tensor's name and its next rows, in its type.
    """
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    done, current = 0, ""
    with target.open("ab") as file:
        for name, data in pieces:
            if name != current:
                file.write(bytes(-file.tell() % writer.data_alignment))
                current = name
            progress(name, done, total)
            file.write(data.data)
            done += data.nbytes
        file.write(bytes(-file.tell() % writer.data_alignment))
    progress(current, done, total)


def write_origin(writer: GGUFWriter, provenance: Mapping[str, str]) -> None:
    """Write what the file is called and where it comes from.

    Args:
        provenance: ``general.`` values by name; ``base_model`` has a place of its own.
    """
    if base := provenance.get("base_model"):
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base)
    for key, value in provenance.items():
        if key != "base_model":
            writer.add_string(f"general.{key}", value)
