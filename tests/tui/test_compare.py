"""Several runs beside each other on the Runs screen, and what is begun from one."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import recorded
from acting import shown_path, text_of, until
from backprop.core.errors import RunError
from backprop.runs import engine_client, engine_jobs
from backprop.runs.directory import RunDirectory
from backprop.runs.state import RunState, read_run
from textual.pilot import Pilot

from backprop_tui.app import BackpropApp
from backprop_tui.charts.overlay import MOST, STYLES, Overlaid, OverlayPlot
from backprop_tui.screens.runs.screen import RunsScreen


def curve(output: Path, place: int, steps: int = 60, total: int = 60, **settings: Any) -> recorded.Recorder:
    """A run whose losses lie a quarter higher for each ``place``; it is older, too, and slower."""
    config = msgspec.structs.replace(recorded.demo_like(output), run_name=f"run {place}", steps=total, **settings)
    run = recorded.Recorder(output, f"{place}{'abcdef'[place]}0000000000", config, recorded.NOW - 1000 * place)
    run.start()
    for event in recorded.make_steps(1, steps, total, seed=place, seconds=1.0 + place):
        loss = (event.loss or 0.0) + 0.25 * place - 0.1 * math.sin(event.step / 6 + place)
        run.write(msgspec.structs.replace(event, loss=loss))
    run.finish(steps, 1.0)
    return run


def five(output: Path) -> None:
    for place, (steps, total) in enumerate(((60, 60), (60, 60), (40, 60), (60, 60), (25, 30))):
        curve(output, place, steps, total, learning_rate=1e-3 / (place + 1))


async def compared(pilot: Pilot[None], count: int) -> RunsScreen:
    """Mark the first ``count`` runs and put them beside each other."""
    screen = pilot.app.screen
    assert isinstance(screen, RunsScreen)
    await until(lambda: screen.found is not None and len(screen.found) >= count, "the runs")
    await pilot.press(*["space"] * count, "v")
    await until(lambda: len(screen._comparison.plot.runs) == count, "the curves")
    await pilot.pause()
    return screen


@pytest.mark.parametrize("size", [(80, 24), (140, 45)])
async def test_marked_runs_are_overlaid_each_with_its_number_stroke_and_end(
    output: Path, size: tuple[int, int]
) -> None:
    five(output)
    async with BackpropApp().run_test(size=size) as pilot:
        await compared(pilot, 5)
        rows = text_of(pilot.app).split("\n")[1:]
        assert "loss of 5 runs" in rows[1]
        legend = rows[2:7]
        assert [row.split()[0] for row in legend] == list("12345")
        assert ["after 40 steps" in row for row in legend] == [False, False, True, False, False]
        strokes = {row[3:9] for row in legend}
        assert len(strokes) == 5  # told apart without colour
        body = [row[9:] for row in rows[7:-2]]
        for number, end in (("1", 1.0), ("3", 40 / 60), ("5", 25 / 60)):
            last = max(row.rfind(number) for row in body)
            assert last / (size[0] - 10) <= end + 0.03  # a shorter run ends where it ended
            assert any(number in row for row in body)
        assert rows[-1].startswith(" esc back  tab differences")
        await pilot.press("a")
        assert "by time" in text_of(pilot.app).split("\n")[2]
        assert "1:00" in text_of(pilot.app).split("\n")[-2]
        await pilot.press("a", "l", "minus")
        assert "raw, log, by tokens" in text_of(pilot.app).split("\n")[2]
        await pilot.press("x", "p", "n")  # keys of the list, which is not seen
        assert isinstance(pilot.app.screen, RunsScreen)
        assert "by tokens" in text_of(pilot.app).split("\n")[2]
        await pilot.press("escape")
        assert "marked" in text_of(pilot.app).split("\n")[1]
        assert "loss of" not in text_of(pilot.app)


async def test_of_two_runs_what_differs_is_beside_the_curves_where_there_is_room(output: Path) -> None:
    five(output)
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        screen = await compared(pilot, 2)
        await until(lambda: "0.0005" in text_of(pilot.app), "the differences")
        for words in ("loss of 2 runs", "what you set", "learning_rate", "0.0005"):
            assert words in text_of(pilot.app)
        await pilot.resize_terminal(80, 24)
        await until(lambda: "what you set" not in text_of(pilot.app), "the curves alone")
        await pilot.resize_terminal(60, 16)
        await until(
            lambda: "tab differences" in text_of(pilot.app), "the way to the differences, also where it is narrow"
        )
        await pilot.press("tab")
        await until(lambda: "learning_rate" in text_of(pilot.app), "the differences alone")
        await until(lambda: "tab curves" in text_of(pilot.app), "the way back")
        assert "loss of" not in text_of(pilot.app)
        assert "l log" not in text_of(pilot.app), "it changes nothing that is seen"
        assert [each.key for each in screen._comparison.differences.found if each.group == "set"] == [
            "learning_rate",
            "run_name",
        ]


@pytest.mark.parametrize("size", [(80, 24), (140, 45)])
async def test_of_five_runs_what_differs_has_a_column_for_each(output: Path, size: tuple[int, int]) -> None:
    five(output)
    async with BackpropApp().run_test(size=size) as pilot:
        screen = await compared(pilot, 5)
        await pilot.press("tab")
        await until(lambda: "learning_rate" in text_of(pilot.app), "the differences")
        line = next(line for line in text_of(pilot.app).splitlines() if "learning_rate" in line)
        assert line.split() == ["learning_rate", "0.001", "0.0005", "0.000333333", "0.00025", "0.0002"]
        head = next(line for line in text_of(pilot.app).splitlines() if "1 0a000000" in line)
        starts = [head.index(f"{number} {place}") for place, number in enumerate("12345")]
        assert [value.start() for value in re.finditer(r"\S+", line)][1:] == starts, "each below its run"
        found = {each.key: each for each in screen._comparison.differences.found}
        assert found["learning_rate"].group == "set"
        assert found["steps"].values == [60, 60, 60, 60, 30], "what is the same of the first two is in all columns"


async def test_comparing_needs_two_runs_and_shows_no_more_than_can_be_told_apart(output: Path) -> None:
    for place in range(6):
        curve(output, place, 5)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: screen.found is not None and len(screen.found) == 6, "the runs")
        await pilot.press("space", "v")
        assert screen._comparison.paths == []
        assert any("mark two runs" in n.message for n in pilot.app._notifications)
        assert "v compare" in text_of(pilot.app).split("\n")[-1]
    assert len({ink for ink, _ in STYLES}) == len({stroke for _, stroke in STYLES}) == MOST


async def test_a_spike_of_a_hundred_thousand_steps_is_still_drawn(output: Path) -> None:
    run = curve(output, 0, 3)
    state = read_run(run.directory.path)
    del state.curves.step[:], state.curves.loss[:], state.curves.seconds[:], state.curves.tokens_per_second[:]
    for step in range(1, 100_001):
        state.curves.step.append(step)
        state.curves.loss.append(9.0 if step == 61_803 else 1.0)
        state.curves.seconds.append(1.0)
        state.curves.tokens_per_second.append(10.0)
    long, short = Overlaid(state), Overlaid(read_run(curve(output, 1, 30).directory.path))
    plot = OverlayPlot()
    plot.show([long, short])
    plot.chosen_smoothing = 0
    rows = ["".join(text for text, _ in row) for row in plot.rows(80, 24)]
    at = 8 + round(0.61803 * 72)
    assert any(row[at - 1 : at + 2].strip() for row in rows[4:7])  # the spike, far above everything else
    assert long.end("tokens") == 1_000_000
    assert long.end("time") == 100_000


def test_a_run_without_a_step_beside_one_that_has_some_says_so() -> None:
    plot = OverlayPlot()
    plot.show([Overlaid(RunState(run_id="abc")), Overlaid(RunState(run_id="def"))])
    said = "\n".join("".join(text for text, _ in row) for row in plot.rows(80, 24))
    assert said.count("took no step") == 2
    assert "not finite" not in said


async def test_a_new_end_a_fork_and_a_replay_are_begun_from_the_list(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = curve(output, 0, 40, data=str(output / "rows.jsonl"))
    (output / "rows.jsonl").write_text('{"prompt": "Who?", "completion": "Me."}\n')
    begun: list[tuple[Any, ...]] = []

    def begin(*given: Any, **more: Any) -> Any:
        begun.append((*given, *more.values()))
        return engine_client.attach(run.directory.path)

    monkeypatch.setattr(engine_client, "extend", begin)
    monkeypatch.setattr(engine_client, "start", begin)

    def another(*given: object) -> None:
        monkeypatch.setattr(engine_jobs, "require_repeatable", lambda *given: None)  # from the second time on
        raise RunError("line 3 was changed", code="STATE_IDENTITY_MISMATCH")

    monkeypatch.setattr(engine_jobs, "require_repeatable", another)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        app, screen = pilot.app, pilot.app.screen
        assert isinstance(app, BackpropApp)
        assert isinstance(screen, RunsScreen)
        await until(lambda: shown_path(screen) == str(run.directory.path), "the detail")
        await pilot.press("n", *"30", "enter")
        assert "a number from 41" in text_of(app)
        await pilot.press(*["backspace"] * 2, *"90", "enter")
        await until(lambda: bool(begun), "the extension")
        assert begun.pop() == (run.directory.path, 90)

        await pilot.press("4", "p", "enter")
        assert begun == []
        await pilot.press("p", "r")
        await until(lambda: "line 3 was changed" in text_of(app), "the refusal")
        assert begun == []
        await pilot.press("escape", "p", "r")
        await until(lambda: bool(begun), "the replay")
        config, kind, _, _, replays = begun.pop()
        assert (kind, config.steps, config.learning_rate) == ("replay", 60, 1e-3)
        assert (replays.path, replays.overrides) == (str(run.directory.path), [])

        await pilot.press("4", "f", "f")
        await until(lambda: "STATE_CHECKPOINT_INVALID" in text_of(app), "that it has no checkpoint")
        assert begun == []


async def test_the_detail_has_origins_events_files_tags_and_note(output: Path) -> None:
    run = curve(output, 0, 3)
    record = run.directory.read_record()
    parent = output / "x" / "checkpoints" / "step-00000003"
    run.directory.update_record(tags=["good"], note="keep this", forked_from=str(parent))
    assert record.parent == ""
    assert RunDirectory(run.directory.path).read_record().parent == str(output / "x")
    lines = run.directory.journal.read_text().replace('"origins":{}', '"origins":{"lora_r":"rule: it is usual"}', 1)
    run.directory.journal.write_text(lines)
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: shown_path(screen) == str(run.directory.path), "the detail")
        detail = screen._detail.text
        for words in ("+good keep this", "rule: it is usual", "forked from", "run done after 3 steps", "events.jsonl"):
            assert words in detail
        assert detail.index("settings") < detail.index("rule: it is usual") < detail.index("files")
