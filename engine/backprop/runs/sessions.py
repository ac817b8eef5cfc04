"""Sessions of several runs in one output directory: the one that is not finished is found again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from backprop.core.errors import InputError, RunError
from backprop.core.paths import expand
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs.directory import RunDirectory, is_run
from backprop.runs.state import read_run

_MAY_DIFFER = frozenset({"output_dir", "run_name", "report_to", "sample_prompts", "sample_tokens"})

STARTS = "starts"
"""In a session's directory: the weights that its runs start from."""


def unfinished(config: RunConfig, multi: MultiConfig) -> Path | None:
    """The session in ``config.output_dir`` that is not done, if these are its settings; ``None`` where there is none.

    Raises:
        InputError: there are some, of other settings alone: the differences are named, for what was merged with one
            rank, base or dataset cannot go on with another.
    """
    folder = expand(config.output_dir)
    now = {**msgspec.to_builtins(config), **msgspec.to_builtins(multi)}
    refused = None
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            record = RunDirectory(path).read_record() if is_run(path) else None
        except RunError:
            continue
        if record is None or record.multi is None or (state := read_run(path)).status == "done":
            continue
        before = {**msgspec.to_builtins(record.config), **msgspec.to_builtins(record.multi)}
        changed = [name for name in now if name not in _MAY_DIFFER and before.get(name) != now[name]]
        differences = [f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in changed]
        if not differences:
            return path
        if state.ended and not state.runs:  # nothing came of it
            continue
        refused = InputError(
            f"{path} is a session that is not finished, and it is of other settings: {'; '.join(differences)}",
            hint=f"`backprop resume {path.name}` finishes it; for a new one name another directory with --output",
            code="STATE_IDENTITY_MISMATCH",
            details={"path": str(path), "differences": differences},
        )
    if refused is not None:
        raise refused
    return None


def session_of(path: Path) -> Path | None:
    """The directory of the session that the run in ``path`` is of; ``None`` of a run of its own.

    A fork or a replay of such a run is beside it, and is one of its own.
    """
    session = path.parent.parent
    if path.parent.name != "runs" or not is_run(session):
        return None
    with suppress(RunError):
        record = RunDirectory(path).read_record()
        start = Path(record.forked_from).parent if record.forked_from else session / STARTS
        if record.replays is not None or start != session / STARTS:
            return None
    return session
