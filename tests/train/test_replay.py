"""A run is repeated from what its directory says: the same curve, or a refusal that names what is not the same."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs_in_process
from backprop.cli.options import replayed_config
from backprop.core import events as ev
from backprop.core.errors import CheckpointError
from backprop.core.settings import RunConfig
from backprop.runs.compare import compare
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from backprop.train.__main__ import train
from msgspec.structs import replace


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunDirectory], list[ev.Event]]:
    """Has the engine work on a run in this process, its journal written as it goes."""

    def run(directory: RunDirectory, *how: str, ask: runs_in_process.Ask = lambda events: []) -> list[ev.Event]:
        monkeypatch.setattr(sys, "argv", ["engine", str(directory.path), *how])
        events: list[ev.Event] = []
        already = read_run(directory.path).last_seq

        def emit(event: ev.Event) -> None:
            events.append(event)
            event.run_id, event.seq, event.time = directory.run_id, already + len(events), time.time()
            with directory.journal.open("ab") as file:
                file.write(ev.encode(event))

        train(directory, emit, runs_in_process.Asking(events, ask))
        return events

    return run


def replay_of(directory: RunDirectory, **given: Any) -> RunDirectory:
    (config, origins), replays = replayed_config(read_run(directory.path), given)
    return RunDirectory.create(config, "replay", "", origins, replays)


def compared(events: list[ev.Event]) -> ev.ReplayCompared:
    (found,) = runs_in_process.of(events, ev.ReplayCompared)
    return found


def edit(path: Path, line: int) -> None:
    rows = path.read_text().splitlines()
    row = json.loads(rows[line - 1])
    row["messages"][1]["content"] += " Or so."
    rows[line - 1] = json.dumps(row)
    path.write_text("\n".join(rows) + "\n")


def test_a_replay_takes_the_same_steps_and_another_row_is_refused_by_its_line(
    tiny_config: RunConfig, work: Callable[..., list[ev.Event]]
) -> None:
    config = replace(tiny_config, held_out="0.2", learning_rate=None, lora_dropout=0.1)
    first = RunDirectory.create(config)
    work(first)

    again = replay_of(first)
    events = work(again)
    assert compared(events).replayed == first.run_id
    assert (compared(events).steps, compared(events).parted_at) == (config.steps, None)
    a, b = read_run(first.path), read_run(again.path)
    assert list(a.curves.loss) == list(b.curves.loss)
    assert (b.kind, b.parent) == ("replay", str(first.path))
    assert [each.key for each in compare(a, b) if each.group in ("set", "data", "environment", "code")] == []

    other = replay_of(first, learning_rate="0.02")
    assert other.read_record().replays.overrides == ["learning_rate"]  # type: ignore[union-attr]
    found = compared(work(other))
    assert found.parted_at == 2  # the first loss is from before any step
    assert found.loss != found.replayed_loss
    assert [(each.key, each.b) for each in compare(a, read_run(other.path)) if each.group == "set"] == [
        ("learning_rate", 0.02)
    ]

    edit(Path(config.data), 17)
    with pytest.raises(CheckpointError, match=r"chats\.jsonl: line 17 was changed$") as caught:
        work(replay_of(first))
    assert caught.value.code == "STATE_IDENTITY_MISMATCH"
    meant = work(replay_of(first, data=config.data))
    assert compared(meant).steps == config.steps


def test_a_replay_of_an_extended_run_says_why_its_curve_parts_and_takes_no_setting_for_changed(
    tiny_config: RunConfig, work: Callable[..., list[ev.Event]]
) -> None:
    first = RunDirectory.create(replace(tiny_config, steps=2))
    assert "SCHEDULE_CHANGED" not in [each.code for each in runs_in_process.of(work(first), ev.Warning)]
    work(first, "extend", "4")
    assert (first.read_record().config.steps, first.read_record().config.epochs) == (4, "auto")

    warnings = [each.code for each in runs_in_process.of(work(replay_of(first)), ev.Warning)]
    assert "SCHEDULE_CHANGED" in warnings
    assert "SETTINGS_CHANGED" not in warnings
