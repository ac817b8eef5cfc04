from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from backprop.core import events as ev
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A new run's directory, before its engine started."""
    return RunDirectory.create(RunConfig(data="rows.jsonl", output_dir=str(tmp_path / "out")))


@pytest.fixture
def story(directory: RunDirectory) -> Callable[..., None]:
    """Writes events to the run's journal, stamped in order."""
    count = 0

    def write(*events: ev.Event) -> None:
        nonlocal count
        with directory.journal.open("ab") as file:
            for event in events:
                count += 1
                event.run_id, event.seq, event.time = directory.run_id, count, 1000.0 + count
                file.write(ev.encode(event))

    return write
