"""Where a run starts: at step 0, exactly where it stopped, beyond its old end, or from another run's weights.

``begin`` decides before anything heavy is loaded. ``require_same_identity`` compares once model and rows are known.

An identity is what a checkpoint depends on, so that a run is never continued with something else, as a nested
dictionary of plain values: ``model`` (a hash of each file, those of the tokenizer included), ``tokens`` (fingerprint of
the tokenised rows), ``held_out`` (of those held out), ``reference`` (of what the untouched model makes of them, where
the method compares with that), ``config`` (settings that have an effect on the weights) and ``libraries`` (versions);
beside them ``code``, which version of this program it was.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from backprop.core import events
from backprop.core.definition import chosen_by_rule
from backprop.core.errors import CheckpointError
from backprop.core.events import DatasetPrepared
from backprop.core.models import settings_of
from backprop.core.paths import token_cache
from backprop.core.presets import terms_of
from backprop.core.rules import by_lengths
from backprop.core.settings import RunConfig, settings_with_effect
from backprop.data.split import Split
from backprop.data.token_cache import Prepared
from backprop.runs import journal
from backprop.runs.checkpoints import Checkpoint, CheckpointStore, read_manifest
from backprop.runs.directory import RunDirectory
from backprop.runs.model_files import (
    BASE_FILES,
    base_differences,
    changes,
    model_differences,
    model_hashes,
    shown,
)
from backprop.runs.record import Replays, RunRecord
from backprop.runs.result_files import IDENTITY, changed_files
from backprop.runs.sessions import STARTS
from backprop.worker.setup import environment

LIBRARIES = ("python", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "numpy", "mlx", "mlx-lm")
"""Those whose version can reach the last bits."""


@dataclass
class Beginning:
    """What a stretch of a run begins with.

    ``checkpoint`` is ``None`` at step 0. ``extended`` is set where the run gets a new end: its schedule is then
    computed anew. ``weights`` is a folder with an adapter whose weights a fork starts from.
    """

    config: RunConfig
    checkpoint: Checkpoint | None = None
    continued: bool = False
    extended: bool = False
    weights: Path | None = None
    now: datetime | None = None
    """When the run was begun: the date that a chat template with a date in it writes, also after a resume."""
    replays: Replays | None = None
    """The run that this one repeats."""
    split: Split | None = None
    """How the held-out rows are chosen where it is settled: a fork keeps the split of the run it came from."""
    prepared: RunConfig | None = None
    """What the rows were prepared with, where rank 0 did that (``ranks``)."""
    open_batch: bool = False
    """Whether the micro-batches are to be settled by measuring: nobody has said how large, and no step was taken."""
    model_hashes: dict[str, str] | None = None
    """Of the model's files, where they are known already."""
    notes: list[events.Event] = field(default_factory=list)
    """To be told once the run has started: broken checkpoints, a changed end."""

    @property
    def resumed_from(self) -> int | None:
        """The step that a continued run goes on after."""
        if not self.continued:
            return None
        return self.checkpoint.step if self.checkpoint else 0


def begin(
    directory: RunDirectory,
    record: RunRecord,
    verb: str,
    steps: int | None,
    resolve: Callable[[RunConfig], RunConfig],
    *,
    model: str = "",
) -> Beginning:
    """How the run in ``directory`` begins. The run's lock must be held.

    Args:
        verb: ``start``, ``resume`` or ``extend``.
        steps: the new end, for ``extend``.
        resolve: fills what a configuration leaves open, for this machine (``model.resolved``).
        model: where the base model is now, if it is no longer where the run found it.

    Raises:
        CheckpointError: checkpoints exist and none verifies; the message says of each why not.
    """
    config = record.config
    now = datetime.fromtimestamp(record.replays.created if record.replays else record.created)
    if verb == "extend":
        config = msgspec.structs.replace(config, steps=steps, epochs="auto")
        directory.update_record(config=config, extended=True)
    if model:  # written down once it was found to be the same
        config = msgspec.structs.replace(config, model=model)
    store = CheckpointStore(directory.checkpoints, record.run_id)
    store.remove_leftovers()
    if verb == "start" or not any(store.directory.glob("step-*")):
        weights = _forked_from(directory, record)
        start = Beginning(
            resolve(config),
            continued=verb != "start",
            now=now,
            weights=weights,
            replays=record.replays,
            split=split_of(weights),
            open_batch=config.batch_size == "auto",
        )
        if start.continued:
            message = "the run had no checkpoint yet: it starts again at step 1"
            start.notes.append(events.Warning(code="NO_CHECKPOINT", message=message))
        elif weights is None and (terms := terms_of(config.model)):
            start.notes.append(events.Warning(code="MODEL_LICENCE", message=terms))
        return start
    checkpoint, broken = store.require_valid()
    resolved = resolve(as_resolved(config, checkpoint))
    saved = checkpoint.manifest.identity.get("config", {})
    # The checkpoint is from before an extend where the run has got another end since.
    other_end = any(saved.get(name) != getattr(resolved, name) for name in ("steps", "epochs"))
    return Beginning(
        resolved,
        checkpoint,
        continued=True,
        now=now,
        extended=(record.extended or verb == "extend") and other_end,
        split=split_of(checkpoint.path),
        notes=[
            events.Warning(
                code="STATE_CHECKPOINT_INVALID",
                message=f"checkpoint {each.path.name} is not used: {'; '.join(each.problems)}",
                hint=f"going on from step {checkpoint.step}",
            )
            for each in broken
        ],
    )


def run_started(
    directory: RunDirectory, record: RunRecord, config: RunConfig, resumed_from: int | None
) -> events.RunStarted:
    """The first event of a stretch of the run in ``directory``, with its ``resolved`` configuration.

    What the lengths of its rows decide about is open until they are known.
    """
    if config.max_seq_length == "auto":
        config = msgspec.structs.replace(config, **by_lengths(record.config))
    return events.RunStarted(
        config=msgspec.to_builtins(config),
        output_dir=str(directory.path),
        pid=os.getpid(),
        kind=record.kind,
        resumed_from=resumed_from,
        environment=environment(),
        forked_from=record.forked_from,
        origins={**record.origins, **chosen_by_rule(record.config, config)},
    )


def _forked_from(directory: RunDirectory, record: RunRecord) -> Path | None:
    """Folder of the weights that the run starts from, for a fork.

    Raises:
        CheckpointError: it is not there any more, and the run has no way to begin.
    """
    if not record.forked_from:
        return None
    weights = directory.origin if directory.origin.is_dir() else Path(record.forked_from)
    if not weights.is_dir():
        raise CheckpointError(
            f"the checkpoint that the run was forked from is gone: {weights}",
            hint="put it back, or fork again from another one",
            details={"path": str(weights)},
        )
    return weights


def split_of(checkpoint: Path | None) -> Split | None:
    """How the run of this checkpoint chose its held-out rows; earlier versions took the run's own seed, and tokens."""
    if checkpoint is None:
        return None
    identity = read_manifest(checkpoint).identity
    seed = identity.get("split_seed", identity.get("config", {}).get("seed"))
    return None if seed is None else Split(seed=seed, by_tokens=identity.get("split_by", "tokens") == "tokens")


def as_resolved(config: RunConfig, checkpoint: Checkpoint) -> RunConfig:
    """``config`` with what was left open chosen as it was when the checkpoint was made.

    A batch size that free memory decides, for example, must not be decided again.
    """
    saved = checkpoint.manifest.identity.get("config", {})
    open_fields = [name for name in config.__struct_fields__ if getattr(config, name) in (None, "auto")]
    if config.steps is not None:  # a new end: the old length does not come back
        open_fields = [name for name in open_fields if name != "epochs"]
    chosen = {name: saved[name] for name in open_fields if name in saved}
    return msgspec.convert({**msgspec.to_builtins(config), **chosen}, RunConfig)


def identity(
    config: RunConfig,
    model_path: Path,
    fingerprint: str,
    held_out: str = "",
    split: Split | None = None,
    *,
    hashes: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The identity of a run.

    Args:
        config: as resolved.
        model_path: the directory that model and tokenizer are loaded from.
        fingerprint: of the tokenised rows, which are all that data, template and the code between them come to.
        held_out: of the rows that are evaluated on; empty where there are none.
        split: how they were chosen, where not by the run's own seed.
        hashes: of the model's files, where they are known already.
    """
    split, facts = split or Split(seed=config.seed), environment()
    return {
        "model": hashes or model_hashes(model_path),
        "tokens": fingerprint,
        "held_out": held_out,
        "split_seed": split.seed,
        "split_by": "tokens" if split.by_tokens else "content",
        "config": settings_with_effect(config),
        "libraries": {name: version for name, version in facts.items() if name in LIBRARIES and version},
        "code": facts["code"],
    }


def require_same_identity(
    checkpoint: Checkpoint, now: dict[str, Any], rows: Prepared, directory: RunDirectory, *, extended: bool = False
) -> list[events.Warning]:
    """Refuse to continue with another model, data or configuration. An extended run may have another end.

    Args:
        now: the identity that the run would go on with.
        rows: the tokenised rows behind it.

    Returns:
        What has to be said all the same.

    Raises:
        CheckpointError: ``STATE_IDENTITY_MISMATCH`` with the list of differences.
    """
    saved = checkpoint.manifest.identity
    if extended:
        end = {name: now["config"].get(name) for name in ("steps", "epochs", "warmup_steps")}
        saved = {**saved, "config": {**saved.get("config", {}), **end}}
        saved.pop("reference", None)  # of another number of rows
    notes = []
    differences = identity_differences(saved, now)
    if "tokens" not in saved:
        found = compare_unhashed(str(saved.get("data", "")), rows, directory)
        differences += [found] if isinstance(found, str) else []
        notes += [found] if isinstance(found, events.Warning) else []
    if differences:
        raise CheckpointError(
            "the run cannot be continued exactly: " + "; ".join(differences),
            code="STATE_IDENTITY_MISMATCH",
            hint="put these back as they were, or start a new run",
            details={"differences": differences, "checkpoint": str(checkpoint.path)},
        )
    if changed := library_differences(saved, now):
        message = "libraries changed, so results may differ in the last bits: " + "; ".join(changed)
        notes.append(events.Warning(code="LIBRARIES_CHANGED", message=message))
    return notes


def fork_notes(weights: Path, now: dict[str, Any], source: str) -> list[events.Warning]:
    """What a fork from the checkpoint at ``weights`` has to say about its held-out rows.

    Args:
        now: the fork's identity.
        source: where the checkpoint was, which the fork keeps a copy of.

    Raises:
        CheckpointError: the checkpoint cannot be read, or was trained on another model.
    """
    manifest = read_manifest(weights)
    identity = manifest.identity
    if differences := model_differences(identity, now["model"], BASE_FILES):
        raise CheckpointError(
            "the weights to start from were trained on another model: " + "; ".join(differences),
            code="STATE_IDENTITY_MISMATCH",
            hint="put its files back, or name the model that they were trained on with --model",
            details={"differences": differences, "checkpoint": str(weights)},
        )
    before = identity.get("held_out")
    within = manifest.boundary and Path(source).parent.name == STARTS  # no run of a session trains another's
    if within or before == now["held_out"] or not now["held_out"]:
        return []
    message = "the held-out rows are not those of the run it was forked from, which may have been trained on them: "
    message += "their loss can be too good by that"
    hint = "keep the data and --held-out of that run, or name a file of rows that neither trains on"
    return [events.Warning(code="HELD_OUT_OVERLAP", message=message, hint=hint)]


def result_notes(run: RunDirectory, model_path: Path, step: int | None) -> list[events.Warning]:
    """What to say before a run's result (or the checkpoint of ``step``) answers on the base model in ``model_path``."""
    notes = []
    kept = CheckpointStore.of_run(run).checkpoints()
    if kept and model_path != run.model:
        notes += _another_base(kept[-1].manifest.identity.get("model", {}), model_path)
    if step is None and (found := run.changed_result()):
        notes.append(events.Warning(code="ADAPTER_CHANGED", message="; ".join(found)))
    return notes


def adapter_notes(folder: Path, model_path: Path) -> list[events.Warning]:
    """The same of an adapter's ``folder`` without its run."""
    if not (folder / IDENTITY).is_file():
        return []
    saved = settings_of(folder, IDENTITY).get("base")
    notes = [] if saved is None else _another_base(saved, model_path)
    return notes + [events.Warning(code="ADAPTER_CHANGED", message=each) for each in changed_files(folder)]


def _another_base(saved: dict[str, str], model_path: Path) -> list[events.Warning]:
    if not (found := base_differences(saved, model_path)):
        return []
    message = "the base model is not the one that the run was trained on: " + "; ".join(found)
    return [events.Warning(code="BASE_CHANGED", message=message, hint="these are not the run's answers")]


def compare_unhashed(key: str, rows: Prepared, directory: RunDirectory) -> events.Warning | str | None:
    """Compare the data of a checkpoint without a hash of its tokens: earlier versions kept a key made from their code.

    The tokens themselves are compared where the cache still holds them under ``key``. Otherwise what the run's journal
    says of them must agree: how many rows, tokens and supervised tokens they were, and their limit.

    Returns:
        ``None`` where the tokens are the same, a warning where only their numbers are known to be, else the difference.
    """
    kept, files = token_cache() / key, ("ids.bin", "trained.bin", "offsets.bin")
    if key and all((kept / name).is_file() for name in files):
        same = all(filecmp.cmp(kept / name, rows.folder / name, shallow=False) for name in files)
        return None if same else DATA_CHANGED
    told = (event for event in journal.read(directory.journal).events if isinstance(event, DatasetPrepared))
    before = next(told, None)
    if before is None:
        return "whether the data is the same cannot be told: the run's journal does not describe it"
    for name, words in _COUNTED.items():
        was, is_now = getattr(before, name), getattr(rows.summary, name)
        if was != is_now:
            return f"{DATA_CHANGED} ({words} were {was} and are {is_now})"
    return events.Warning(
        code="DATA_COMPARED_BY_COUNTS",
        message="the checkpoint is of a version that kept no hash of the data: "
        f"{before.kept} rows with {before.tokens} tokens, {before.trained_tokens} of them trained, are as many as then "
        "and taken for the same",
        hint="if the file was edited since, start a new run instead",
    )


DATA_CHANGED = "the data, or how it becomes tokens, was changed"
REFERENCE_CHANGED = "the untouched model's log-probabilities of the rows are no longer those of then"
_COUNTED = {
    "rows": "rows",
    "kept": "kept rows",
    "tokens": "tokens",
    "trained_tokens": "trained tokens",
    "max_length": "tokens of the longest row allowed",
}


def identity_differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was when the checkpoint was made; each would make the continued run another run.

    A setting that the checkpoint's version did not have counts as its default: what that version did. Tokens are
    compared where both have a fingerprint. Versions of libraries are not among them; see ``library_differences``.
    """
    found = model_differences(saved, now["model"])
    if saved.get("tokens", now["tokens"]) != now["tokens"]:
        found.append(DATA_CHANGED)
    elif saved.get("held_out", now["held_out"]) != now["held_out"]:
        found.append("the held-out rows were changed")
    elif (before := saved.get("reference")) and now.get("reference", before) != before:
        found.append(REFERENCE_CHANGED)
    defaults = settings_with_effect(RunConfig(data=""))
    for name, before, after in changes({**defaults, **saved.get("config", {})}, now["config"]):
        found.append(f"{name} was {shown(before)} and is {shown(after)}")
    return found


def library_differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Libraries of another version than when the checkpoint was made: results may differ in the last bits."""
    before = {name: version for name, version in saved.get("libraries", {}).items() if name in LIBRARIES}
    found = changes(before, now["libraries"])
    return [f"{name} was {shown(was)} and is {shown(is_now)}" for name, was, is_now in found]
