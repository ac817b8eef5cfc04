"""Which tensor of a model becomes which of a GGUF, and what is changed on the way.

The names are llama.cpp's (``gguf.TensorNameMap``), the changes those that its own converter makes (``conversion/`` in
the source of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from msgspec import Struct
from numpy.typing import NDArray

from backprop.core.errors import GGUFError
from backprop.export.gguf.families import HEAD, Model, plain_name

Indices = NDArray[np.intp]

_LEFT_OUT = {
    "vision_": "the part for images",
    "visual.": "the part for images",
    "multi_modal_projector.": "the part for images",
    "mtp.": "the prediction of several tokens at once",
    "rotary_emb.inv_freq": "",
}


class Change(Struct, frozen=True):
    """What becomes of a tensor on its way into the file, in this order."""

    rows: Indices | None = None
    """The rows in their new order."""
    columns: Indices | None = None
    add: float = 0.0
    negative_exponent: bool = False
    """x becomes -exp(x)."""

    @property
    def keeps_values(self) -> bool:
        return not self.add and not self.negative_exponent

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The changed tensor, or rows of one whose ``rows`` were taken already."""
        if self.columns is not None:
            array = np.ascontiguousarray(array[..., self.columns])
        if self.negative_exponent:
            array = (-np.exp(array.astype(np.float64))).astype(np.float32)
        return array + np.float32(self.add) if self.add else array


class Tensor(Struct, frozen=True):
    """A tensor of the file and where it comes from."""

    name: str
    source: str
    shape: tuple[int, ...]
    change: Change


def plan_tensors(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[Tensor], list[str]]:
    """Which tensor of the model becomes which of the file, in the model's order, and notes on those that do not.

    Args:
        shapes: of the model's tensors, by name.

    Raises:
        GGUFError: a tensor is unknown to llama.cpp, is missing, or has another size than the settings say.
    """
    names = get_tensor_name_map(model.family.arch, model.numbers.layers)
    found: list[Tensor] = []
    left_out: dict[str, int] = {}
    for source, shape in shapes.items():
        name = plain_name(source)
        part = next((what for mark, what in _LEFT_OUT.items() if mark in name), "")
        if part or (name == HEAD and model.family.tied_head):
            left_out[part] = left_out.get(part, 0) + 1
            continue
        name = name.replace(".dt_bias", ".dt_proj.bias")
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise GGUFError(
                f"llama.cpp's {MODEL_ARCH_NAMES[model.family.arch]} has no place for the tensor {source}",
                hint="export it with --format merged",
                details={"tensor": source},
            )
        shape = tuple(size for size in shape if size != 1) if "conv1d" in name else shape
        found.append(Tensor(target, source, shape, change(model, name)))
    _require_whole(model, found)
    notes = [f"{count} tensors of {part} are left out: a GGUF holds the language model" for part, count in
             left_out.items() if part]  # fmt: skip
    return found, notes


def change(model: Model, name: str) -> Change:
    """What llama.cpp wants done to the tensor ``name`` (as a model of text alone names it)."""
    if model.family.permuted and (match := re.search(r"\.([qk])_proj\.(weight|bias)$", name)):
        heads = model.numbers.heads if match[1] == "q" else model.numbers.kv_heads
        return Change(rows=_pairs(heads, model.numbers.head_dim))
    if model.numbers.recurrent is not None and ".linear_attn." in name:
        return _recurrent_change(model, name.partition(".linear_attn.")[2])
    if model.family.shifted and name.endswith("norm.weight"):
        return Change(add=1.0)
    return Change()


def _pairs(heads: int, size: int) -> Indices:
    """Rows of queries or keys: the two halves of a head, which turn together, are interleaved."""
    return np.arange(heads * size).reshape(heads, 2, size // 2).swapaxes(1, 2).reshape(-1)


def _recurrent_change(model: Model, part: str) -> Change:
    """llama.cpp repeats the key heads one after the other, transformers each of them at once: values are reordered."""
    state = model.numbers.recurrent
    assert state is not None

    def tiled(size: int, start: int = 0) -> Indices:
        grouped = np.arange(state.value_heads * size).reshape(state.key_heads, -1, size)
        return np.concatenate([np.arange(start), start + grouped.swapaxes(0, 1).reshape(-1)])

    kind = part.partition(".")[0]
    if kind in ("in_proj_qkv", "conv1d"):
        return Change(rows=tiled(state.value_dim, 2 * state.keys))
    if kind == "in_proj_z":
        return Change(rows=tiled(state.value_dim))
    if kind in ("in_proj_a", "in_proj_b", "dt_proj"):
        return Change(rows=tiled(1))
    if kind == "A_log":
        return Change(rows=tiled(1), negative_exponent=True)
    return Change(columns=tiled(state.value_dim)) if kind == "out_proj" else Change()


def _require_whole(model: Model, tensors: list[Tensor]) -> None:
    """Every layer is there with as many tensors as others of its kind, and the two ends are."""
    names = {tensor.name for tensor in tensors}
    wanted = {"token_embd.weight", "output_norm.weight"}
    wanted |= {f"blk.{layer}.attn_norm.weight" for layer in range(model.numbers.layers)}
    wanted |= {f"blk.{layer}.ffn_down.weight" for layer in range(model.numbers.layers)}
    if model.text.get("tie_word_embeddings") is False and not model.family.tied_head:
        wanted.add("output.weight")
    if missing := sorted(wanted - names):
        raise GGUFError(
            f"the model has {len(missing)} tensors less than its config.json says, the first of them {missing[0]}",
            hint="fetch or export the model again: files are missing",
            details={"tensors": missing},
        )
    rows = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    if rows != model.numbers.vocabulary:
        raise GGUFError(
            f"the embedding has {rows} rows, the vocab_size in config.json is {model.numbers.vocabulary}",
            hint="correct vocab_size, or export the model again",
        )
