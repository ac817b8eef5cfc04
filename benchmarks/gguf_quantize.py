"""Our quantised tensors beside those of llama.cpp's own quantiser: the type and every byte.

    python benchmarks/gguf_quantize.py                  # random models, each made for a rule; under a minute
    python benchmarks/gguf_quantize.py model-f32.gguf [q4_k_m …]   # a file of 32 bits, of a real model

Needs ``llama-cpp-python``; without it there is nothing to compare with. The last columns are the seconds that llama.cpp
and we took for all tensors, on every core, without reading and writing (ours) and with both (theirs).
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from backprop.core.architecture import Architecture
from backprop.export.gguf.quantize import MIXTURES, predicted_bytes, quantize, tensor_type
from gguf import GGUFReader, GGUFWriter, LlamaFileType

MODELS = {
    "llama, tied": Architecture("llama", 16, 512, 1024, 8, 2, 64, 640, True),
    "llama, many layers": Architecture("llama", 35, 256, 512, 4, 4, 64, 640, False),
    "llama, 80 layers": Architecture("llama", 80, 256, 256, 8, 2, 32, 300, False),
    "llama, narrow rows": Architecture("llama", 9, 288, 720, 6, 3, 48, 300, True),
    "llama, odd rows": Architecture("llama", 4, 80, 200, 2, 2, 40, 300, False),
    "qwen2, 80 layers": Architecture("qwen2", 80, 256, 256, 4, 4, 64, 300, False),
    "qwen3": Architecture("qwen3", 11, 256, 768, 8, 2, 64, 640, True),
    "phi3": Architecture("phi3", 10, 512, 1024, 8, 8, 64, 640, False),
    "gemma3": Architecture("gemma3", 9, 640, 768, 4, 1, 256, 640, True),
}


def write_random(path: Path, model: Architecture) -> None:
    """A file of 32 bits with the tensors and the numbers that the quantiser looks at, and no vocabulary."""
    arch, rng = model.family, np.random.default_rng(0)
    file = GGUFWriter(path, arch)
    file.add_block_count(model.layers)
    file.add_context_length(512)
    file.add_embedding_length(model.hidden)
    file.add_feed_forward_length(model.mlp)
    file.add_head_count(model.heads)
    file.add_head_count_kv(model.kv_heads)
    file.add_key_length(model.head_dim)
    file.add_value_length(model.head_dim)
    file.add_sliding_window(256)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(model.head_dim)
    file.add_vocab_size(model.vocabulary)
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    layer = {"attn_output": (model.hidden, queries), "ffn_down": (model.hidden, model.mlp)}
    if model.traits.fused:
        layer |= {"attn_qkv": (queries + 2 * keys, model.hidden), "ffn_up": (2 * model.mlp, model.hidden)}
    else:
        layer |= {f"attn_{part}": (keys, model.hidden) for part in "kv"} | {"attn_q": (queries, model.hidden)}
        layer |= {f"ffn_{part}": (model.mlp, model.hidden) for part in ("up", "gate")}
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (model.vocabulary, model.hidden),
        "output_norm": (model.hidden,),
    }
    if not model.tied:
        shapes["output"] = (model.vocabulary, model.hidden)
    for number in range(model.layers):
        shapes |= {f"blk.{number}.{part}": shape for part, shape in layer.items()}
        shapes |= {f"blk.{number}.{part}_norm": (model.hidden,) for part in ("attn", "ffn")}
    for name, shape in shapes.items():
        file.add_tensor(f"{name}.weight", rng.standard_normal(shape, np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def read_model(file: GGUFReader) -> Architecture:
    """The numbers that the rules ask for, from the file itself."""
    arch = file.fields["general.architecture"].contents()

    def number(key: str) -> int:
        return int(file.fields[f"{arch}.{key}"].contents())

    names = {tensor.name for tensor in file.tensors}
    heads, hidden = number("attention.head_count"), number("embedding_length")
    sizes = (number("block_count"), hidden, number("feed_forward_length"), heads, number("attention.head_count_kv"))
    return Architecture(arch, *sizes, hidden // heads, 0, "output.weight" not in names)


def compare(name: str, path: Path, folder: Path, precisions: list[str]) -> bool:
    """One line per precision; whether all of it is equal."""
    from llama_cpp import llama_cpp

    source = GGUFReader(path)
    model, equal = read_model(source), True
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in source.tensors}
    for precision in precisions:
        target = folder / f"{precision}.gguf"
        wanted = llama_cpp.llama_model_quantize_default_params()
        kind = precision.upper()
        wanted.ftype = int(LlamaFileType[f"MOSTLY_{kind}"])
        began = time.perf_counter()
        if llama_cpp.llama_model_quantize(bytes(path), bytes(target), ctypes.byref(wanted)) != 0:
            print(f"{name:20} {precision:7} llama.cpp refuses")
            equal = False
            continue
        theirs, ours = time.perf_counter() - began, 0.0
        others, different, total = [], [], 0
        read = {tensor.name: tensor for tensor in source.tensors}
        for tensor in GGUFReader(target).tensors:
            total += tensor.n_bytes + -tensor.n_bytes % 32
            kind = tensor_type(tensor.name, shapes[tensor.name], precision, model)
            if kind != tensor.tensor_type:
                others.append(f"{tensor.name} {kind.name} {tensor.tensor_type.name}")
                continue
            began = time.perf_counter()
            rows = quantize(read[tensor.name].data, kind, tensor.name)
            ours += time.perf_counter() - began
            if rows.tobytes() != tensor.data.tobytes():
                different.append(tensor.name)
        size = predicted_bytes(shapes, precision, model) == total
        equal &= size and not others and not different
        print(
            f"{name:20} {precision:7} {len(shapes):4} tensors, {len(others)} of another type,"
            f" {len(different)} with other"
            f" bytes, size {'as' if size else 'NOT AS'} predicted {total:12,} {theirs:6.2f} s {ours:6.2f} s",
            *others[:3],
            *different[:3],
        )
        target.unlink()
    return equal


def main() -> int:
    try:
        from llama_cpp import llama_cpp
    except ImportError:
        print("llama-cpp-python is not installed: nothing to compare with")
        return 0
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as name:
        folder, files = Path(name), {path: Path(path) for path in sys.argv[1:] if path not in MIXTURES}
        precisions = [word for word in sys.argv[1:] if word in MIXTURES] or [word for word in MIXTURES if word != "f32"]
        for called, model in () if files else MODELS.items():
            files[called] = folder / f"{called}.source.gguf"
            write_random(files[called], model)
        results = [compare(called, path, folder, precisions) for called, path in files.items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
