from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import loop_at_rest
import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

import recorded  # noqa: E402

loop_at_rest.take_over()


@pytest.fixture(autouse=True)
def fixed_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, which is the working directory; a fixed zone; the same colours everywhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name in ("SSH_CONNECTION", "TMUX", "STY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("backprop_tui.elsewhere.place", lambda: "")
    # Engines that were recorded long ago would have been silent since.
    monkeypatch.setattr("backprop_tui.widgets.status.time", SimpleNamespace(time=lambda: recorded.NOW))
    time.tzset()
    yield tmp_path
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the application looks for runs."""
    return tmp_path / "output"


@pytest.fixture
def fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of runs is looked at a day after they were made."""
    now = SimpleNamespace(time=lambda: recorded.NOW + 90_000)
    monkeypatch.setattr("backprop_tui.widgets.run_table.time", now)
