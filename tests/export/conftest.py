"""A short run on the tiny language model, with a result and a checkpoint, and adapters of every kind on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from backprop.runs.directory import RunDirectory
from forked_engines import EngineHost
from trained_runs import run_of_four_steps


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory, engine_host: EngineHost) -> RunDirectory:
    folder = tmp_path_factory.mktemp("exported")
    return run_of_four_steps(folder, engine_host, lora_r=4, sample_prompts=["Who waits?"])[1]


@pytest.fixture
def trained(trained_once: RunDirectory, tmp_path: Path) -> RunDirectory:
    """The directory of a run of four steps, with checkpoints; a copy of this test alone."""
    target = tmp_path / "runs" / trained_once.run_id
    shutil.copytree(trained_once.path, target, ignore=shutil.ignore_patterns("control", "exports"))
    return RunDirectory(target)


@pytest.fixture
def base(trained_once: RunDirectory) -> Path:
    """The folder of the model that the run was trained on."""
    return Path(str(trained_once.read_record().config.model))
