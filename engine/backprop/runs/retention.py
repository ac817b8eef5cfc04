"""Which checkpoints are kept: the policy, the choice it makes, and a register of checkpoints for library users.

``chosen`` is the one place where a policy is applied. The store of a run's checkpoints (``runs.checkpoints``) and
``CheckpointManager`` both ask it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, field

from backprop.core.errors import CheckpointError
from backprop.core.files import exclusive, read_json, remove, write_json
from backprop.core.refused import refusal

Loss: TypeAlias = float | Literal["nan", "inf", "-inf"] | None
"""A held-out loss as JSON holds it."""

SCHEMA = 1
REGISTER = "checkpoints.json"


class CheckpointPolicy(Struct, frozen=True):
    """What to keep. Everything else may be pruned.

    Losses rank lowest first, the older one first among equals. A checkpoint without a loss ranks after those with
    one, the newest first, so that without any losses the newest ``keep_best_n`` stay. One whose loss is not finite
    ranks last: it diverged.
    """

    keep_best_n: Annotated[int, Meta(ge=0)] = 3
    keep_final: bool = True
    """The newest one stays, whatever its loss."""
    keep_last: Annotated[int, Meta(ge=0)] = 0
    """This many of the newest stay, whatever their loss."""
    keep_boundaries: bool = False
    """Those at the end of a run of a multi-run stay."""


class Candidate(Struct, frozen=True):
    """What a policy looks at. Candidates are given oldest first."""

    val_loss: float | None = None
    boundary: bool = False
    protected: bool = False
    """In use: resumed from, for example."""


def chosen(policy: CheckpointPolicy, candidates: Sequence[Candidate]) -> list[int]:
    """Positions of the candidates that stay, in ascending order."""
    count = len(candidates)
    ranking = sorted(range(count), key=lambda index: _rank(candidates[index], index))
    newest = max(policy.keep_last, int(policy.keep_final))
    keep = set(ranking[: policy.keep_best_n]) | set(range(max(0, count - newest), count))
    for index, candidate in enumerate(candidates):
        if candidate.protected or (policy.keep_boundaries and candidate.boundary):
            keep.add(index)
    return sorted(keep)


def _rank(candidate: Candidate, index: int) -> tuple[int, float, int]:
    if candidate.val_loss is None:
        return 1, 0.0, -index
    if not math.isfinite(candidate.val_loss):
        return 2, 0.0, -index
    return 0, candidate.val_loss, index


def loss_to_json(val_loss: float | None) -> Loss:
    """JSON has no number for a loss that is not finite: it is written as text."""
    if val_loss is None or math.isfinite(val_loss):
        return val_loss
    return "nan" if math.isnan(val_loss) else "inf" if val_loss > 0 else "-inf"


def loss_from_json(val_loss: Loss) -> float | None:
    """The loss that ``loss_to_json`` wrote."""
    return float(val_loss) if isinstance(val_loss, str) else val_loss


class RegisteredCheckpoint(Struct, kw_only=True):
    """One line of the register. ``path`` is relative to the directory."""

    run_index: int
    path: str
    val_loss: Loss = None
    boundary: bool = False


class _Register(Struct, kw_only=True):
    schema: int = SCHEMA
    checkpoints: list[RegisteredCheckpoint] = field(default_factory=list)


def _plain(path: Path) -> Path:
    """The absolute path without ``..``; links stay what they are."""
    return Path(os.path.normpath(path.absolute()))


class CheckpointManager:
    """Keep a register of checkpoints in a directory and prune them by a policy.

    Several processes may register in one directory: the register is locked while it is changed, and replaced whole.
    Only paths inside the directory can be registered, because pruning deletes what is registered.
    """

    def __init__(self, directory: str | Path, policy: CheckpointPolicy | None = None) -> None:
        self.directory = _plain(Path(directory).expanduser())
        self.policy = policy or CheckpointPolicy()

    def register(
        self, run_index: int, path: str | Path, val_loss: float | None = None, *, boundary: bool = False
    ) -> None:
        """Enter a checkpoint. The same path again replaces its entry.

        Args:
            run_index: number of the run; the order in which checkpoints count as older or newer.
            path: folder or file inside the directory: absolute, as seen from the working directory, or from it.
            val_loss: loss on held-out data.
            boundary: whether it is the end of a run.

        Raises:
            CheckpointError: the path lies outside the directory, or the register cannot be read or written.
        """
        relative = self._inside(Path(path).expanduser())
        with self._changing() as register:
            entries = [entry for entry in register.checkpoints if entry.path != relative]
            entries.append(
                RegisteredCheckpoint(
                    run_index=run_index, path=relative, val_loss=loss_to_json(val_loss), boundary=boundary
                )
            )
            register.checkpoints = sorted(entries, key=lambda entry: entry.run_index)

    def checkpoints(self) -> list[RegisteredCheckpoint]:
        """The register, oldest first. Empty where there is none."""
        return self._read().checkpoints

    def prune(self) -> list[Path]:
        """Delete what the policy does not keep and return it.

        Entries whose files are gone already do not count, and leave the register.

        Raises:
            CheckpointError: the register cannot be read or written, or files cannot be deleted.
        """
        if not self.directory.is_dir():
            return []
        with self._changing() as register:
            present = [entry for entry in register.checkpoints if (self.directory / entry.path).exists()]
            candidates = [Candidate(loss_from_json(entry.val_loss), entry.boundary) for entry in present]
            register.checkpoints = [present[index] for index in chosen(self.policy, candidates)]
            doomed = [self.directory / entry.path for entry in present if entry not in register.checkpoints]
            for path in doomed:
                remove(path)
        return doomed

    def _inside(self, path: Path) -> str:
        full = _plain(path)
        if not path.is_absolute() and self.directory not in full.parents:
            full = _plain(self.directory / path)
        if self.directory not in full.parents:
            raise CheckpointError(
                f"{path} is not inside {self.directory}",
                hint="register checkpoints that lie in the manager's directory",
                code="INPUT_VALIDATION_FAILED",
            )
        return full.relative_to(self.directory).as_posix()

    def _read(self) -> _Register:
        try:
            return read_json(self.directory / REGISTER, _Register)
        except FileNotFoundError:
            return _Register()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.directory / REGISTER} cannot be read: {error}",
                hint="move it aside; checkpoints themselves are not touched",
            ) from error

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_Register]:
        """Hold the register, and write it back if the block ends well."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with exclusive(self.directory / f".{REGISTER}.lock"):
                register = self._read()
                yield register
                write_json(self.directory / REGISTER, register)
        except OSError as error:
            what = f"the register of checkpoints in {self.directory} cannot be changed"
            raise refusal(error, what, CheckpointError) from error
