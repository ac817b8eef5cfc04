from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import recorded
from acting import ended, seen, text_of, until
from backprop.core import events as ev
from backprop.core.errors import RunError
from backprop.core.settings import RunConfig
from backprop.runs import engine_client, engine_process

from backprop_tui.app import BackpropApp
from backprop_tui.charts.loss_plot import LossPlot
from backprop_tui.screens.dialogs import Question
from backprop_tui.screens.live import LiveScreen
from backprop_tui.watch import Watch


@pytest.fixture
def run(output: Path) -> Iterator[recorded.Recorder]:
    """A run whose engine lives: its lock is held."""
    recorder = recorded.running(output, steps=40)
    with recorder.directory.hold_lock():
        yield recorder


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[ev.Command]:
    """What the application asked of the engine."""
    sent: list[ev.Command] = []
    monkeypatch.setattr(Watch, "send", lambda self, command: sent.append(command))
    return sent


def app_on(run: recorded.Recorder) -> BackpropApp:
    return BackpropApp(attach=run.directory.path)


async def test_numbers_of_a_living_run_follow_its_journal(run: recorded.Recorder) -> None:
    async with app_on(run).run_test(size=(100, 30)) as pilot:
        app = await seen(pilot, run.seq)
        assert "step 40/1,000" in text_of(app)
        assert "running" in text_of(app)
        run.steps(41, 44, 1000)
        app = await seen(pilot, run.seq)
        assert "step 44/1,000" in text_of(app)


async def test_a_step_that_came_changes_nothing_below_the_readings(run: recorded.Recorder) -> None:
    async with app_on(run).run_test(size=(80, 24)) as pilot:
        app = await seen(pilot, run.seq)
        before = text_of(app).split("\n")
        run.steps(41, 41, 1000)
        app = await seen(pilot, run.seq)
        after = text_of(app).split("\n")
        assert before[1] != after[1]
        assert before[15:] == after[15:]


async def test_nothing_is_drawn_when_nothing_came(run: recorded.Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app_on(run).run_test(size=(100, 30)) as pilot:
        app = await seen(pilot, run.seq)
        drawn: list[object] = []
        monkeypatch.setattr(app, "_display", lambda *given: drawn.append(given))
        for _ in range(5):
            app.flush()
            await pilot.pause()
        assert drawn == []


async def test_pause_and_go_on_are_one_key(run: recorded.Recorder, commands: list[ev.Command]) -> None:
    async with app_on(run).run_test() as pilot:
        app = await seen(pilot, run.seq)
        await pilot.press("p")
        assert isinstance(commands[-1], ev.Pause)
        assert "pausing after this step" in text_of(app)
        run.write(ev.Paused(step=40))
        app = await seen(pilot, run.seq)
        assert "pausing" not in text_of(app)
        assert "‖ paused" in text_of(app)
        await pilot.press("p")
        assert isinstance(commands[-1], ev.Resume)


@pytest.mark.parametrize(("key", "command"), [("s", ev.Stop), ("c", ev.CheckpointNow), ("g", ev.SampleNow)])
async def test_keys_send_commands(
    run: recorded.Recorder, commands: list[ev.Command], key: str, command: type[ev.Command]
) -> None:
    async with app_on(run).run_test() as pilot:
        await seen(pilot, run.seq)
        await pilot.press(key)
        assert [type(c) for c in commands] == [command]


async def test_abort_asks_and_the_safe_answer_comes_first(run: recorded.Recorder, commands: list[ev.Command]) -> None:
    async with app_on(run).run_test() as pilot:
        await seen(pilot, run.seq)
        await pilot.press("a", "enter")
        assert commands == []
        await pilot.press("a", "a")
        assert [type(c) for c in commands] == [ev.Abort]


async def test_a_command_that_no_engine_hears_is_told(run: recorded.Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Watch, command: ev.Command) -> None:
        raise RunError("no engine is working on run x", code="RUN_NOT_ACTIVE", hint="look")

    monkeypatch.setattr(Watch, "send", refuse)
    async with app_on(run).run_test() as pilot:
        app = await seen(pilot, run.seq)
        await pilot.press("p")
        await pilot.pause()
        assert any("no engine" in n.message for n in app._notifications)
        assert "pausing" not in text_of(app)


async def test_a_finished_run_takes_no_commands(output: Path, commands: list[ev.Command]) -> None:
    run = recorded.finished_demo(output)
    async with app_on(run).run_test() as pilot:
        app = await ended(pilot)
        await pilot.press("p", "s", "c", "g", "a")
        assert commands == []
        assert "pause" not in text_of(app).split("\n")[-1]


async def test_the_end_of_a_watched_run_shows_the_answers_before_and_after(output: Path) -> None:
    run = recorded.Recorder(output, "aaaabbbbcccc", recorded.demo_like(output))
    with run.directory.hold_lock():
        run.start()
        run.samples(tuned=False, step=0)
        run.steps(1, 60, 60)
        async with app_on(run).run_test(size=(120, 40)) as pilot:
            app = await seen(pilot, run.seq)
            assert "Arr" not in text_of(app)
            run.samples(tuned=True, step=60)
            run.finish(60, 0.9)
            app = await seen(pilot, run.seq)
            assert isinstance(app.screen, LiveScreen)
            assert app.screen.pane == "samples"
            line = next(line for line in text_of(app).split("\n") if "To boil an egg" in line)
            assert "Arr, set a pot" in line


async def test_a_pane_chosen_by_hand_stays(output: Path) -> None:
    run = recorded.Recorder(output, "aaaabbbbcccc", recorded.demo_like(output))
    with run.directory.hold_lock():
        run.start()
        run.samples(tuned=False, step=0)
        async with app_on(run).run_test() as pilot:
            app = await seen(pilot, run.seq)
            await pilot.press("tab", "tab")
            run.samples(tuned=True, step=60)
            run.finish(60, 0.9)
            app = await seen(pilot, run.seq)
            assert isinstance(app.screen, LiveScreen)
            assert app.screen.pane == "data"


async def test_an_engine_that_is_gone_is_reported_with_its_last_lines(output: Path) -> None:
    run = recorded.crashed(output)
    async with app_on(run).run_test(size=(100, 30)) as pilot:
        app = await ended(pilot)
        shown = text_of(app)
        assert "RUNTIME_ENGINE_CRASHED" in shown
        assert "std::bad_alloc" in shown
        assert "engine.log" in shown
        await pilot.press("tab")
        assert "preparing the data" in text_of(app)


async def test_a_failed_run_says_what_to_do(output: Path) -> None:
    run = recorded.failed(output)
    async with app_on(run).run_test(size=(100, 30)) as pilot:
        app = await ended(pilot)
        assert "RUNTIME_NOT_FINITE" in text_of(app)
        assert "lower the learning rate" in text_of(app)


async def test_a_damaged_run_opens_and_says_what_is_missing(output: Path) -> None:
    run = recorded.torn(output)
    async with app_on(run).run_test(size=(100, 30)) as pilot:
        app = await ended(pilot)
        await pilot.press("2")
        await until(lambda: "run.json is missing" in text_of(app), "the damage in the detail")


async def test_a_run_that_vanished_is_said_and_nothing_breaks(output: Path) -> None:
    run = recorded.failed(output)
    path = run.directory.path.with_name("nothing-here")
    async with BackpropApp(attach=path).run_test(size=(100, 30)) as pilot:
        app = pilot.app
        assert isinstance(app, BackpropApp)
        await until(lambda: app.watched is not None and app.watched.error is not None, "the error")
        app.flush()
        await pilot.pause()
        assert "~/output/nothing-here is no run directory" in text_of(app)
        assert "damaged" in text_of(app)


async def test_log_axis_and_smoothing_are_shown_in_the_title(run: recorded.Recorder) -> None:
    async with app_on(run).run_test(size=(100, 30)) as pilot:
        app = await seen(pilot, run.seq)
        plot = app.screen.query_one(LossPlot)
        await pilot.press("l", "plus")
        assert plot.log_y
        assert "smoothed 0.98" in text_of(app)
        await pilot.press("minus", "minus", "minus", "minus")
        assert "smoothed" not in text_of(app)


async def test_symbols_can_be_plain_ascii(run: recorded.Recorder) -> None:
    async with app_on(run).run_test(size=(100, 30)) as pilot:
        app = await seen(pilot, run.seq)
        assert any("⠀" < sign <= "⣿" for sign in text_of(app))
        await pilot.press("b", "b")
        assert not any("⠀" < sign <= "⣿" for sign in text_of(app))


async def test_loading_shows_how_much_came(output: Path) -> None:
    run = recorded.Recorder(output, "aaaabbbbcccc", recorded.demo_like(output))
    with run.directory.hold_lock():
        run.write(
            ev.RunStarted(config={"model": "smollm2-135m", "data": "d.jsonl"}, output_dir="", pid=1),
            ev.PhaseChanged(phase="loading_model"),
            ev.ModelLoading(model="smollm2-135m", stage="download", done=33_000_000, total=93_000_000),
        )
        async with app_on(run).run_test(size=(80, 24)) as pilot:
            app = await seen(pilot, run.seq)
            assert "fetching smollm2-135m" in text_of(app)
            assert "33.0 MB of 93.0 MB" in text_of(app)


async def test_a_run_without_a_gpu_says_so_plainly(output: Path) -> None:
    run = recorded.Recorder(output, "aaaabbbbcccc", recorded.demo_like(output))
    with run.directory.hold_lock():
        run.start()
        async with app_on(run).run_test(size=(80, 24)) as pilot:
            app = await seen(pilot, run.seq)
            assert "no NVIDIA GPU" in text_of(app)


async def test_escape_goes_one_layer_out(run: recorded.Recorder) -> None:
    async with app_on(run).run_test() as pilot:
        app = await seen(pilot, run.seq)
        await pilot.press("q")
        assert isinstance(app.screen, Question)
        await pilot.press("escape")
        assert isinstance(app.screen, LiveScreen)
        await pilot.press("escape")
        assert app.current_mode == "runs"


async def test_who_resumes_a_run_an_instant_after_somebody_else_watches_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "ENGINE", "talking_engine")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "fixtures"))
    first = engine_client.start(RunConfig(data="d", run_name="0 obey", output_dir=str(tmp_path)))
    await until(lambda: bool(first.read(0.1)), "the engine's first event")
    watch = Watch(engine_client.launch(first.directory, "resume"))
    await until(lambda: not watch.advance() and watch.link.launched_at == 0, "the other engine")
    await until(lambda: not watch.advance() and watch.live, "the run that goes on")
    assert watch.error is None
    watch.send(ev.Stop())
    await until(lambda: not watch.advance() and watch.state.status == "done", "the end")
