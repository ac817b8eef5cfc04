from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import recorded
from acting import ended, key_of, seen, text_of, until
from backprop.core import events as ev
from backprop.core.errors import RunError
from backprop.core.settings import RunConfig
from backprop.runs import engine_client, engine_process
from backprop.runs.index import RunIndex

from backprop_tui.app import BackpropApp
from backprop_tui.charts.loss_plot import LossPlot
from backprop_tui.screens.base import OpenRun, ShowOn
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
        assert "● b81e40aa 40/1,000" in text_of(app).split("\n")[0]
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
        assert before[2] != after[2]
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


async def test_what_was_asked_is_shown_until_the_run_is_over(
    run: recorded.Recorder, commands: list[ev.Command]
) -> None:
    async with app_on(run).run_test() as pilot:
        app = await seen(pilot, run.seq)
        await pilot.press("s")
        assert "stopping after this step" in text_of(app)
        run.steps(41, 42, 1000)
        app = await seen(pilot, run.seq)
        assert "stopping after this step" in text_of(app)
        run.finish(42, 1.0, "stopped")
        app = await seen(pilot, run.seq)
        assert "stopping" not in text_of(app)


async def test_words_in_brackets_are_shown_as_they_are(run: recorded.Recorder) -> None:
    async with app_on(run).run_test(notifications=True) as pilot:
        app = await seen(pilot, run.seq)
        app.notify("[/nowhere] and [red]rows[/red]")
        await until(lambda: "[/nowhere] and [red]rows[/red]" in text_of(app), "the words")


async def test_a_thread_that_fails_is_told_and_takes_nothing_along(run: recorded.Recorder) -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    async with app_on(run).run_test(notifications=True) as pilot:
        app = await seen(pilot, run.seq)
        app.run_worker(fail, thread=True, exit_on_error=False)
        await until(lambda: "ValueError: no such thing" in text_of(app), "the words")
        assert app.is_running


async def test_a_run_that_is_open_is_not_opened_again(run: recorded.Recorder, output: Path) -> None:
    async with app_on(run).run_test() as pilot:
        app = await seen(pilot, run.seq)
        watch = app.watched
        (output / "link").symlink_to(run.directory.path)
        await pilot.press(key_of("runs"))
        app.post_message(OpenRun(lambda: engine_client.attach(run.directory.path), output / "link"))
        await until(lambda: app.current_mode == "live", "the run")
        assert app.watched is watch


async def test_a_run_that_was_watched_is_known_afterwards(run: recorded.Recorder, tmp_path: Path) -> None:
    async with app_on(run).run_test() as pilot:
        await seen(pilot, run.seq)

        def known() -> bool:
            with RunIndex() as index:
                return [found.run_id for found in index.summaries()] == [run.directory.run_id]

        await until(known, "the run in the index")


@pytest.mark.parametrize(("connection", "next_rate"), [("", 2), ("10.0.0.1 22 10.0.0.2 22", 1)])
async def test_over_ssh_it_draws_half_as_often(
    run: recorded.Recorder, monkeypatch: pytest.MonkeyPatch, connection: str, next_rate: int
) -> None:
    if connection:
        monkeypatch.setenv("SSH_CONNECTION", connection)
    async with app_on(run).run_test() as pilot:
        app = await seen(pilot, run.seq)
        await pilot.press("f2")
        assert any(f"at most {next_rate} times" in n.message for n in app._notifications)


@pytest.mark.parametrize("size", [(60, 16), (60, 20), (80, 24), (100, 31), (140, 16), (140, 45)])
async def test_the_newest_event_is_in_sight_in_every_window(output: Path, size: tuple[int, int]) -> None:
    run = recorded.finished_demo(output)
    async with BackpropApp(attach=run.directory.path).run_test(size=size) as pilot:
        app = await ended(pilot)
        lines = text_of(app).splitlines()
        tabs = next(at for at, line in enumerate(lines) if "▸events" in line)
        assert "run done" in " ".join(lines[tabs:])
        assert len(lines) - tabs > 3, "two lines of it at least"


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


async def test_an_engine_of_another_user_that_may_not_be_reached_is_told(
    run: recorded.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(engine_client.EngineClient, "send", refuse)
    monkeypatch.setattr(engine_client.EngineClient, "kill", refuse)
    async with app_on(run).run_test() as pilot:
        app = await seen(pilot, run.seq)
        await pilot.press("p")
        await pilot.press("q", "k")
        said = [n.message for n in app._notifications if "Operation not permitted" in n.message]
        assert len(said) == 2
        assert app.leaving == ""
        assert app.is_running


async def test_a_finished_run_takes_no_commands(output: Path, commands: list[ev.Command]) -> None:
    run = recorded.finished_demo(output)
    async with app_on(run).run_test() as pilot:
        app = await ended(pilot)
        await pilot.press("p", "s", "c", "g", "a")
        assert commands == []
        assert "pause" not in text_of(app).split("\n")[-1]


@pytest.mark.parametrize(("key", "screen"), [("t", "chat"), ("w", "export")])
async def test_a_finished_run_is_talked_to_and_exported_from_here(
    output: Path, monkeypatch: pytest.MonkeyPatch, key: str, screen: str
) -> None:
    run = recorded.finished_demo(output)
    asked: list[ShowOn] = []
    monkeypatch.setattr(BackpropApp, "on_show_on", lambda self, message: asked.append(message))
    async with app_on(run).run_test(size=(80, 24)) as pilot:
        await seen(pilot, run.seq)
        assert "t talk  w export" in text_of(pilot.app)
        await pilot.press(key)
        await until(lambda: bool(asked), "the other screen")
    assert asked == [ShowOn(screen, str(run.directory.path))]


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
        await pilot.press(key_of("runs"))
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


async def test_a_directory_that_is_moved_while_it_is_watched_is_said(output: Path) -> None:
    run = recorded.running(output, steps=40)
    with run.directory.hold_lock():
        async with app_on(run).run_test(size=(100, 30)) as pilot:
            app = await seen(pilot, run.seq)
            run.directory.path.rename(output / "elsewhere")
            await ended(pilot)
            assert "it was deleted or moved while it was watched" in " ".join(text_of(app).split())
            assert "step 40/1,000" in text_of(app)


async def test_a_run_that_may_not_be_read_is_said(run: recorded.Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("backprop_tui.watch.read_run", refuse)
    async with app_on(run).run_test(size=(100, 30)) as pilot:
        app = pilot.app
        assert isinstance(app, BackpropApp)
        await until(lambda: app.watched is not None and app.watched.error is not None, "the error")
        app.flush()
        await pilot.pause()
        assert "cannot be read: Permission denied" in " ".join(text_of(app).split())


async def test_the_log_follows_its_end_and_shows_the_beginning_of_a_sample(run: recorded.Recorder) -> None:
    async with app_on(run).run_test(size=(80, 24)) as pilot:
        run.samples(tuned=True, step=40)
        app = await seen(pilot, run.seq)
        last = next(line for line in text_of(app).split("\n")[::-1] if "[tuned]" in line)
        assert "What is a good name for a cat?" in last
        assert "…" in last
        assert "every storm" not in text_of(app)


async def test_a_run_that_is_begun_again_is_starting_and_no_longer_what_it_was(output: Path) -> None:
    run = recorded.failed(output)
    with run.directory.hold_lock():
        link = engine_client.attach(run.directory.path)
        link.launched_at = run.time + 60
        watch = Watch(link)
        await until(lambda: not watch.advance() and watch.state.last_seq == run.seq, "the run")
        assert watch.state.status == "starting"
        assert watch.problem is None
        assert watch.live
        watch.close()


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


async def test_sampling_without_prompts_is_refused_at_once(output: Path, commands: list[ev.Command]) -> None:
    run = recorded.Recorder(
        output, "aaaabbbbcccc", msgspec.structs.replace(recorded.demo_like(output), sample_prompts=[])
    )
    with run.directory.hold_lock():
        run.start()
        run.steps(1, 5, 60)
        async with app_on(run).run_test() as pilot:
            app = await seen(pilot, run.seq)
            await pilot.press("g")
            assert commands == []
            assert "answering" not in text_of(app)
            assert any("no sample prompts" in n.message for n in app._notifications)


async def test_a_run_that_is_over_is_continued_by_the_key_that_its_problem_names(
    output: Path, commands: list[ev.Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []
    monkeypatch.setattr(engine_client, "resume", lambda path: begun.append(path) or engine_client.attach(path))
    run = recorded.crashed(output)
    async with app_on(run).run_test(size=(100, 30)) as pilot:
        app = await ended(pilot)
        assert "no checkpoint was saved: c starts again at step 1" in text_of(app)
        assert "c resume" in text_of(app).split("\n")[-1]
        await pilot.press("c")
        assert (begun, commands) == ([run.directory.path], [])


async def test_a_finished_run_has_nothing_to_continue(output: Path) -> None:
    run = recorded.finished_demo(output)
    async with app_on(run).run_test() as pilot:
        app = await ended(pilot)
        await pilot.press("c")
        assert "c resume" not in text_of(app).split("\n")[-1]
        assert not isinstance(app.screen, Question)


@pytest.mark.parametrize(("code", "shown"), [("RUNTIME_TRAINING_FAILED", True), ("DEP_MODEL_LOAD_FAILED", False)])
async def test_a_failure_shows_its_traceback_where_it_was_not_foreseen(output: Path, code: str, shown: bool) -> None:
    run = recorded.crashed(output)
    run.write(
        ev.RunFailed(
            code=code,
            message="KeyError: 'q'",
            hint="--verbose shows the traceback",
            retryable=False,
            traceback="Traceback (most recent call last):\n  File \"loss.py\", line 7\nKeyError: 'q'\n",
        )
    )
    async with app_on(run).run_test(size=(100, 30)) as pilot:
        app = await ended(pilot)
        assert ('File "loss.py", line 7' in text_of(app)) == shown


async def test_the_error_of_a_run_is_copied(output: Path) -> None:
    run = recorded.failed(output)
    run.directory.log.write_text("a library's word\n" * 30 + "its last")
    async with app_on(run).run_test(size=(80, 24)) as pilot:
        app = await ended(pilot)
        await pilot.press("y")
        assert "the command that watches it" in text_of(app)
        await pilot.press("e")
        assert app.clipboard.startswith("[RUNTIME_NOT_FINITE] 5 steps in a row")
        assert "lower the learning rate" in app.clipboard
        assert app.clipboard.endswith("a library's word\nits last")


@pytest.mark.parametrize(
    ("size", "words"), [((80, 24), "198 of 200 kept, 1,234 held out"), ((140, 45), "held out     1,234")]
)
async def test_held_out_rows_are_counted_where_the_data_is_shown(
    output: Path, size: tuple[int, int], words: str
) -> None:
    run = recorded.Recorder(output, "aaaabbbbcccc", recorded.demo_like(output))
    with run.directory.hold_lock():
        run.write(ev.RunStarted(config={"data": "d.jsonl"}, output_dir="", pid=1))
        run.write(msgspec.structs.replace(recorded.dataset(), held_out=1_234))
        async with app_on(run).run_test(size=size) as pilot:
            app = await seen(pilot, run.seq)
            if size == (80, 24):
                await pilot.press("tab", "tab")
            assert words in text_of(app)


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
