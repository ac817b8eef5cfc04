"""A card that gets hot under a real engine: a compiled stand-in of NVIDIA's library plays temperatures to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from backprop.core import events as ev
from backprop.core.events import Gpu, Pacing, Paused, Resumed
from backprop.runs import journal
from backprop.runs.checkpoints import CheckpointStore
from commands import Command
from patience import PATIENCE
from place import ENDLESS, Place

SOURCE = Path(__file__).parents[1] / "fixtures" / "nvml" / "stand_in.c"
ENDLESS_RUN = ["--steps", str(ENDLESS)]


class Card:
    """The card that engines started from now on see. It plays a script, a line every two seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def plays(self, script: str) -> None:
        (self._folder / "script.txt").write_text(script)

    def may_go_on(self, name: str) -> None:
        """Let the line go that stays ``until=name``."""
        (self._folder / name).touch()


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the NVML stand-in needs Linux and a C compiler")
    folder = tmp_path / "nvml"
    folder.mkdir()
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", SOURCE], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    monkeypatch.setenv("NVML_SCRIPT", str(folder / "script.txt"))
    return Card(folder)


def told(place: Place, *kinds: type[Any]) -> list[Any]:
    return [event for event in journal.read(place.run().journal).events if isinstance(event, kinds)]


def test_a_card_that_heats_up_and_cools_is_paced_held_and_let_go_on_the_screen_too(place: Place, card: Card) -> None:
    card.plays("60 until=steps\n79\n80 until=paced\n90 until=seen\n70 until=cooled\nlost\ngone\n")
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        place.wait_step(2)
        card.may_go_on("steps")
        application.wait_until(lambda: told(place, Pacing) != [], PATIENCE, "the rests")
        card.may_go_on("paced")
        application.wait_until(lambda: "paused" in application.lines[1], PATIENCE, "the pause")
        held = place.state()
        assert held.status == "paused"
        assert "90 °C" in held.paused_for
        card.may_go_on("seen")
        application.wait_until(lambda: place.state().status == "running", PATIENCE, "going on")
        application.wait_until(lambda: "running" in application.lines[1], PATIENCE, "the pause's end on the screen")
        place.wait_step(held.step + 2)
        card.may_go_on("cooled")
        application.wait_until(
            lambda: any("driver" in gpu.detail.lower() for gpu in told(place, Gpu)), PATIENCE, "the driver's loss"
        )
        place.wait_step(place.state().step + 2)
        application.send("s")
        application.wait_for("stopped", PATIENCE)

    news = told(place, Pacing, Paused, Resumed, ev.Warning)
    news = [event for event in news if not (isinstance(event, ev.Warning) and "GPU" not in event.message)]
    pacing = news[0]
    assert isinstance(pacing, Pacing)
    assert pacing.rest == 0.5
    assert "80 °C" in pacing.reason
    others = [event for event in news if not isinstance(event, Pacing)]  # later ones are shorter
    assert [type(event) for event in others] == [Paused, Resumed, ev.Warning]
    paused, resumed, warning = others
    assert paused.step == resumed.step == held.step
    assert "70 °C" in resumed.reason
    assert warning.code == "DEP_GPU_MONITORING_FAILED"
    levels = [gpu.level for gpu in told(place, Gpu)]
    assert [level for i, level in enumerate(levels) if i == 0 or level != levels[i - 1]] == [
        *("safe", "warm", "warning", "critical", "warm", "unknown")
    ]


def test_a_card_that_stays_too_hot_ends_the_run_and_a_checkpoint_of_its_last_step_is_there(
    place: Place, card: Card
) -> None:
    card.plays("60 until=steps\n95\n96\n")

    command = Command(["train", *place.flags, *ENDLESS_RUN, "--json"], place.folder)
    command.until(lambda event: event["type"] == "step")
    card.may_go_on("steps")
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
