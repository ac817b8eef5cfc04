"""An adapter alone as GGUF: llama.cpp and Ollama (``ADAPTER``) add it to a GGUF of its base model as they load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFType, Keys, get_tensor_name_map
from numpy.typing import NDArray

from backprop.core.errors import GGUFError
from backprop.export.gguf.families import Model, plain_name, read_model
from backprop.export.gguf.quantize import quantize
from backprop.export.gguf.tensors import change
from backprop.export.gguf.writing import FILE_TYPES, Progress, add_tensor_infos, begin_file, write_tensors
from backprop.export.merge import Adapter

_ENDS = {"token_embd.weight": "the embedding", "output.weight": "the head"}
_MERGE = "merge instead: --format gguf"


def write_lora_gguf(
    adapter: Adapter,
    base: Path,
    target: Path,
    precision: str,
    *,
    provenance: Mapping[str, str],
    progress: Progress = lambda name, done, total: None,
) -> None:
    """Write an adapter to ``target``.

    llama.cpp multiplies the change of every module by alpha / rank, with one alpha for the whole file. Where training
    used another factor (rank-stabilised LoRA, a pattern of alphas or ranks), it is in the B matrices.

    Args:
        base: the folder of the model that it was trained on.
        target: a file that the caller made; it is overwritten.
        precision: ``f32`` or ``f16``.
        provenance: as of ``write_gguf``.
        progress: told of every tensor; may raise to stop.

    Raises:
        GGUFError: the adapter is more than llama.cpp can add to a model, or its base is no architecture for it.
    """
    model = read_model(base)
    modules = _modules(adapter, model)
    kind = GGMLQuantizationType.F16 if precision == "f16" else GGMLQuantizationType.F32
    shapes = {
        f"{name}.lora_{side.lower()}": adapter.weights.shape(adapter.parts[module][f"lora_{side}"])
        for name, module in modules.items()
        for side in "AB"
    }
    types = dict.fromkeys(shapes, kind)
    writer = begin_file(model.family.arch, GGUFType.ADAPTER, provenance)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, _alpha(adapter))
    writer.add_file_type(FILE_TYPES[precision])
    total = add_tensor_infos(writer, shapes, types)
    matrices = _matrices(adapter, model, modules)
    pieces = ((name, quantize(matrix, types[name], name)) for name, matrix in matrices)
    write_tensors(writer, target, pieces, total=total, progress=progress)


def is_written(adapter: Adapter, base: Path, path: Path, precision: str) -> bool:
    """Whether the file at ``path`` holds every matrix of the adapter, in the precision that it was written in."""
    model = read_model(base)
    kind = np.float16 if precision == "f16" else np.float32
    found = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    return (
        all(
            name in found and np.array_equal(found.pop(name), matrix.astype(kind))
            for name, matrix in _matrices(adapter, model, _modules(adapter, model))
        )
        and not found
    )


def _alpha(adapter: Adapter) -> float:
    return float(adapter.config.get("lora_alpha") or 1)


def _matrices(adapter: Adapter, model: Model, modules: Mapping[str, str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, module in modules.items():
        a, b = adapter.read(module, "lora_A"), adapter.read(module, "lora_B")
        moved = change(model, plain_name(f"{module}.weight"))
        factor = np.float32(adapter.scale(module) * len(a) / _alpha(adapter))
        yield f"{name}.lora_a", a if moved.columns is None else np.ascontiguousarray(a[:, moved.columns])
        yield f"{name}.lora_b", (b if moved.rows is None else b[moved.rows]) * factor


def _modules(adapter: Adapter, model: Model) -> dict[str, str]:
    """The adapter's modules by the names of the tensors that they change in the file of the base."""
    if adapter.replaced:
        raise GGUFError(
            f"the adapter in {adapter.folder} has parts that were trained whole (modules_to_save), the first of them"
            f" {next(iter(adapter.replaced))}: a GGUF adapter cannot hold them",
            hint=_MERGE,
            details={"tensors": list(adapter.replaced)},
        )
    names = get_tensor_name_map(model.family.arch, model.numbers.layers)
    found = {}
    for module, parts in adapter.parts.items():
        if "lora_magnitude_vector" in parts:
            why = "DoRA changes lengths of weights as well"
        elif set(parts) != {"lora_A", "lora_B"}:
            why = f"it has {', '.join(sorted(parts))}"
        else:
            name = names.get_name(plain_name(f"{module}.weight"), try_suffixes=(".weight",))
            if name is not None and name not in _ENDS:
                found[name] = module
                continue
            why = f"it changes {_ENDS[name]}" if name else "llama.cpp has no place for it"
        raise GGUFError(
            f"the adapter in {adapter.folder} cannot be a GGUF adapter: {module}: {why}",
            hint=_MERGE,
            details={"module": module},
        )
    return found
