"""What a person sees of an error, and the keys that do something about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import recorded
from acting import ended, key_of, seen, text_of, until
from backprop.core import events as ev
from backprop.core.errors import BackpropError, ConfigurationError, DatasetError, RunError
from backprop.runs import engine_client
from backprop.worker.setup import failure
from textual.pilot import Pilot

from backprop_tui.app import BackpropApp
from backprop_tui.screens.base import OpenRun
from backprop_tui.screens.configure.screen import ConfigureScreen
from backprop_tui.screens.dataset.screen import DataScreen
from backprop_tui.screens.trouble import ErrorPanel, show_error


@pytest.fixture
def failed_run(output: Path) -> recorded.Recorder:
    """A run that its learning rate of 1e-3 ended, and that says so as data."""
    run = recorded.crashed(output)
    error = BackpropError(
        "5 steps in a row", hint="lower --lr", code="RUNTIME_NOT_FINITE", details={"remedy": {"learning_rate": 3e-4}}
    )
    run.write(failure(error))
    return run


async def test_a_run_that_was_aborted_on_request_shows_no_traceback(output: Path) -> None:
    run = recorded.crashed(output)
    aborted = BackpropError("aborted on request", hint="`stop` instead of `abort`", code="RUNTIME_TRAINING_ABORTED")
    run.write(failure(aborted))
    run.directory.log.write_text("Traceback (most recent call last):\n")
    async with BackpropApp(attach=run.directory.path).run_test(size=(100, 40)) as pilot:
        app = await ended(pilot)
        await until(lambda: "s instead of a" in text_of(app), "what to do, by the keys of this screen")
        assert "Traceback" not in text_of(app)


async def shown_error(pilot: Pilot[None]) -> ErrorPanel:
    await until(lambda: isinstance(pilot.app.screen, ErrorPanel), "the panel")
    await pilot.pause()
    panel = pilot.app.screen
    assert isinstance(panel, ErrorPanel)
    return panel


def raising(error: BackpropError) -> Callable[[], object]:
    def begin() -> object:
        raise error

    return begin


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (140, 45)])
async def test_code_message_place_hint_and_log_are_there_and_y_copies_all_of_it(
    output: Path, size: tuple[int, int]
) -> None:
    error = DatasetError(
        "the row is no object", hint="repair it", code="DATASET_PARSE_FAILED", details={"path": "/d/x.jsonl", "line": 7}
    )
    async with BackpropApp().run_test(size=size) as pilot:
        await pilot.pause()
        show_error(pilot.app.screen, error, log="Loading weights\n" * 20 + "Killed")
        await shown_error(pilot)
        words = text_of(pilot.app)
        assert "[DATASET_PARSE_FAILED]" in words
        assert "Copy all of it" in words
        assert "Close" in words
        await pilot.press("y")
        for part in ("DATASET_PARSE_FAILED", "the row is no object", "at /d/x.jsonl:7", "repair it", "Killed"):
            assert part in pilot.app.clipboard
        await pilot.press("pagedown", "pagedown", "pagedown", "pagedown", "pagedown", "pagedown", "pagedown")
        await until(lambda: "Killed" in text_of(pilot.app), "the end of the log")
        await pilot.press("c")
        assert not isinstance(pilot.app.screen, ErrorPanel)


@pytest.mark.parametrize("where", ["live", "runs"])
async def test_e_on_a_failed_run_fills_in_what_its_error_proposes(failed_run: recorded.Recorder, where: str) -> None:
    async with BackpropApp(attach=failed_run.directory.path).run_test(size=(100, 30)) as pilot:
        app = await ended(pilot)
        assert "e edits its settings with learning_rate 0.0003 filled in" in " ".join(text_of(app).split())
        assert "bad_alloc" in text_of(app)
        if where == "runs":
            await pilot.press(key_of("runs"))
            await until(lambda: "RUNTIME_NOT_FINITE" in text_of(app), "the run")
        await pilot.press("e")
        await until(lambda: isinstance(app.screen, ConfigureScreen), "the screen")
        screen = app.screen
        assert isinstance(screen, ConfigureScreen)
        assert screen.draft.given["learning_rate"] == 3e-4
        assert screen.draft.given["lora_r"] == 16
        assert screen.form.chosen is not None
        assert screen.form.chosen.name == "learning_rate"


async def test_what_an_error_of_a_newer_version_proposes_is_left_out(output: Path) -> None:
    run = recorded.crashed(output)
    details = {"remedy": {"no_such_setting": 1}}
    run.write(ev.RunFailed(code="RUNTIME_GPU_OOM", message="m", hint="h", retryable=False, details=details))
    async with BackpropApp(attach=run.directory.path).run_test(size=(100, 30)) as pilot:
        app = await ended(pilot)
        await pilot.press("e")
        await until(lambda: isinstance(app.screen, ConfigureScreen), "the screen")
        assert isinstance(app.screen, ConfigureScreen)
        assert "no_such_setting" not in app.screen.draft.given


async def test_a_run_that_cannot_start_says_so_and_leads_to_the_setting(output: Path) -> None:
    error = ConfigurationError("cannot be written", hint="take another", details={"field": "output_dir"})
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        pilot.app.post_message(OpenRun(raising(error), values={"steps": 7}))  # type: ignore[arg-type]
        await shown_error(pilot)
        assert "Change output_dir" in text_of(pilot.app)
        await pilot.press("e")
        await until(lambda: isinstance(pilot.app.screen, ConfigureScreen), "the screen")
        screen = pilot.app.screen
        assert isinstance(screen, ConfigureScreen)
        assert screen.draft.given == {"steps": 7}
        assert screen.form.chosen is not None
        assert screen.form.chosen.name == "output_dir"


async def test_an_error_in_data_leads_to_its_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "p{n}", "completion": "c"}}\n' for n in range(1, 31)))
    error = DatasetError("line 20: no", code="DATASET_ROWS_UNUSABLE", details={"path": str(rows), "lines": [20, 21]})
    async with BackpropApp().run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        show_error(pilot.app.screen, error)
        await shown_error(pilot)
        await pilot.press("d")
        await until(lambda: isinstance(pilot.app.screen, DataScreen), "the screen")
        screen = pilot.app.screen
        assert isinstance(screen, DataScreen)
        await until(lambda: screen.opened is not None and screen.table.line_of_cursor() == 20, "line 20")


@pytest.mark.parametrize("by", ["attach", "the list of runs"])
async def test_of_a_run_that_its_rows_ended_no_traceback_is_shown_and_data_opens_at_the_first_of_them(
    output: Path, tmp_path: Path, by: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "p{n}", "completion": "c"}}\n' for n in range(1, 31)))
    path = recorded.refused(output, data=str(rows)).directory.path
    async with BackpropApp(attach=path if by == "attach" else None).run_test(size=(100, 40)) as pilot:
        if by != "attach":
            await until(lambda: "DATASET_ROWS_UNUSABLE" in text_of(pilot.app), "the list")
            await pilot.press("enter")
        app = await ended(pilot)
        assert "skip_bad on filled in" in " ".join(text_of(app).split())
        assert "Traceback" not in text_of(app)
        await pilot.press(key_of("data"))
        await until(lambda: isinstance(app.screen, DataScreen), "the screen")
        screen = app.screen
        assert isinstance(screen, DataScreen)
        await until(lambda: screen.opened is not None and screen.table.line_of_cursor() == 20, "line 20")
        await pilot.press("escape", key_of("live"), key_of("data"))
        await pilot.press("home")
        await pilot.press(key_of("live"), key_of("data"))
        await pilot.pause()
        assert screen.table.line_of_cursor() == 1, "it is opened once: then it is where one left it"


async def test_a_second_error_does_not_cover_the_first(output: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        show_error(pilot.app.screen, RunError("the first", hint="h"))
        await shown_error(pilot)
        show_error(pilot.app.screen, RunError("the second", hint="h"))
        await pilot.press("escape")
        assert not isinstance(pilot.app.screen, ErrorPanel)


async def test_a_defect_in_a_thread_is_a_panel_with_what_is_to_be_reported(failed_run: recorded.Recorder) -> None:
    def work() -> None:
        raise KeyError("lost")

    async with BackpropApp(attach=failed_run.directory.path).run_test(size=(100, 30)) as pilot:
        await seen(pilot, failed_run.seq)
        pilot.app.run_worker(work, thread=True, exit_on_error=False)
        await shown_error(pilot)
        await pilot.press("y")
        assert "please report it" in pilot.app.clipboard
        assert 'raise KeyError("lost")' in pilot.app.clipboard


async def test_a_run_that_is_worked_on_can_be_watched_instead(output: Path) -> None:
    run = recorded.running(output, steps=5)
    with run.directory.hold_lock():
        async with BackpropApp().run_test(size=(80, 24)) as pilot:
            await pilot.pause()
            assert isinstance(pilot.app, BackpropApp)
            pilot.app.post_message(OpenRun(partial(engine_client.resume, run.directory.path)))
            await shown_error(pilot)
            assert "RUN_ALREADY_ACTIVE" in text_of(pilot.app)
            await pilot.press("w")
            await seen(pilot, run.seq)
            assert pilot.app.current_mode == "live"
