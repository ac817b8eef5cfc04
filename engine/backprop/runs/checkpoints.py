"""The checkpoints of one run on disk: written aside, verified by a manifest, put in place by one rename.

::

    checkpoints/
        step-00000100/            a checkpoint: its files and manifest.json
        .step-00000200.partial/   being written; after a crash, removed at the next start
        .step-00000050.deleting/  being deleted; the same

What the files mean is the writer's business (``train.checkpoint``). A folder is a checkpoint of this run if its
manifest says so and every file has the length and SHA-256 that the manifest gives. The manifest is written last. So a
crash, a full disk or a power cut at any moment leaves the checkpoints that were there before. Order comes from the step
in the manifest, never from file times.

One process works on a run's checkpoints: the holder of the run's lock. Reading needs no lock.
"""

from __future__ import annotations

import errno
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import Struct, field

from backprop.core.errors import BackpropError, CheckpointError, InputError
from backprop.core.events import Count
from backprop.core.files import flush_folder, new_folder, read_json, remove, sha256, write_json
from backprop.core.refused import is_full
from backprop.runs.describe import bytes_text
from backprop.runs.directory import RunDirectory
from backprop.runs.retention import Candidate, CheckpointPolicy, Loss, chosen, loss_from_json, loss_to_json

SCHEMA = 1
_AGAIN = "a later save of the run tries again, where none comes `backprop resume RUN`"
MANIFEST = "manifest.json"
REQUESTED = "requested"
"""The reason for a checkpoint that a person asked for."""
SPARE_BYTES = 16 * 2**20
"""Room left on the disk beside a checkpoint, for the journal and the log."""

_NAME = re.compile(r"step-\d{8,}(\.\d+)?")
_LEFTOVER = re.compile(r"\.step-\d{8,}(\.\d+)?\.(partial|deleting)")


class FileFacts(Struct, frozen=True):
    """What a manifest says of one file."""

    bytes: Count
    sha256: str


class Manifest(Struct, kw_only=True):
    """``manifest.json``: what a checkpoint is, and how to tell that it is whole."""

    schema: int = SCHEMA
    run_id: str
    step: Count
    attempt: Count = 1
    """Counts the times this step was saved: after going back to an older checkpoint, steps are taken again."""
    created: float
    """Seconds since the Unix epoch, for people; nothing is ordered by it."""
    reason: str = ""
    boundary: bool = False
    val_loss: Loss = None
    """Held-out loss at this step; text (``"nan"``) where it was not finite."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What the checkpoint depends on: hashes of model and tokenizer, data, configuration, library versions."""
    files: dict[str, FileFacts]


class Checkpoint(Struct, frozen=True):
    """A folder whose manifest could be read. ``verify`` says whether the rest is whole."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.manifest.step

    @property
    def val_loss(self) -> float | None:
        """Held-out loss at this step; ``None`` where it was not measured."""
        return loss_from_json(self.manifest.val_loss)

    @property
    def bytes(self) -> int:
        """Size of all files that the manifest lists."""
        return sum(facts.bytes for facts in self.manifest.files.values())


class BrokenCheckpoint(Struct, frozen=True):
    """A folder that looks like a checkpoint and must not be used."""

    path: Path
    problems: list[str]


class CheckpointStore:
    """Read and write the checkpoints of run ``run_id`` in ``directory``. Creating the object touches nothing."""

    def __init__(self, directory: Path, run_id: str) -> None:
        self.directory = directory.absolute()
        self.run_id = run_id

    @classmethod
    def of_run(cls, run: RunDirectory) -> CheckpointStore:
        """That of ``run``, whose record may be damaged.

        Raises:
            RunError: neither record nor journal says which run it is.
        """
        return cls(run.checkpoints, run.find_record().run_id)

    def remove_leftovers(self) -> list[Path]:
        """Delete what a crash left half written or half deleted. Other people's files stay. Call it at the start."""
        found = [path for path in self._folders() if _LEFTOVER.fullmatch(path.name)]
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        return found

    def require_space(self, needed: int, otherwise: str = _AGAIN) -> None:
        """Check that ``needed`` bytes fit on the disk; ``otherwise`` is what can be done but to free space.

        Raises:
            CheckpointError: they do not (``RUNTIME_DISK_FULL``), or the directory cannot be used.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            require_space(self.directory, needed, "a checkpoint", otherwise, CheckpointError)
        except OSError as error:
            raise self._failed(error) from error

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        needed: int = 0,
        reason: str = "",
        identity: dict[str, Any] | None = None,
        val_loss: float | None = None,
        boundary: bool = False,
    ) -> Checkpoint:
        """Make a checkpoint: ``write`` puts the files into the empty folder it is given.

        Where this step has a checkpoint already, the new one gets a name of its own; ``prune`` removes the old one.

        Args:
            step: optimizer steps taken.
            write: writes the files; folders inside are allowed.
            needed: bytes that will be written, looked for on the disk before anything is.
            val_loss: held-out loss at this step.
            boundary: whether a run of a multi-run ends here.

        Raises:
            CheckpointError: nothing was saved, and what was there before still is. The message says why.
        """
        self.require_space(needed)
        name, attempt = self._free_name(step)
        try:
            with new_folder(self.directory / name) as staged:
                write(staged)
                manifest = Manifest(
                    run_id=self.run_id,
                    step=step,
                    attempt=attempt,
                    created=time.time(),
                    reason=reason,
                    boundary=boundary,
                    val_loss=loss_to_json(val_loss),
                    identity=identity or {},
                    files=_measured(staged),
                )
                write_json(staged / MANIFEST, manifest)
            flush_folder(self.directory.parent)
        except OSError as error:
            raise self._failed(error) from error
        return Checkpoint(self.directory / name, manifest)

    def read(self, path: Path) -> Checkpoint:
        """The checkpoint at ``path`` by its manifest alone.

        Raises:
            CheckpointError: there is no manifest, it cannot be read, or it belongs to another run.
        """
        manifest = read_manifest(path)
        if manifest.run_id != self.run_id:
            raise CheckpointError(f"{path}: belongs to run {manifest.run_id}, not to {self.run_id}")
        return Checkpoint(path, manifest)

    def verify(self, path: Path) -> list[str]:
        """What is wrong with the checkpoint at ``path``, each file read whole. Empty where it can be trusted."""
        try:
            checkpoint = self.read(path)
        except CheckpointError as error:
            return [error.message.removeprefix(f"{path}: ")]
        problems = (_file_problem(path, name, facts) for name, facts in checkpoint.manifest.files.items())
        return [problem for problem in problems if problem]

    def checkpoints(self) -> list[Checkpoint]:
        """Checkpoints with a readable manifest, oldest first by step; files are not looked at."""
        return self._readable()[0]

    def of_step(self, step: int) -> Checkpoint | None:
        """The latest one of step ``step`` that verifies."""
        of_it = (each for each in reversed(self.checkpoints()) if each.step == step)
        return next((each for each in of_it if not self.verify(each.path)), None)

    def require_step(self, step: int) -> Checkpoint:
        """As ``of_step``, where there must be one.

        Raises:
            InputError: there is none, or it is broken; the hint names the steps that there are.
        """
        if (checkpoint := self.of_step(step)) is not None:
            return checkpoint
        there = ", ".join(str(checkpoint.step) for checkpoint in self.checkpoints()) or "none"
        raise InputError(
            f"run {self.run_id} has no good checkpoint of step {step}", hint=f"steps with a checkpoint: {there}"
        )

    def best(self, last: int) -> Checkpoint | None:
        """The one with the lowest held-out loss up to step ``last`` among those that verify, the first of equals."""
        losses = [(each.val_loss, each.step, each) for each in self.checkpoints() if each.val_loss is not None]
        for loss, step, checkpoint in sorted(losses, key=lambda each: each[:2]):
            if step <= last and math.isfinite(loss) and not self.verify(checkpoint.path):
                return checkpoint
        return None

    def newest_valid(self) -> tuple[Checkpoint | None, list[BrokenCheckpoint]]:
        """The newest checkpoint that verifies, and those passed over on the way to it."""
        readable, broken = self._readable()
        for checkpoint in reversed(readable):
            problems = self.verify(checkpoint.path)
            if not problems:
                return checkpoint, broken
            broken.append(BrokenCheckpoint(checkpoint.path, problems))
        return None, broken

    def require_valid(self) -> tuple[Checkpoint, list[BrokenCheckpoint]]:
        """As ``newest_valid``, where there must be one.

        Raises:
            CheckpointError: there is none, or none verifies; the message names each with its problem.
        """
        checkpoint, broken = self.newest_valid()
        if checkpoint is not None:
            return checkpoint, broken
        if not broken:
            raise CheckpointError(
                f"{self.directory} holds no checkpoint", hint="start the run again from the beginning"
            )
        listed = "; ".join(f"{item.path.name}: {', '.join(item.problems)}" for item in broken)
        raise CheckpointError(
            f"no checkpoint in {self.directory} can be used. {listed}",
            hint="restore the files from a backup, or start a new run",
            details={"broken": {item.path.name: item.problems for item in broken}},
        )

    def prune(self, policy: CheckpointPolicy, *, in_use: Iterable[int] = ()) -> list[Checkpoint]:
        """Delete what the policy does not keep, and return it.

        The newest that verifies always stays, and so do the steps ``in_use`` (resumed from) and those that a person
        asked for. Ones newer than it, which do not verify, are left alone and do not count. Without one that verifies
        nothing is deleted. Earlier attempts at the newest's step go.

        Raises:
            CheckpointError: files cannot be deleted.
        """
        newest, broken = self.newest_valid()
        if newest is None:
            return []
        bad = {item.path for item in broken}
        present = [item for item in self.checkpoints() if item.path not in bad]
        doomed = [item for item in present if item.step == newest.step and item.path != newest.path]
        candidates = [item for item in present if item not in doomed]
        protected = {newest.step, *in_use}
        facts = [
            Candidate(
                item.val_loss, item.manifest.boundary, item.step in protected or item.manifest.reason == REQUESTED
            )
            for item in candidates
        ]
        keep = set(chosen(policy, facts))
        doomed += [item for index, item in enumerate(candidates) if index not in keep]
        try:
            for checkpoint in doomed:
                remove(checkpoint.path)
        except OSError as error:
            raise self._failed(error) from error
        return doomed

    def _folders(self) -> list[Path]:
        try:
            return sorted(path for path in self.directory.iterdir() if path.is_dir() and not path.is_symlink())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._failed(error) from error

    def _readable(self) -> tuple[list[Checkpoint], list[BrokenCheckpoint]]:
        good: list[Checkpoint] = []
        bad: list[BrokenCheckpoint] = []
        for path in self._folders():
            if not _NAME.fullmatch(path.name):
                continue
            try:
                good.append(self.read(path))
            except CheckpointError as error:
                bad.append(BrokenCheckpoint(path, [error.message.removeprefix(f"{path}: ")]))
        return sorted(good, key=lambda item: (item.step, item.manifest.attempt)), bad

    def _free_name(self, step: int) -> tuple[str, int]:
        """A name that is not taken, and the number of this attempt: above every earlier one."""
        usual = f"step-{step:08d}"
        names = [path.name for path in self._folders() if _NAME.fullmatch(path.name)]
        taken = [int(name.partition(".")[2] or 1) for name in names if name.partition(".")[0] == usual]
        attempt = max(taken, default=0) + 1
        return usual + (f".{attempt}" if attempt > 1 else ""), attempt

    def _failed(self, error: OSError) -> CheckpointError:
        full = is_full(error) or error.errno == errno.EFBIG
        hint = "free some space" if full else "check that the directory exists and can be written"
        return CheckpointError(
            f"the checkpoint directory {self.directory} could not be changed: {error.strerror or error}",
            hint=f"{hint}; earlier checkpoints are as they were",
            code="RUNTIME_DISK_FULL" if full else "RUNTIME_IO_FAILED",
            retryable=True,
            details={"path": str(self.directory)},
        )


def require_space(folder: Path, needed: int, what: str, otherwise: str, kind: type[BackpropError]) -> None:
    """Check that ``needed`` bytes fit on the disk of ``folder``.

    Args:
        what: what they are for, and ``otherwise`` what can be done but to free space, in words.

    Raises:
        BackpropError: of ``kind``: ``RUNTIME_DISK_FULL``, with the numbers.
        OSError: the disk cannot be asked.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise kind(
            f"no room for {what} in {folder}: it needs {bytes_text(needed)} and {bytes_text(SPARE_BYTES)} to spare, "
            f"{bytes_text(free)} are free",
            hint=f"free some space; {otherwise}",
            code="RUNTIME_DISK_FULL",
            retryable=True,
            details={"path": str(folder), "needed": needed, "free": free},
        )


def read_manifest(path: Path) -> Manifest:
    """What the checkpoint at ``path`` is, of whichever run.

    Raises:
        CheckpointError: there is no manifest, or it cannot be read.
    """
    try:
        manifest = read_json(path / MANIFEST, Manifest)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: {MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: {MANIFEST} cannot be read: {why}") from error
    if manifest.schema > SCHEMA:
        raise CheckpointError(f"{path}: written by a newer version (schema {manifest.schema})")
    return manifest


def _measured(folder: Path) -> dict[str, FileFacts]:
    """Length and hash of every file below ``folder`` by its relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): FileFacts(path.stat().st_size, sha256(path)) for path in files}


def _file_problem(folder: Path, name: str, facts: FileFacts) -> str:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        return f"{name} points outside the checkpoint"
    try:
        length = (folder / pure).stat().st_size
        if length != facts.bytes:
            return f"{name} has {length} bytes instead of {facts.bytes}"
        if sha256(folder / pure) != facts.sha256:
            return f"{name} was altered (its SHA-256 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return ""
