"""The queue on the Runs screen, and the key of the Configure screen that leads there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import recorded
from acting import text_of, until
from backprop.core.settings import RunConfig
from backprop.runs.queue import Queue, Standing
from textual.pilot import Pilot
from tiny_language_model import write_rows

from backprop_tui.app import BackpropApp
from backprop_tui.screens.configure.screen import ConfigureScreen
from backprop_tui.screens.dialogs import Question
from backprop_tui.screens.runs.screen import RunsScreen


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Queue]:
    """The queues that somebody was asked to work on; nobody does."""
    asked: list[Queue] = []

    def ask(queue: Queue) -> Standing:
        asked.append(queue)
        return queue.read()

    monkeypatch.setattr(Queue, "ensure_runner", ask)
    return asked


async def opened(pilot: Pilot[None], count: int) -> RunsScreen:
    """The queue with so many entries, the cursor on the first."""
    screen = pilot.app.screen
    assert isinstance(screen, RunsScreen)
    await pilot.press("u")
    await shown(screen, lambda now: len(now.entries) == count)
    await pilot.pause()
    return screen


async def shown(screen: RunsScreen, holds: Callable[[Standing], bool]) -> None:
    screen.look()

    def seen() -> bool:
        now = screen._queued.entries.now
        return now is not None and holds(now)

    await until(seen, "the queue as it is")


@pytest.mark.parametrize("size", [(80, 24), (140, 45)])
async def test_the_queue_is_shown_arranged_and_emptied(output: Path, asked: list[Queue], size: tuple[int, int]) -> None:
    queue = Queue()
    run = recorded.Recorder(output, "aa0000000000", recorded.demo_like(output), recorded.NOW)
    run.start()
    run.finish(3, 1.0)
    a, b, c, d = (queue.add(RunConfig(data="/d/rows.jsonl", model="/m/tiny", steps=n)) for n in (1, 2, 3, 4))
    queue.claim(a.run_id)
    queue.finish(a, "failed", "the disk is full")
    queue.claim(b.run_id)
    queue.rule(after_failure="stop")
    async with BackpropApp().run_test(size=size) as pilot:
        screen = await opened(pilot, 4)
        assert asked
        text = text_of(pilot.app)
        assert f"2 queued: stopped, run {a.run_id} failed; g goes on"[: size[0] - 20] in text.split("\n")[1]
        for words in (
            f"● running     {b.run_id}",
            f"1  · waiting     {c.run_id}",
            f"✗ failed      {a.run_id}",
            "4 steps",
        ):
            assert words in text
        assert "backprop train --data /d/rows.jsonl" in text
        assert text.split("\n")[-1].startswith(" esc back  enter open  e copy"), "it is trained already"
        await pilot.press("K", "down")
        await until(
            lambda: "enter open  K earlier  J later" in text_of(pilot.app).split("\n")[-1], "the keys of one that waits"
        )
        await pilot.press("J")
        await shown(screen, lambda now: [each.run_id for each in now.waiting] == [d.run_id, c.run_id])
        assert screen._queued.entries.chosen == c
        await pilot.press("end")
        await until(lambda: "the disk is full" in text_of(pilot.app), "why it failed")
        await pilot.press("g")
        await shown(screen, lambda now: not now.stopped)
        await pilot.press("a")
        await shown(screen, lambda now: now.rules.after_failure == "continue")
        await pilot.press("x", "home", "x")
        await shown(screen, lambda now: [each.run_id for each in now.entries] == [b.run_id, d.run_id, c.run_id])
        await until(
            lambda: "is being trained" in " ".join(each.message for each in pilot.app._notifications), "why not"
        )
        await pilot.press("escape")
        assert "aa000000" in text_of(pilot.app)
        await pilot.press("u", "down", "e")
        await until(lambda: isinstance(pilot.app.screen, ConfigureScreen), "the settings")
        assert pilot.app.screen.draft.given["steps"] == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 140])
async def test_length_and_as_much_of_a_name_as_there_is_room_for_are_seen(
    output: Path, asked: list[Queue], width: int
) -> None:
    name = "the third try with a lower rate and all of the rows"
    Queue().add(RunConfig(data="/d/rows.jsonl", model="/m/tiny", steps=300_000, run_name=name))
    async with BackpropApp().run_test(size=(width, 24)) as pilot:
        await opened(pilot, 1)
        line = next(line for line in text_of(pilot.app).splitlines() if "waiting" in line)
        assert line.rstrip().endswith("300,000 steps")
        assert name[:13] in line
        assert width < 140 or name in line
        head = next(line for line in text_of(pilot.app).splitlines() if "name or data" in line)
        assert head.index("name or data") == line.index(name[:13])
        assert head.index("length") == line.index("300,000")


async def test_what_waits_is_taken_out_only_when_that_is_meant(output: Path, asked: list[Queue]) -> None:
    entry = Queue().add(RunConfig(data="/d/rows.jsonl", model="/m/tiny", steps=3))
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, 1)
        await pilot.press("x")
        await until(lambda: isinstance(pilot.app.screen, Question), "the question")
        assert f"Take run {entry.run_id} (rows.jsonl, 3 steps) out" in " ".join(text_of(pilot.app).split())
        await pilot.press("enter")
        await until(lambda: pilot.app.screen is screen, "the queue")
        assert [each.run_id for each in Queue().read().waiting] == [entry.run_id]
        await pilot.press("x", "x")
        await shown(screen, lambda now: not now.entries)


async def test_the_help_begins_with_what_is_seen(output: Path, asked: list[Queue]) -> None:
    Queue().add(RunConfig(data="/d/rows.jsonl", model="/m/tiny", steps=3))
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, 1)
        for keys, title in (("?", "the queue of runs"), ("escape", ""), ("escape", ""), ("?", "Runs")):
            await pilot.press(keys)
            await pilot.pause()
            lines = [line for line in text_of(pilot.app).splitlines() if "──" in line]
            assert not title or f"│  {title} ──" in lines[1]
        assert pilot.app.screen is not screen


async def test_of_an_empty_queue_no_key_is_shown_that_does_nothing(output: Path, asked: list[Queue]) -> None:
    recorded.finished_demo(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, 0)
        await until(lambda: "nothing is queued" in text_of(pilot.app), "the queue")
        assert [key.label for key in screen.own_keys()] == ["back", "after a failure"]


async def test_what_is_configured_is_queued_and_the_screen_stays(
    tmp_path: Path, tiny_model: Path, asked: list[Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue()
    write_rows(tmp_path / "rows.jsonl", 4)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await until(lambda: isinstance(pilot.app.screen, ConfigureScreen), "the screen")
        screen = pilot.app.screen
        assert isinstance(screen, ConfigureScreen)
        await pilot.press("l")  # nothing is configured: it goes to what is missing
        assert queue.read().waiting == []
        await pilot.press("escape")
        screen.take({"data": "rows.jsonl", "model": str(tiny_model), "steps": 3})
        with monkeypatch.context() as patch:  # in a browser, which may not write there: that is said
            patch.setenv("WRITING_CONFINED_TO", str(tmp_path / "elsewhere"))
            await pilot.press("l")
            await until(lambda: "UI_OUTPUT_DIR_FORBIDDEN" in text_of(pilot.app), "why it is not queued")
            await pilot.press("c")
        assert queue.read().waiting == []
        asked.clear()
        await pilot.press("l")
        await until(lambda: len(queue.read().waiting) == 1, "the entry")
        assert asked
        (entry,) = queue.read().waiting
        assert (entry.config.steps, entry.config.data) == (3, str(tmp_path / "rows.jsonl"))
        await until(lambda: f"run {entry.run_id} is queued, number 1" in text_of(pilot.app), "its number")
        assert pilot.app.screen is screen
