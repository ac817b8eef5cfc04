"""A card that gets hot under a real engine: a compiled stand-in of NVIDIA's library plays temperatures to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.core import events as ev
from backprop.core.events import Gpu, Pacing, Paused, Resumed
from backprop.runs import journal
from backprop.runs.checkpoints import CheckpointStore
from commands import Command
from place import ENDLESS, PATIENCE, Place

SOURCE = Path(__file__).parents[1] / "fixtures" / "nvml" / "stand_in.c"
ENDLESS_RUN = ["--steps", str(ENDLESS)]


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``card(script)``: engines started from now on see a card that plays ``script``, a line every two seconds."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the NVML stand-in needs Linux and a C compiler")
    folder = tmp_path / "nvml"
    folder.mkdir()
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE], check=True)

    def play(script: str) -> None:
        (folder / "script.txt").write_text(script)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
        monkeypatch.setenv("NVML_SCRIPT", str(folder / "script.txt"))

    return play


def told(place: Place, *kinds: type[Any]) -> list[Any]:
    return [event for event in journal.read(place.run().journal).events if isinstance(event, kinds)]


def test_a_card_that_heats_up_and_cools_is_paced_held_and_let_go_on_the_screen_too(
    place: Place, card: Callable[[str], None]
) -> None:
    card("60 x2\n79\n80 x2\n90 x3\n70 x2\nlost x2\ngone\n")
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        application.wait_until(lambda: "paused" in application.lines[1], PATIENCE, "the pause")
        held = place.state()
        assert held.status == "paused"
        assert "90 °C" in held.paused_for
        application.wait_until(lambda: place.state().status == "running", PATIENCE, "going on")
        application.wait_until(lambda: "running" in application.lines[1], PATIENCE, "the pause's end on the screen")
        place.wait_step(held.step + 2)
        application.wait_until(
            lambda: any("driver" in gpu.detail.lower() for gpu in told(place, Gpu)), PATIENCE, "the driver's loss"
        )
        place.wait_step(place.state().step + 2)
        application.send("s")
        application.wait_for("stopped", PATIENCE)

    news = told(place, Pacing, Paused, Resumed, ev.Warning)
    news = [event for event in news if not (isinstance(event, ev.Warning) and "GPU" not in event.message)]
    assert [type(event) for event in news[:4]] == [Pacing, Paused, Resumed, ev.Warning]
    pacing, paused, resumed, warning = news[:4]
    assert pacing.rest == 0.5
    assert "80 °C" in pacing.reason
    assert paused.step == resumed.step == held.step
    assert "70 °C" in resumed.reason
    assert warning.code == "DEP_GPU_MONITORING_FAILED"
    assert [event for event in news[4:] if isinstance(event, ev.Warning)] == []
    levels = [gpu.level for gpu in told(place, Gpu)]
    assert [level for i, level in enumerate(levels) if i == 0 or level != levels[i - 1]] == [
        *("safe", "warm", "warning", "critical", "warm", "unknown")
    ]


def test_a_card_that_stays_too_hot_ends_the_run_and_a_checkpoint_of_its_last_step_is_there(
    place: Place, card: Callable[[str], None]
) -> None:
    card("60 x3\n95\n96\n")

    command = Command(["train", *place.flags, *ENDLESS_RUN, "--json"], place.folder)
    code, events = command.finish()

    assert code == 2
    failed = events[-1]
    assert (failed["type"], failed["code"]) == ("run_failed", "RUNTIME_GPU_TEMPERATURE_CRITICAL")
    assert "96 °C" in failed["message"]
    assert "backprop resume" in failed["hint"]
    last = [event["step"] for event in events if event["type"] == "step"][-1]
    assert [event["type"] for event in events if event["type"] in ("paused", "checkpoint_saved", "run_failed")] == [
        *("paused", "checkpoint_saved", "run_failed")
    ]
    directory = place.run()
    newest, broken = CheckpointStore(directory.checkpoints, directory.run_id).newest_valid()
    assert broken == []
    assert newest is not None
    assert newest.step == last
    assert place.state().status == "failed"
