"""What is the same on every screen: tabs, the run that is trained, toasts, jump mode, the palette."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import recorded
from acting import seen, text_of, until
from backprop.core.datasets import remember_dataset
from backprop.core.settings import RunConfig
from backprop.runs.index import RunIndex
from backprop.runs.queue import Queue
from textual.command import CommandPalette

from backprop_tui import elsewhere
from backprop_tui.app import BackpropApp
from backprop_tui.screens import SCREENS


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "LOOK_AGAIN", 0.05)


@pytest.fixture
def run(output: Path) -> Iterator[recorded.Recorder]:
    recorder = recorded.running(output, steps=40)
    with recorder.directory.hold_lock():
        yield recorder


async def test_where_nothing_goes_on_it_is_drawn_seldom_and_soon_after_a_key_or_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, drawn = [1000.0], []
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        app = pilot.app
        assert app._timer is not None
        app._timer.stop()  # it ticks by hand
        monkeypatch.setattr("backprop_tui.app.time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(app.screen, "flush", lambda: drawn.append(now[0]))

        def tick(*times: float) -> list[float]:
            for now[0] in times:
                app._tick()
            return [drawn.pop(0) for _ in range(len(drawn))]

        app.flush()
        assert tick(1000.25, 1000.5, 1000.75, 1001.0, 1001.25) == [1000.0, 1001.0]
        await pilot.press("f5")  # which does nothing
        assert tick(1001.5, 1002.0, 1002.5, 1002.75) == [1001.5, 1002.0]
        app.elsewhere.place = "me@elsewhere"
        assert tick(1002.75)[:1] == [1002.75]


@pytest.mark.parametrize("name", [entry.name for entry in SCREENS])
async def test_the_tab_of_a_screen_leads_to_it_and_is_marked_there(name: str) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        title = next(f"{number} {entry.title}" for number, entry in enumerate(SCREENS, 1) if entry.name == name)
        await pilot.click(offset=(text_of(pilot.app).split("\n")[0].index(title) + 1, 0))
        await until(lambda: pilot.app.current_mode == name, title)
        pilot.app.flush()
        row = pilot.app.screen.header.rows(80, 1)[0]
        assert [text.strip() for text, ink in row if "here" in ink] == [title]


async def test_a_run_of_somebody_else_is_on_every_screen_and_its_end_is_told(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=(120, 30), notifications=True) as pilot:
        with RunIndex() as index:
            index.add(run.directory.path)
        for number in "123456":
            await pilot.press("escape", number)
            await until(
                lambda: "● b81e40aa 40/1,000" in text_of(pilot.app).split("\n")[0], f"the run on screen {number}"
            )
        await pilot.press("escape", "5")
        run.finish(40, 1.0)
        await until(lambda: "run b81e40aa12cd is over: done (4 shows it)" in text_of(pilot.app), "the toast")
        await pilot.press("4")
        await until(lambda: "is over: done" not in text_of(pilot.app), "what was said is seen in the list")
        await until(lambda: "b81e40aa" not in text_of(pilot.app).split("\n")[0], "its going")
        assert pilot.app.living() == []


async def test_its_chip_opens_it_and_leaving_asks_about_it_then_alone(run: recorded.Recorder) -> None:
    with RunIndex() as index:
        index.add(run.directory.path)
    async with BackpropApp().run_test(size=(100, 30)) as pilot:
        await until(lambda: "b81e40aa 40/1,000" in text_of(pilot.app).split("\n")[0], "the chip")
        assert pilot.app.living() == []
        await pilot.click(offset=(98, 0))
        await until(lambda: "step 40/1,000" in text_of(pilot.app), "the run")
        assert [watch.path for watch in pilot.app.living()] == [run.directory.path]
        assert pilot.app.elsewhere.watches == []


async def test_a_bar_that_leaves_keys_out_says_so_and_keeps_what_is_done_most(output: Path) -> None:
    recorded.one_of_each(output)
    for width, words in ((80, "? more"), (240, "? help")):
        async with BackpropApp().run_test(size=(width, 24)) as pilot:
            await until(lambda: "space mark" in text_of(pilot.app).splitlines()[-1], "the keys of the list")
            assert words in text_of(pilot.app).splitlines()[-1]
            await pilot.press("space", "space")
            await until(lambda: "v compare" in text_of(pilot.app).splitlines()[-1], "what marked runs are for")
            assert "space mark" in text_of(pilot.app).splitlines()[-1]


async def test_the_header_says_who_and_where_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "place", lambda: "me@box  RTX 4090")
    async with BackpropApp().run_test(size=(120, 24)) as pilot:
        await until(lambda: text_of(pilot.app).split("\n")[0].endswith(" me@box  RTX 4090"), "it")


async def test_the_header_says_how_many_wait() -> None:
    queue = Queue()
    for _ in range(2):
        queue.add(RunConfig(data="rows.jsonl"))
    # A runner lives, so that none is started.
    with queue.runner.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with BackpropApp().run_test(size=(80, 24)) as pilot:
            await until(lambda: "2 queued" in text_of(pilot.app).split("\n")[0], "the number")


async def test_jump_mode_puts_a_letter_on_each_pane_and_goes_there(run: recorded.Recorder) -> None:
    async with BackpropApp(attach=run.directory.path).run_test(size=(80, 24)) as pilot:
        await seen(pilot, run.seq)
        await pilot.press("2")
        await pilot.pause()
        chain = list(pilot.app.screen.focus_chain)
        assert len(chain) > 1
        await pilot.press("ctrl+o")
        await pilot.pause()
        for letter, target in zip("as", chain, strict=False):
            row = text_of(pilot.app).split("\n")[target.region.y]
            assert row[target.region.x : target.region.x + 3] == f" {letter} "
        await pilot.press("s")
        await pilot.pause()
        assert pilot.app.focused is chain[1]
        before = pilot.app.focused
        await pilot.press("ctrl+o", "escape")
        assert pilot.app.focused is before


async def test_the_palette_finds_runs_datasets_and_presets_by_their_names(output: Path, tmp_path: Path) -> None:
    run = recorded.failed(output)
    with RunIndex() as index:
        index.add(run.directory.path)
    data = tmp_path / "wanted.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    remember_dataset(str(data))
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        for typed, shown, mode in (
            (run.directory.run_id[:6], f"Watch {run.directory.run_id}", "live"),
            ("wanted", "Open ~/wanted.jsonl", "data"),
            ("preset quality", "Preset quality: most effect", "configure"),
        ):
            await pilot.press("ctrl+p")
            await until(lambda: isinstance(pilot.app.screen, CommandPalette), "the palette")
            await pilot.press(*("space" if char == " " else char for char in typed))
            await until(lambda shown=shown: shown in text_of(pilot.app), shown)
            await pilot.press("enter")
            await until(lambda mode=mode: pilot.app.current_mode == mode, mode)
        assert pilot.app.screen.draft.given == {"preset": "quality"}


async def test_who_has_no_run_yet_sees_what_to_press_and_which_files_are_here(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await until(lambda: "mine.jsonl" in text_of(pilot.app), "the file")
        text = text_of(pilot.app)
        assert "93 MB" in text
        assert "d   the demonstration" in text
        assert all(len(line) <= 80 and "…" not in line for line in text.split("\n")[:-1])
