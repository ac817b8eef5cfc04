from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import loop_at_rest
import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

import recorded  # noqa: E402

loop_at_rest.take_over()


@pytest.fixture(autouse=True)
def fixed_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, which is the working directory; the same colours everywhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("backprop_tui.elsewhere.place", lambda: "")
    # Engines that were recorded long ago would have been silent since.
    monkeypatch.setattr("backprop_tui.widgets.status.time", SimpleNamespace(time=lambda: recorded.NOW))
    return tmp_path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the application looks for runs."""
    return tmp_path / "output"


@pytest.fixture
def fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of runs is looked at a day after they were made."""
    now = SimpleNamespace(time=lambda: recorded.NOW + 90_000)
    monkeypatch.setattr("backprop_tui.widgets.run_table.time", now)
