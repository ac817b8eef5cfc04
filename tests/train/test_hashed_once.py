"""The files of a model are read once where a run is continued or forked: by whoever starts its engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from backprop.core.events import Event, RunFinished
from backprop.core.settings import RunConfig
from backprop.runs import engine_client, model_files
from backprop.runs.checkpoints import CheckpointStore, read_manifest
from backprop.runs.directory import RunDirectory
from backprop.train.__main__ import train as train_as_told
from msgspec.structs import replace
from runs_in_process import Asking, of, train

CONTINUED: dict[str, Callable[[RunDirectory, RunConfig], Any]] = {
    "extend": lambda run, config: engine_client.extend(run.path, 6),
    "fork": lambda run, config: engine_client.start(
        config, forked_from=str(CheckpointStore(run.checkpoints, run.run_id).require_valid()[0].path)
    ),
}


@pytest.mark.parametrize("begin", CONTINUED.values(), ids=CONTINUED.keys())
def test_the_engine_takes_the_hashes_that_were_compared(
    begin: Callable[[RunDirectory, RunConfig], Any], tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, directory = train(tiny_config, [])
    with directory.hold_lock():  # as an engine did that has gone
        pass
    hashed: list[str] = []
    file_hash = model_files.file_hash

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return file_hash(path)

    told: list[list[str]] = []
    monkeypatch.setattr(model_files, "file_hash", counted)

    def start(words: Sequence[str], *_: Any, **__: Any) -> Any:
        told.append(list(words))
        return SimpleNamespace(pid=os.getpid(), stdout=None)

    monkeypatch.setattr(engine_client, "start_engine", start)
    begin(directory, replace(tiny_config, steps=2))
    (words,) = told
    run, events = RunDirectory(Path(words[0])), list[Event]()
    monkeypatch.setattr(sys, "argv", ["engine", *words])
    train_as_told(run, events.append, Asking(events))
    assert of(events, RunFinished)
    assert len(hashed) == len(set(hashed)) > 2
    manifest = read_manifest(CheckpointStore(run.checkpoints, run.run_id).require_valid()[0].path)
    assert manifest.identity["model"] == model_files.model_hashes(Path(tiny_config.model))
