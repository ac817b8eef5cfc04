"""New runs: as they are configured, and from an old one what the Runs screen forks, replays, or takes to be changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backprop.core.definition import all_settings, multi_settings, settings
from backprop.core.multi_run import KIND
from backprop.core.settings import MultiConfig, RunConfig
from backprop.runs import engine_client
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_client import EngineClient
from backprop.runs.engine_process import WarmEngine
from backprop.runs.sessions import unfinished
from backprop.runs.state import read_run


def changed_settings(config: RunConfig, multi: MultiConfig | None = None) -> dict[str, Any]:
    """The settings of a run, or of a session, that differ from the defaults, for another one."""
    values = {name: getattr(config, name) for name in settings() if name != "run_name"}
    values |= {name: getattr(multi, name) for name in multi_settings()} if multi else {}
    return {name: value for name, value in values.items() if value != all_settings()[name].default}


def start(
    config: RunConfig, multi: MultiConfig | None, origins: dict[str, str], warm: WarmEngine | None
) -> EngineClient:
    """A new run, or a session of several; one of these settings that is not finished in its folder goes on.

    Raises:
        BackpropError: it cannot be started, or a session of other settings is not finished there.
    """
    if multi is None:
        return engine_client.start(config, origins=origins, warm=warm)
    if found := unfinished(config, multi):
        if warm is not None:
            warm.end()
        return engine_client.resume(found)
    return engine_client.start(config, KIND, origins=origins, warm=warm, multi=multi)


def fork(path: Path) -> EngineClient:
    """A new run from the newest checkpoint of the run in ``path``, with its settings.

    Raises:
        BackpropError: it has no checkpoint that verifies, or its settings cannot be used.
    """
    from backprop.cli.options import forked_config

    directory = RunDirectory(path)
    record = directory.find_record()
    checkpoint = CheckpointStore(directory.checkpoints, record.run_id).require_valid()[0]
    config, origins = forked_config(record.config, record.run_id, {})
    return engine_client.start(config, "train", str(checkpoint.path), origins)


def replay(path: Path) -> EngineClient:
    """The run in ``path`` once more; takes the seconds in which its model and rows are compared with those of then.

    Raises:
        BackpropError: as ``cli.options.replayed_config`` and ``engine_jobs.require_repeatable``.
    """
    from backprop.cli.options import replayed_config
    from backprop.runs.engine_jobs import require_repeatable

    (config, origins), replays = replayed_config(read_run(path), {})
    forked_from = RunDirectory(path).find_record().forked_from
    require_repeatable(config, replays, forked_from)
    return engine_client.start(config, "replay", forked_from, origins, replays=replays)
