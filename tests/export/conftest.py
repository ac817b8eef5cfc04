"""A short run on the tiny language model, with a result and a checkpoint, and adapters of every kind on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from backprop.runs.directory import RunDirectory
from backprop.trainer import Trainer
from tiny_language_model import write_model, write_rows


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "DATA", "CONFIG"):
            patch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
        model = write_model(folder / "tiny")
        settings: dict[str, Any] = {"lora_r": 4, "backend": "cpu", "learning_rate": 1e-2, "save_steps": 2}
        trainer = Trainer(str(model), output_dir=str(folder / "out"), sample_prompts=["Who waits?"], **settings)
        run = trainer.train(write_rows(folder / "rows.jsonl", 8), steps=4)
    return RunDirectory(Path(run.output_path).parent)


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
