"""What is exported: a run's result or checkpoint, a folder with an adapter, or a folder with a whole model.

Whichever it is, it comes to a base model's folder and a folder with an adapter as PEFT reads it, or none.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import load_file, save_file

from backprop.core.architecture import for_older_readers
from backprop.core.errors import CheckpointError, ExportError, InputError, ModelLoadError
from backprop.core.jobs import ExportRequest
from backprop.core.models import repository_of, require_weights, settings_of, weight_files
from backprop.core.presets import licence_of
from backprop.core.rules import held_size
from backprop.core.settings import RunConfig
from backprop.data.tokenizer import ChatTokenizer
from backprop.export.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, MergedWeights
from backprop.export.weights import StoredWeights, Weights
from backprop.fetch.models import fetch_model
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory, is_run
from backprop.runs.model_files import base_differences
from backprop.runs.result_files import IDENTITY, changed_files
from backprop.runs.state import RunState, read_run, require_result
from backprop.train import model as models
from backprop.train.checkpoint import WEIGHTS, load_weights
from backprop.train.generate import on_texts
from backprop.train.persistence.result import base_of, copy_beside, copy_tokenizer, save_result, write_what_was_learned
from backprop.train.persistence.resume import result_notes
from backprop.worker.job import Send

_TRANSPOSED = ("gpt2", "openai-gpt")
"""Architectures whose layers store their weights as (in, out)."""


@dataclass
class Source:
    """A trained model on this machine, its weights read tensor by tensor."""

    name: str
    """What the model is called in names of files."""
    folder: Path
    """Where its exports go if nothing else is said."""
    base: Path
    adapter: Adapter | None
    chat: ChatTokenizer
    config: dict[str, Any]
    """Of the base model."""
    trust_remote_code: bool = False
    backend: str = "auto"
    step: int | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    """``name``, ``base_model``, ``run_id``, ``data_hash``, ``license``: what is known of them."""
    prompts: list[str] = field(default_factory=list)
    """What the run asked on its way."""
    state: RunState | None = None
    """Of the run, where it is one."""
    nf4: bool = False
    """Whether it was trained with its base in 4 bits."""
    base_weights: Weights | None = None
    """What the adapter is added to, where that is not the base model's own weights."""
    scratch: Path = field(default_factory=Path)
    """A folder for what is needed on the way, deleted afterwards."""

    @property
    def on_texts(self) -> bool:
        """Whether it was trained on plain texts, so that it continues one."""
        return self.state is not None and on_texts(self.state.dataset)

    @property
    def template(self) -> str:
        """The chat template of its training; empty where it was trained on texts and its base brings none."""
        fits = self.chat.brings_template or (self.adapter is not None and not self.on_texts)
        return self.chat.template.source if fits else ""

    @cached_property
    def model_folder(self) -> Path:
        """A folder with all files of the trained model but its weights."""
        folder = self.scratch / "model"
        folder.mkdir()
        write_model_files(self, folder, self.dtype)
        return folder

    @property
    def weights(self) -> Weights:
        """All tensors as they were trained, in float32.

        Raises:
            MergeError: the adapter is not for this base.
        """
        base = self.base_weights or self.stored
        return base if self.adapter is None else MergedWeights(base, self.adapter, self.config)

    @property
    def stored(self) -> StoredWeights:
        """The base model's own weights."""
        return StoredWeights(weight_files(self.base))

    @property
    def is_transposed(self) -> bool:
        """Whether layers store their weights as (in, out)."""
        return self.config.get("model_type") in _TRANSPOSED

    @property
    def dtype(self) -> str:
        """The precision that the base model is published in: ``bf16``, ``f16`` or ``f32``."""
        return self.stored.dtype(self.stored.names()[0]).lower()


def open_source(request: ExportRequest, send: Send, scratch: Path) -> Source:
    """Find what is to be exported and check that it is what was trained.

    Args:
        scratch: an empty folder, for what is needed on the way.

    Raises:
        InputError: there is no such run, folder or checkpoint.
        CheckpointError: the adapter is not the one that the run saved, or its base is another one.
        ExportError: the adapter was never trained.
        ModelLoadError: the base model is not to be had.
    """
    path = Path(request.source)
    if is_run(path):
        source = _of_run(request, RunDirectory(path), send, scratch)
    elif request.step is not None:
        raise InputError(f"{path} is no run, so it has no checkpoint of step {request.step}", hint="leave --step out")
    elif (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file():
        source = _of_adapter(request, path, send)
    else:
        base = require_weights(path)
        identity = settings_of(path, IDENTITY) if (path / IDENTITY).is_file() else {}
        for changed in changed_files(path) if identity else ():
            raise _stale(changed)
        source = Source(
            path.resolve().name, path.resolve().parent, base, None, ChatTokenizer.load(base), settings_of(base)
        )
        source.provenance = {"run_id": str(identity.get("run_id", "")), "data_hash": str(identity.get("data", ""))}
    source.scratch = scratch
    if source.adapter is not None and not source.adapter.is_trained:
        raise ExportError(
            f"the adapter in {source.adapter.folder} was never trained: it changes nothing in its base model",
            hint="export the base model's folder itself, or train first",
        )
    source.provenance = {key: value for key, value in {"name": source.name, **source.provenance}.items() if value}
    return source


def _of_run(request: ExportRequest, run: RunDirectory, send: Send, scratch: Path) -> Source:
    state = read_run(run.path)
    config = state.config
    name = request.model or config.get("model") or run.find_record().config.model
    full = config.get("mode") == "full"
    base = run.model if full and request.step is None else fetch_model(str(name), send)
    if request.step is None:
        require_result(state)
    for note in result_notes(run, base, request.step):
        if note.code == "BASE_CHANGED":
            raise _another_base(note.message)
        raise _stale(note.message)
    hub = ""
    if not request.model:
        with suppress(ModelLoadError):  # the folder of a base that a whole model needs no more
            hub = repository_of(str(config.get("model") or ""))
    known_as = hub or (Path(str(name)).name if full else base.name)
    adapter = None
    if not full:
        folder = run.adapter if request.step is None else _of_checkpoint(run, request.step, base, scratch / "adapter")
        adapter = Adapter(folder)
    elif request.step is not None:
        base = _whole_of_checkpoint(run, state, request.step, base, scratch / "trained")
    return Source(
        name=known_as.rpartition("/")[2],
        folder=run.path / "exports",
        base=base,
        adapter=adapter,
        chat=ChatTokenizer.load(base),
        config=settings_of(base),
        trust_remote_code=bool(config.get("trust_remote_code")),
        backend="cpu" if config.get("backend") == "cpu" else "auto",
        step=request.step,
        provenance={
            "base_model": known_as,
            "license": licence_of(str(config.get("model"))),
            "run_id": run.run_id,
            "data_hash": run.data_hash,
        },
        prompts=list(config.get("sample_prompts") or ()),
        state=state,
        nf4=config.get("mode") == "qlora",
    )


def _another_base(what: str) -> CheckpointError:
    hint = "put its files back, or say with --model where they are"
    return CheckpointError(what, code="STATE_IDENTITY_MISMATCH", hint=hint)


def _stale(what: str) -> CheckpointError:
    return CheckpointError(
        f"the result is not the one that was trained: {what}",
        hint="restore the file from a backup, or export a checkpoint of the run with --step",
    )


def _of_checkpoint(run: RunDirectory, step: int, base: Path, scratch: Path) -> Path:
    """The weights of a checkpoint as PEFT's files, in ``scratch``."""
    from peft import LoraConfig

    checkpoint = CheckpointStore.of_run(run).require_step(step)
    tensors = {name.replace(".default", ""): value for name, value in load_file(checkpoint.path / WEIGHTS).items()}
    settings = checkpoint.manifest.identity.get("config", {})
    modules = {name.rpartition(".lora_")[0] for name in tensors if ".lora_" in name}
    scratch.mkdir()
    rank, alpha = held_size(settings)
    LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        use_rslora=bool(settings.get("use_rslora")),
        use_dora=bool(settings.get("use_dora")),
        target_modules=sorted({module.rpartition(".")[2] for module in modules}),
        fan_in_fan_out=settings_of(base).get("model_type") in _TRANSPOSED,
        task_type="CAUSAL_LM",
        base_model_name_or_path=repository_of(str(run.find_record().config.model)) or str(base),
        inference_mode=True,
    ).save_pretrained(str(scratch))
    save_file(tensors, scratch / ADAPTER_WEIGHTS, {"format": "pt"})
    copy_tokenizer(base, scratch)
    write_what_was_learned(ChatTokenizer.load(base), scratch)
    return scratch


def _whole_of_checkpoint(run: RunDirectory, state: RunState, step: int, base: Path, folder: Path) -> Path:
    """The whole model of a checkpoint of full fine-tuning, saved in ``folder`` as a run saves its result."""
    checkpoint = CheckpointStore.of_run(run).require_step(step)
    settings = msgspec.convert({**state.config, "backend": "cpu"}, RunConfig)
    loaded = models.load(settings, base, lambda event: None)
    load_weights(checkpoint.path, loaded.model)
    hashes, rows = checkpoint.manifest.identity.get("model", {}), checkpoint.manifest.identity.get("tokens", "")
    of_run = {"run_id": run.run_id, "config": settings, "fingerprint": rows, "base": hashes}
    save_result(loaded, folder, steps=step, on_texts=on_texts(state.dataset), **of_run)
    return folder


def _of_adapter(request: ExportRequest, folder: Path, send: Send) -> Source:
    adapter = Adapter(folder)
    identity = settings_of(folder, IDENTITY) if (folder / IDENTITY).is_file() else {}
    for changed in changed_files(folder) if identity else ():
        raise _stale(changed)
    hub = str(adapter.config.get("base_model_name_or_path") or "")
    try:
        base = fetch_model(request.model or base_of(folder), send)
    except ModelLoadError as error:
        error.hint = f"say with --model where the base model is; {error.hint}"
        raise
    if "base" in identity and (found := base_differences(identity["base"], base)):
        raise _another_base(f"{base} is not the model that {folder} was trained on: {'; '.join(found)}")
    base_chat = ChatTokenizer.load(base)
    return Source(
        name=folder.resolve().name,
        folder=folder.resolve().parent,
        base=base,
        adapter=adapter,
        chat=ChatTokenizer.load(folder) if (folder / "chat_template.jinja").is_file() else base_chat,
        config=settings_of(base),
        provenance={
            "base_model": hub if "/" in hub and not Path(hub).is_absolute() else base.name,
            "run_id": str(identity.get("run_id", "")),
            "data_hash": str(identity.get("data", "")),
        },
        nf4=identity.get("mode") == "qlora",
    )


def write_model_files(source: Source, folder: Path, dtype: str) -> None:
    """All files of the trained model but its weights: the base's own, with what training added, for any reader."""
    copy_tokenizer(source.base, folder)
    copy_beside(source.base, folder)
    write_what_was_learned(source.chat, folder, template=bool(source.template))
    if source.adapter is not None and (source.adapter.folder / "chat_template.jinja").is_file():
        shutil.copyfile(source.adapter.folder / "chat_template.jinja", folder / "chat_template.jinja")
    config = for_older_readers(dict(source.config))
    config["dtype"] = config["torch_dtype"] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype]
    weights = source.weights
    if isinstance(weights, MergedWeights) and weights.is_untied:
        config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
