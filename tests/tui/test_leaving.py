from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import recorded
from acting import key_of, seen, text_of, until
from backprop.core import events as ev
from backprop.core.settings import RunConfig
from backprop.runs import engine_client, engine_process
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from patience import PATIENCE
from textual import events
from textual.pilot import Pilot
from textual.widgets._toast import Toast

from backprop_tui.app import BackpropApp
from backprop_tui.main import farewell
from backprop_tui.palette import Palette
from backprop_tui.screens.base import OpenRun
from backprop_tui.screens.dialogs import AnswerList, Help, Question, TooSmall, deleting
from backprop_tui.screens.runs.screen import RunsScreen
from backprop_tui.watch import Watch


@pytest.fixture
def run(output: Path) -> Iterator[recorded.Recorder]:
    recorder = recorded.running(output, steps=40)
    with recorder.directory.hold_lock():
        yield recorder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done to the engine."""
    done: list[str] = []
    monkeypatch.setattr(Watch, "send", lambda self, command: done.append(type(command).__name__))
    monkeypatch.setattr(Watch, "kill", lambda self: done.append("kill"))
    return done


def exiting(pilot: Pilot[None]) -> bool:
    return bool(pilot.app._exit)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_leaving_a_living_run_asks_and_leaves_it_running(
    run: recorded.Recorder, asked: list[str], key: str
) -> None:
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        await seen(pilot, run.seq)
        await pilot.press(key)
        assert isinstance(pilot.app.screen, Question)
        assert not exiting(pilot)
        await pilot.press("enter")
        assert exiting(pilot)
    assert asked == []


async def test_a_paused_run_is_not_said_to_go_on(run: recorded.Recorder) -> None:
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        await seen(pilot, run.seq)
        await pilot.press("q")
        assert "training goes on" in text_of(pilot.app)
        await pilot.press("escape")
        run.write(ev.Paused(step=40))
        await seen(pilot, run.seq)
        await pilot.press("q")
        assert "it stays paused" in text_of(pilot.app)
        assert "training goes on" not in text_of(pilot.app)


async def test_ctrl_c_twice_leaves_and_the_run_goes_on(run: recorded.Recorder, asked: list[str]) -> None:
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        await seen(pilot, run.seq)
        await pilot.press("ctrl+c", "ctrl+c")
        assert exiting(pilot)
    assert asked == []


async def test_the_question_is_asked_on_the_list_of_runs_too(run: recorded.Recorder) -> None:
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        await seen(pilot, run.seq)
        await pilot.press(key_of("runs"), "q")
        assert isinstance(pilot.app.screen, Question)
        await pilot.press("escape")
        assert not exiting(pilot)


async def test_a_run_that_was_left_for_another_is_seen_everywhere_and_asked_about(
    run: recorded.Recorder, output: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    over = recorded.failed(output)
    async with BackpropApp(attach=run.directory.path).run_test(size=(100, 30)) as pilot:
        app = await seen(pilot, run.seq)
        first = app.watched
        await pilot.press("tab")
        app.post_message(OpenRun(lambda: engine_client.attach(over.directory.path), over.directory.path))
        await until(lambda: "RUNTIME_NOT_FINITE" in text_of(app), "the other run")
        assert "what to do" in text_of(app)
        for name in ("live", "runs", "data"):
            await pilot.press(key_of(name))
            await pilot.pause()
            app.flush()
            await until(lambda: "b81e40aa 40/1,000" in text_of(app).split("\n")[0], f"the chip on screen {name}")
            if name == "data":
                await pilot.press("escape")
        await pilot.press(key_of("live"))
        await pilot.click(offset=(98, 0))
        await until(lambda: "step 40/1,000" in text_of(app), "the run of the chip")
        assert app.watched is first
        assert app.others == []
        await pilot.press(key_of("runs"), "enter")
        app.post_message(OpenRun(lambda: engine_client.attach(over.directory.path), over.directory.path))
        await until(lambda: "RUNTIME_NOT_FINITE" in text_of(app), "the other run again")
        await pilot.press("q")
        assert isinstance(app.screen, Question)
        assert "Run b81e40aa12cd is at step 40 of 1,000." in text_of(app)
        await pilot.press("enter")
    farewell(app)
    said = capsys.readouterr().out
    assert "backprop-tui --attach b81e40aa12cd" in said
    assert f"backprop-tui --attach {over.directory.run_id}" in said
    assert asked == []


async def test_a_run_out_of_sight_that_ends_leaves_the_chip_and_is_watched_no_longer(
    run: recorded.Recorder, output: Path
) -> None:
    over = recorded.failed(output)
    async with BackpropApp(attach=run.directory.path).run_test(size=(100, 30), notifications=True) as pilot:
        app = await seen(pilot, run.seq)
        first = app.watched
        app.post_message(OpenRun(lambda: engine_client.attach(over.directory.path), over.directory.path))
        await until(lambda: "b81e40aa 40/1,000" in text_of(app), "the chip")
        run.finish(40, 1.0)
        await until(lambda: "b81e40aa" not in text_of(app).split("\n")[0], "its going")
        await until(lambda: "run b81e40aa12cd is over: done (4 shows it)" in text_of(app), "the toast")
        assert app.others == []
        assert first is not None
        assert first._closed.is_set()


async def test_stop_after_a_checkpoint_waits_for_the_end(run: recorded.Recorder, asked: list[str]) -> None:
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        await seen(pilot, run.seq)
        await pilot.press("q", "s")
        assert isinstance(pilot.app, BackpropApp)
        pilot.app.flush()
        assert asked == ["Stop"]
        assert not exiting(pilot)
        await pilot.pause()
        run.finish(40, 1.0, "stopped")
        await until(lambda: exiting(pilot), "the exit")


async def test_a_run_that_ends_while_it_is_asked_about_answers_the_question(run: recorded.Recorder) -> None:
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        await seen(pilot, run.seq)
        await pilot.press("q")
        assert isinstance(pilot.app.screen, Question)
        run.finish(40, 1.0, "stopped")
        await until(lambda: exiting(pilot), "the exit")


@pytest.mark.parametrize("keys", [("escape", "escape"), ("enter", "enter"), ("n", "n"), ("d", "d")])
async def test_two_keys_in_one_burst_answer_a_question_once(output: Path, keys: tuple[str, ...]) -> None:
    recorded.failed(output)
    async with BackpropApp().run_test() as pilot:
        app = pilot.app
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: bool(screen.chosen_path), "the run")
        await pilot.press("x")
        assert isinstance(app.screen, Question)
        burst(pilot, *keys)
        await until(lambda: app.screen is screen, "the list")
        await pilot.pause()
        assert app.is_running
        assert app.screen is screen


async def test_a_question_keeps_the_keys_of_what_it_covers(run: recorded.Recorder, asked: list[str]) -> None:
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        await seen(pilot, run.seq)
        await pilot.press("q")
        question = pilot.app.screen
        await pilot.press("1", "2", "3", "question_mark", "p", "f2", "ctrl+p")
        assert pilot.app.screen is question
        assert asked == []


async def test_q_again_leaves_while_the_run_is_still_stopping(run: recorded.Recorder, asked: list[str]) -> None:
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        await seen(pilot, run.seq)
        await pilot.press("q", "s")
        assert not exiting(pilot)
        await pilot.press("q")
        assert exiting(pilot)


async def test_a_key_that_gets_lost_holds_up_the_next_one_for_a_moment_and_ctrl_c_not_at_all(
    run: recorded.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        app = await seen(pilot, run.seq)
        app._keys.append(events.Key("x", "x"))
        burst(pilot, key_of("runs"))
        await until(lambda: app.current_mode == "runs" and not app._keys, "the key")
        monkeypatch.setattr("backprop_tui.type_ahead.LOST", 1e6)
        app._keys.append(events.Key("x", "x"))
        burst(pilot, "ctrl+c")
        await until(lambda: isinstance(app.screen, Question), "the question")


async def test_two_clicks_answer_a_question_once(output: Path) -> None:
    recorded.failed(output)
    async with BackpropApp().run_test() as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: bool(screen.chosen_path), "the run")
        await pilot.press("x")
        answers = pilot.app.screen.query_one("#answers", AnswerList)
        for _ in range(2):
            answers.post_message(AnswerList.Given("no"))
        await until(lambda: pilot.app.screen is screen, "the list")
        await pilot.pause()
        assert pilot.app.is_running


def burst(pilot: Pilot[None], *keys: str) -> None:
    """Press keys without a pause between them, as they come over a slow line."""
    for key in keys:
        pilot.app.post_message(events.Key(key, key if len(key) == 1 else None))


async def test_a_key_after_the_one_that_asks_is_the_answer(run: recorded.Recorder, asked: list[str]) -> None:
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        await seen(pilot, run.seq)
        burst(pilot, "q", "s")
        await until(lambda: asked == ["Stop"], "the answer")


async def test_what_covers_a_screen_can_be_left_before_it_is_drawn(output: Path) -> None:
    async with BackpropApp().run_test() as pilot:
        app = pilot.app
        assert isinstance(app, BackpropApp)
        screen = app.screen
        for _ in range(3):
            burst(pilot, "question_mark", "q")
            await pilot.pause()
            await until(lambda: app.screen is screen and not app._keys, "the screen")
        assert app.is_running


@pytest.mark.parametrize(
    "keys", [("up", "pagedown"), ("x", "pageup"), ("escape", "escape"), ("t", "h", "e", "m", "e", "enter", "enter")]
)
async def test_keys_in_one_burst_do_not_break_the_palette(output: Path, keys: tuple[str, ...]) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        app = pilot.app
        assert isinstance(app, BackpropApp)
        screen = app.screen
        for _ in range(3):
            burst(pilot, "ctrl+p", *keys)
            await until(lambda: not app._keys, "the keys")
            for _ in range(3):
                await pilot.press("escape")
            assert app.screen is screen
        assert app.is_running


async def test_an_answer_that_comes_late_leaves_what_covers_the_question_alone(output: Path) -> None:
    """Of two clicks in one burst the second may meet a question that something lies over by then."""
    given: list[str | None] = []
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        question = Question("delete", "", deleting("run", "/x"))
        pilot.app.push_screen(question, given.append)
        await pilot.resize_terminal(50, 12)
        assert isinstance(pilot.app.screen, TooSmall)
        question.dismiss("delete")
        question.dismiss("delete")
        await pilot.pause()
        assert isinstance(pilot.app.screen, TooSmall)
        assert given == []


async def test_another_screen_is_covered_too_while_the_window_is_too_small(output: Path) -> None:
    async with BackpropApp().run_test(size=(50, 12)) as pilot:
        app = pilot.app
        assert isinstance(app.screen, TooSmall)
        await app.switch_mode("data")  # as a run does that is ready, or a dataset that was asked for
        await pilot.pause()
        assert isinstance(app.screen, TooSmall)
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert app.screen.id == "data"
        await app.switch_mode("runs")
        await until(lambda: app.screen.id == "runs", "the first screen, uncovered")


async def test_a_click_on_a_message_that_is_just_gone_does_nothing(output: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24), notifications=True) as pilot:
        screen = pilot.app.screen
        pilot.app.notify("a message", timeout=60)
        await until(lambda: bool(screen.query(Toast)) and "a message" in text_of(pilot.app), "the message")
        toast = screen.query_one(Toast)
        x, y = toast.content_region.offset
        await toast.remove()
        screen._forward_event(events.MouseDown(toast, x, y, 0, 0, 1, False, False, False, x, y))
        await pilot.pause()
        assert pilot.app.is_running


async def test_a_question_may_lie_over_another(run: recorded.Recorder, output: Path) -> None:
    async with BackpropApp(attach=run.directory.path).run_test(size=(80, 24)) as pilot:
        app = await seen(pilot, run.seq)
        await pilot.press("a")
        assert isinstance(app.screen, Question)
        await pilot.resize_terminal(50, 12)
        await pilot.press("q")
        assert len([each for each in app.screen_stack if isinstance(each, Question)]) == 2
        await pilot.press("escape")
        await pilot.resize_terminal(80, 24)
        assert isinstance(app.screen, Question)


async def test_two_clicks_beside_the_palette_close_it_once(output: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await pilot.press("ctrl+p")
        palette = pilot.app.screen
        assert isinstance(palette, Palette)
        palette.dismiss()
        palette.dismiss()
        await pilot.pause()
        assert isinstance(pilot.app.screen, RunsScreen)


async def test_the_help_is_scrolled_by_keys(output: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await pilot.press("question_mark")
        before = text_of(pilot.app)
        assert "Runs ─" in before
        await pilot.press("pagedown")
        assert text_of(pilot.app) != before


async def test_a_word_typed_after_the_key_for_it_filters_and_commands_nothing(output: Path) -> None:
    recorded.one_of_each(output)
    async with BackpropApp().run_test() as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: bool(screen.chosen_path), "the runs")
        burst(pilot, "slash", *"done", "enter", "question_mark")
        await until(lambda: isinstance(pilot.app.screen, Help), "the help")
        assert screen.words == "done"
        assert pilot.app.current_mode == "runs"


@pytest.mark.parametrize(("key", "statuses"), [("k", ("crashed", "damaged")), ("s", ("done",))])
async def test_an_engine_that_was_only_just_started_is_ended_too(
    output: Path, monkeypatch: pytest.MonkeyPatch, key: str, statuses: tuple[str, ...]
) -> None:
    monkeypatch.setattr(engine_process, "ENGINE", "talking_engine")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "fixtures"))
    directory = RunDirectory.create(RunConfig(data="d", run_name="0 obey", output_dir=str(output)))
    async with BackpropApp(attach=directory.path).run_test() as pilot:
        app = pilot.app
        assert isinstance(app, BackpropApp)
        await until(lambda: app.watched is not None and app.watched.was_alive, "the run")
        await pilot.press("q", key)
        assert not exiting(pilot)
        engine = engine_client.launch(directory)
        await until(lambda: exiting(pilot), "the exit")
    assert engine.wait(PATIENCE) is not None
    assert read_run(directory.path).status in statuses  # killed before its first event, it left a journal that is none


async def test_without_a_living_run_leaving_asks_nothing(output: Path) -> None:
    run = recorded.finished_demo(output)
    async with BackpropApp(attach=run.directory.path).run_test() as pilot:
        app = await seen(pilot, run.seq)
        await until(lambda: app.watched is not None and not app.watched.live, "the end")
        await pilot.press("q")
        assert exiting(pilot)


async def test_a_window_that_is_too_small_says_what_it_needs_and_comes_back(run: recorded.Recorder) -> None:
    async with BackpropApp(attach=run.directory.path).run_test(size=(80, 24)) as pilot:
        app = await seen(pilot, run.seq)
        await pilot.resize_terminal(50, 12)
        await until(lambda: "needs 60x16" in text_of(app), "the notice")
        await pilot.press("q")
        assert isinstance(pilot.app.screen, Question)
        await pilot.press("escape")
        await pilot.resize_terminal(80, 24)
        await until(lambda: "learning rate" in text_of(app), "the screen")


async def test_a_window_that_grew_behind_a_question_is_no_longer_too_small(run: recorded.Recorder) -> None:
    async with BackpropApp(attach=run.directory.path).run_test(size=(50, 12)) as pilot:
        app = await seen(pilot, run.seq)
        await pilot.press("q")
        await pilot.resize_terminal(80, 24)
        await pilot.press("escape")
        await until(lambda: "learning rate" in text_of(app), "the screen")


async def test_after_the_end_it_says_where_the_run_is_and_how_to_come_back(
    run: recorded.Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    app = BackpropApp(attach=run.directory.path)
    async with app.run_test() as pilot:
        await seen(pilot, run.seq)
    farewell(app)
    said = capsys.readouterr().out
    assert str(run.directory.path) in said
    assert "step 40/1000" in said
    assert "backprop-tui --attach b81e40aa12cd" in said
