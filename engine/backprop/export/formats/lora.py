"""The adapter alone, as PEFT reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from backprop.core.errors import InputError
from backprop.core.jobs import Check
from backprop.export.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter
from backprop.export.sharded import Progress
from backprop.export.source import Source
from backprop.export.weights import StoredWeights

FOLDER = True
_LEFT_OUT = ("README.md", "optimizer", "training_args", "rng_state", "scheduler", "trainer_state")
"""Beginnings of names of files that other programs put beside an adapter and that nobody needs to load it."""


def file_name(source: Source, precision: str) -> str:
    return "lora"


def predicted_bytes(source: Source, precision: str) -> int:
    return sum(path.stat().st_size for path in _files(source))


def write(source: Source, target: Path, precision: str, progress: Progress) -> list[str]:
    files = _files(source)
    total, done = predicted_bytes(source, precision), 0
    for path in files:
        progress(f"copying {path.name}", done, total)
        shutil.copyfile(path, target / path.name)
        done += path.stat().st_size
    config = json.loads((target / ADAPTER_CONFIG).read_bytes())
    base = str(config.get("base_model_name_or_path") or "")
    hub = source.provenance.get("base_model", "")
    if Path(base).is_absolute() and "/" in hub:
        config["base_model_name_or_path"] = hub
        (target / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    elif Path(base).is_absolute():
        return [f"the adapter names its base model by its place on this machine, {base}"]
    return []


def check(source: Source, target: Path, precision: str, answers: bool, progress: Progress) -> Check:
    expected, written = require_adapter(source).weights, StoredWeights([target / ADAPTER_WEIGHTS])
    same = set(expected.names()) == set(written.names()) and all(
        (expected.read(name) == written.read(name)).all() for name in expected.names()
    )
    detail = f"{len(expected.names())} tensors, " + ("bit by bit those that were trained" if same else "not the same")
    return Check(skipped="answers are not compared: the files are the trained ones").add("tensors", same, detail)


def require_adapter(source: Source) -> Adapter:
    """The adapter of what is exported.

    Raises:
        InputError: it is a whole model.
    """
    if source.adapter is None:
        raise InputError(f"{source.base} is a whole model: it has no adapter", hint="choose merged or gguf")
    return source.adapter


def _files(source: Source) -> list[Path]:
    files = sorted(path for path in require_adapter(source).folder.iterdir() if path.is_file())
    return [path for path in files if not path.name.startswith((".", *_LEFT_OUT))]
