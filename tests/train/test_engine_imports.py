"""What a real engine imports until its run is over: seconds before the first step are for what training needs."""

from __future__ import annotations

import gc
import re

import pytest
from backprop.core.events import RunFinished
from backprop.core.settings import RunConfig
from backprop.runs import engine_client
from backprop.worker.setup import importing
from msgspec.structs import replace


def test_an_engine_imports_no_trainer_library(tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python itself then writes each module that it imports to the engine's log.
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    watched = engine_client.start(replace(tiny_config, steps=1, sample_prompts=["Who waits?"], sample_tokens=2))
    events = []
    while not watched.over:
        events += watched.read(1.0)
    watched.wait()
    assert isinstance(events[-1], RunFinished)

    log = watched.directory.log.read_text()
    imported = set(re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", log, re.MULTILINE))

    assert {"torch", "transformers", "peft", "backprop.train.trainer"} <= imported
    assert imported.isdisjoint({"trl", "datasets", "transformers.trainer", "textual", "bitsandbytes.functional"})


def test_what_an_engine_imports_is_not_looked_through_for_garbage_then_or_later() -> None:
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
