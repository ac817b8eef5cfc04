"""What a session of several runs stands at after each of them, on disk whole or not at all.

Each is a checkpoint of the session (``runs.checkpoints``), by the steps of all its runs so far. Beside what every
checkpoint has, its files are::

    weights.safetensors   the merged adapter, by the model's own names: what `--step` exports and talks to
    state.safetensors     the fine-tuned factors, and the merged B (``train.slao.State``)
    session.json          everything else (``Progress``)
    adapter/              the merged adapter as a result, and adapter-last/ as the last merged run left it

Its size does not grow with the number of runs. A run that failed or was kept out has one too, with the adapters of the
one before it; where nothing is merged yet it is ``session.json`` alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct, field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from backprop.core.errors import SLAOCheckpointError, SLAOMergeError
from backprop.core.events import Count, HeldOutScored, MergeDone, Verdict
from backprop.core.files import new_folder, read_json, remove
from backprop.runs.checkpoints import Checkpoint, CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.sessions import STARTS
from backprop.train.checkpoint import TENSORS, WEIGHTS
from backprop.train.multi_run import strategies as merging
from backprop.train.multi_run.slao import Adapter, State

SESSION = "session.json"
_FACTORS = ("tuned.A", "tuned.B", "merged.B", "merged.A")


class Progress(Struct, kw_only=True):
    """``session.json``."""

    version: int = 1
    index: Count = 0
    """Runs that are over: merged, kept out or failed."""
    steps: Count = 0
    tokens: Count = 0
    samples: Count = 0
    adapter: dict[str, Any] = field(default_factory=dict)
    """What every run's adapter has in common (``facts_of``); empty before the first."""
    merged: list[str] = field(default_factory=list)
    """Ids of the merged runs: i is how many they are."""
    merges: list[MergeDone] = field(default_factory=list)
    cells: list[HeldOutScored] = field(default_factory=list)
    verdict: Verdict | None = None
    """The merged adapter beside the base model, on the held-out rows of all runs."""
    over: bool = False
    """Whether patience has run out, or there are no more runs."""


def facts_of(loaded: Any, mode: str) -> dict[str, Any]:
    """What must not change from run to run, but for the base model's files: those of the loaded adapter."""
    adapter = loaded.model.peft_config["default"]
    return {
        "mode": mode,
        "lora_r": adapter.r,
        "lora_alpha": float(adapter.lora_alpha),
        "lora_dropout": adapter.lora_dropout,
        "use_rslora": adapter.use_rslora,
        "target_modules": sorted(adapter.target_modules),
    }


def require_same_adapter(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse an adapter of another size, scale or place.

    Raises:
        SLAOMergeError: it lists the differences.
    """
    found = [f"{name} was {was!r} and is {now[name]!r}" for name, was in before.items() if now[name] != was]
    if found:
        raise SLAOMergeError(
            "the run's adapter cannot be merged with those before it: " + "; ".join(found),
            hint="runs of a session share mode, rank, alpha, target modules and base model; start a new session",
        )


class SessionStore:
    """The states of one session. Its lock must be held."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._store = CheckpointStore(directory.checkpoints, directory.run_id)
        self._starts = CheckpointStore(directory.path / STARTS, directory.run_id)
        self._store.remove_leftovers()
        self._starts.remove_leftovers()

    def newest(self) -> tuple[Checkpoint | None, Progress, State | None]:
        """Where the session stands, and what is merged; ``None`` where that is nothing.

        Raises:
            CheckpointError: there are states, and none can be used.
            SLAOCheckpointError: the last fine-tuned adapter is not in it.
        """
        if not self._store.checkpoints():
            return None, Progress(), None
        checkpoint, _ = self._store.require_valid()
        try:
            progress = read_json(checkpoint.path / SESSION, Progress)
            tensors = load_file(checkpoint.path / TENSORS) if progress.merged else {}
        except (OSError, ValueError, SafetensorError) as error:
            raise SLAOCheckpointError(f"{checkpoint.path} cannot be read: {error}") from error
        parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in _FACTORS}
        for name, tensor in tensors.items():
            factor, _, layer = name.partition("/")
            parts[factor][layer] = tensor
        tuned_a, tuned_b, b, a = (parts[name] for name in _FACTORS)
        if not progress.merged:
            return checkpoint, progress, None
        if not tuned_a or tuned_a.keys() != tuned_b.keys() or tuned_a.keys() != b.keys():
            raise SLAOCheckpointError(f"{checkpoint.path / TENSORS}: the last fine-tuned adapter is not in it")
        adapter, merged = Adapter(tuned_a, tuned_b), tuple(progress.merged)
        return checkpoint, progress, State(len(merged), adapter, b, merged, a or None)

    def save(
        self, progress: Progress, identity: dict[str, Any], state: State, write_adapters: Callable[[Path], None]
    ) -> Checkpoint:
        """Write where the session stands after a merge, then put its adapters in place as its result.

        Args:
            identity: what it depends on: hashes of the base model and of the rows, the settings of the last run.
            write_adapters: writes both adapters into a folder.

        Raises:
            CheckpointError: it cannot be written; the state before is as it was.
        """

        def write(folder: Path) -> None:
            parts = zip(_FACTORS, (*state.tuned, state.b, state.a or {}), strict=True)
            named = {f"{factor}/{layer}": each for factor, of in parts for layer, each in of.items()}
            save_file(named, folder / TENSORS)
            save_file(merging.parameters_of(state.result), folder / WEIGHTS)
            write_adapters(folder)

        return self._save(progress, identity, write)

    def save_again(self, progress: Progress, before: Checkpoint | None) -> Checkpoint:
        """The same after a run that was not merged: the adapters stay those of the state ``before``."""

        def write(folder: Path) -> None:
            if before is not None:
                kept = shutil.ignore_patterns("manifest.json", SESSION)
                shutil.copytree(before.path, folder, ignore=kept, dirs_exist_ok=True, copy_function=os.link)

        return self._save(progress, before.manifest.identity if before else {}, write)

    def _save(self, progress: Progress, identity: dict[str, Any], write: Callable[[Path], None]) -> Checkpoint:
        def write_all(folder: Path) -> None:
            write(folder)
            (folder / SESSION).write_bytes(msgspec.json.encode(progress))

        reason = f"after run {progress.index}"
        saved = self._store.save(progress.steps, write_all, reason=reason, identity=identity, boundary=True)
        self.publish(saved)
        return saved

    def publish(self, checkpoint: Checkpoint | None) -> None:
        """Have the adapters of a state as the session's result, and nothing where there is no state."""
        for target in (self._directory.adapter, self._directory.last_adapter):
            source = checkpoint.path / target.name if checkpoint else None
            if source is not None and source.is_dir():
                with new_folder(target) as folder:
                    shutil.copytree(source, folder, dirs_exist_ok=True)
            elif target.exists():
                remove(target)

    def write_start(self, checkpoint: Checkpoint, start: Adapter) -> Path:
        """The folder of the weights that the run after ``checkpoint`` starts from, in the form of a checkpoint."""
        weights, said = merging.parameters_of(start), checkpoint.manifest
        write: Callable[[Path], None] = lambda folder: save_file(weights, folder / WEIGHTS)  # noqa: E731
        return self._starts.save(said.step, write, identity=said.identity, reason=said.reason, boundary=True).path

    def rewind(self, index: int) -> None:
        """Delete the states after run ``index``, the newest first."""
        for each in reversed(self._store.checkpoints()):
            if read_json(each.path / SESSION, Progress).index > index:
                remove(each.path)
