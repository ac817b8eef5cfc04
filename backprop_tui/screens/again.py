"""A new run from an old one: what the Runs screen starts with ``fork`` and ``replay``, or takes to be changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backprop.core.definition import settings
from backprop.core.settings import RunConfig
from backprop.runs import engine_client
from backprop.runs.checkpoints import CheckpointStore
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_client import EngineClient
from backprop.runs.state import read_run


def changed_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of a run that differ from the defaults, for another run."""
    values = {name: getattr(config, name) for name in settings() if name != "run_name"}
    return {name: value for name, value in values.items() if value != settings()[name].default}


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
    """The run in ``path`` once more.

    Raises:
        BackpropError: as ``cli.options.replayed_config``.
    """
    from backprop.cli.options import replayed_config

    (config, origins), replays = replayed_config(read_run(path), {})
    forked_from = RunDirectory(path).find_record().forked_from
    return engine_client.start(config, "replay", forked_from, origins, replays=replays)
