"""Sessions of several runs in one output directory: the one that is not finished is found again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from backprop.core.errors import InputError, RunError
from backprop.core.multi_run import KIND
from backprop.core.paths import expand
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs.directory import RunDirectory, RunRecord, is_run
from backprop.runs.state import read_run

_MAY_DIFFER = frozenset({"output_dir", "run_name", "report_to", "sample_prompts", "sample_tokens"})


def unfinished(config: RunConfig, multi: MultiConfig) -> Path | None:
    """The session in ``config.output_dir`` that is not done, if these are its settings; ``None`` where there is none.

    Raises:
        InputError: there are some, of other settings alone: the differences are named, for what was merged with one
            rank, base or dataset cannot go on with another.
    """
    others: list[tuple[Path, list[str]]] = []
    for path in _sessions(expand(config.output_dir)):
        record = RunDirectory(path).read_record()
        if read_run(path).status == "done":
            continue
        differences = _differences(record, config, multi)
        if not differences:
            return path
        others.append((path, differences))
    if not others:
        return None
    path, differences = others[0]
    raise InputError(
        f"{path} is a session that is not finished, and it is of other settings: {'; '.join(differences)}",
        hint=f"`backprop resume {path.name}` finishes it; for a new one name another directory with --output",
        code="STATE_IDENTITY_MISMATCH",
        details={"path": str(path), "differences": differences},
    )


def session_of(path: Path) -> Path | None:
    """The directory of the session that the run in ``path`` is of; ``None`` of a run of its own.

    A fork or a replay of such a run is beside it, and is one of its own.
    """
    session = path.parent.parent
    if path.parent.name != "runs" or not is_run(session):
        return None
    with suppress(RunError):
        record = RunDirectory(path).read_record()
        start = Path(record.forked_from).parent if record.forked_from else session / "starts"
        if record.replays is not None or start != session / "starts":
            return None
    return session


def _sessions(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        with suppress(RunError):
            if is_run(path) and RunDirectory(path).read_record().kind == KIND:
                found.append(path)
    return found


def _differences(record: RunRecord, config: RunConfig, multi: MultiConfig) -> list[str]:
    before = {**_plain(record.config), **_plain(record.multi)}
    now = {**_plain(config), **_plain(multi)}
    changed = [name for name in now if name not in _MAY_DIFFER and before.get(name) != now[name]]
    return [f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in changed]


def _plain(settings: RunConfig | MultiConfig | None) -> dict[str, Any]:
    return {} if settings is None else dict(msgspec.to_builtins(settings))
