"""Our GGUF files beside those of llama.cpp's own converter: every tensor, every value, seconds and memory.

    python benchmarks/gguf_convert.py LLAMA_CPP              # small random models of every family, and SmolLM2
    python benchmarks/gguf_convert.py LLAMA_CPP --large      # seconds and peak memory with a model of 2.1 GB
    python benchmarks/gguf_convert.py LLAMA_CPP MODEL ...    # folders of models on this machine

``LLAMA_CPP`` is the folder with ``convert_hf_to_gguf.py``: ``vendor/llama.cpp`` in the source archive of
llama-cpp-python (``pip download --no-deps --no-binary :all: llama-cpp-python``). Where ``llama_cpp`` can be imported,
the logits of our 32-bit file are compared with those of transformers.

llama.cpp's script refuses tokenizers whose fingerprint it does not know, and wants SentencePiece for some families: for
the random models, which have the embedded model's tokenizer, it is told which one that is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
from backprop.fetch.models import fetch_model
from tiny_families import FAMILIES, write_family

OURS = """
import sys
from pathlib import Path
from backprop.export.gguf.file import write_gguf
from backprop.export.weights import StoredWeights
folder = Path(sys.argv[1])
for note in write_gguf(folder, StoredWeights(sorted(folder.glob("*.safetensors"))), Path(sys.argv[2]), sys.argv[3],
                       template="", provenance={}):
    print("  note:", note)
"""
THEIRS = """
import os, runpy, sys
sys.path.insert(0, os.environ["LLAMA_CPP"])
import conversion
from conversion import base, gemma, phi, qwen
conversion.load_all_models()
if os.environ.get("SAME_TOKENIZER"):
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
    for kind in (phi.Phi3MiniModel, gemma.Gemma2Model, qwen.Qwen2Model):
        kind.set_vocab = lambda self: self._set_vocab_gpt2()
script = os.environ["LLAMA_CPP"] + "/convert_hf_to_gguf.py"
sys.argv = [script, sys.argv[1], "--outfile", sys.argv[2], "--outtype", sys.argv[3], *sys.argv[4:]]
runpy.run_path(script, run_name="__main__")
"""
ABOUT_THE_FILE = ("general.name", "general.basename", "general.version", "general.size_label", "general.finetune")
"""What is made of the folder's name there and of the run here."""


def convert(program: str, model: Path, target: Path, kind: str, *more: str, **environment: str) -> tuple[float, ...]:
    """Seconds, seconds of the processor, and megabytes at most of a converter in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-c", program, str(model), str(target), kind, *more]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:2]} failed on {model}:\n{said.decode()[-2000:]}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """Call in a process of its own: what this one had in memory at most would be counted as its children's."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(work, *given).result()


def compare(ours: Path, theirs: Path) -> str:
    """What differs between two files, in one line."""
    files = [GGUFReader(path) for path in (ours, theirs)]
    values: list[dict[str, Any]] = [{key: f.contents() for key, f in file.fields.items()} for file in files]
    left_out = (*ABOUT_THE_FILE, "tokenizer.chat_template", *(key for key in values[0] if key.startswith("GGUF.")))
    mine, other = ({key: value for key, value in each.items() if key not in left_out} for each in values)
    different = [key for key in mine if key in other and mine[key] != other[key]]
    tensors = [
        {t.name: (t.tensor_type, tuple(t.shape), t.data.tobytes()) for t in file.tensors} for file in files
    ]  # fmt: skip
    unequal = [name for name in {**tensors[0], **tensors[1]} if tensors[0].get(name) != tensors[1].get(name)]
    words = [f"{len(tensors[0]) - len(unequal)} of {len(tensors[0])} tensors byte for byte"]
    words += [f"tensors differ: {unequal}"] * bool(unequal)
    words += [f"values differ: {different}"] * bool(different)
    words += [f"only there: {sorted(set(other) - set(mine))}"] * bool(set(other) - set(mine))
    words += [f"only here: {sorted(set(mine) - set(other))}"] * bool(set(mine) - set(other))
    return "; ".join(words)


def logits(model: Path, file: Path) -> str:
    """How far llama.cpp's logits are from those of transformers, as a share of the largest."""
    try:
        from llama_cpp import Llama
    except ImportError:
        return "no llama_cpp"
    import torch
    from transformers import AutoModelForCausalLM

    ids = list(range(3, 300, 7))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(torch.tensor([ids])).logits[0]
    runtime = Llama(str(file), n_ctx=512, n_threads=1, verbose=False, logits_all=True, type_k=0, type_v=0)
    runtime.eval(ids)
    found = np.array(runtime.scores[: len(ids)])
    runtime.close()
    wanted = expected.numpy()
    return f"logits within {np.abs(found - wanted).max() / np.abs(wanted).max():.1e}"


def write_large(folder: Path, tokenizer: Path) -> None:
    """A Llama of 1.07 billion weights in bfloat16, as most are stored, with the embedded model's tokenizer."""
    import torch
    from safetensors.torch import save_file

    hidden, inner, layers, rows, keys = 2048, 5632, 22, 49152, 256
    folder.mkdir()
    settings = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows, "hidden_size": hidden},
        **{"intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 32},
        **{"num_key_value_heads": 4, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
        **{"tie_word_embeddings": True, "hidden_act": "silu"},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(tokenizer / name)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden), "model.norm.weight": (hidden,)}
    for number in range(layers):
        attention = {"q_proj": (hidden, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
        for part, shape in {**attention, "o_proj": (hidden, hidden)}.items():
            shapes[f"model.layers.{number}.self_attn.{part}.weight"] = shape
        for part, shape in {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}.items():
            shapes[f"model.layers.{number}.mlp.{part}_proj.weight"] = shape
        for part in ("input", "post_attention"):
            shapes[f"model.layers.{number}.{part}_layernorm.weight"] = (hidden,)
    torch.manual_seed(0)
    weights = {name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--large", action="store_true")
    asked = parser.parse_args()
    place = asked.llama_cpp.resolve()
    theirs = {"LLAMA_CPP": str(place), "PYTHONPATH": os.pathsep.join(filter(None, (str(place / "gguf-py"),
              os.environ.get("PYTHONPATH"))))}  # fmt: skip
    embedded = fetch_model("smollm2-135m", lambda message: None)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        files = work / "ours.gguf", work / "theirs.gguf"
        if asked.large:
            model = work / "large"
            apart(write_large, model, embedded)
            for kind in ("f16", "bf16", "q8_0"):
                ours, other = convert(OURS, model, files[0], kind), convert(THEIRS, model, files[1], kind, **theirs)
                for name, found in (("ours", ours), ("llama.cpp", other)):
                    print(f"{kind}: {name} {found[0]:.1f} s, {found[1]:.1f} CPU-s, {found[2]:.0f} MB")
                print(" ", apart(compare, *files))
            return
        for model in asked.models or [embedded]:
            convert(OURS, model, files[0], "f32")
            convert(THEIRS, model, files[1], "f32", **theirs)
            print(f"{model.name}: {compare(*files)}; {logits(model, files[0])}")
        for name in FAMILIES if not asked.models else ():
            model = write_family(name, work / name, embedded, 49152)
            more = ["--no-mtp"] if name == "qwen-3.5" else []
            convert(OURS, model, files[0], "f32")
            convert(THEIRS, model, files[1], "f32", *more, SAME_TOKENIZER="1", **theirs)
            print(f"{name}: {compare(*files)}; {logits(model, files[0])}")


if __name__ == "__main__":
    main()
