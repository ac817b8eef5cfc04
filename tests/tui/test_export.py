"""The Export screen over a real process that speaks the protocol and writes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import recorded
from acting import key_of, text_of, until
from backprop.core.errors import BackpropError
from backprop.core.exports import FORMATS
from backprop.runs import engine_jobs
from bare_gguf import write_gguf
from ollama_double import ollama_double
from textual.pilot import Pilot

from backprop_tui.app import BackpropApp
from backprop_tui.screens.chat import ChatScreen
from backprop_tui.screens.dialogs import Question
from backprop_tui.screens.export.formats import CHOICES, Choice
from backprop_tui.screens.export.screen import ExportScreen
from backprop_tui.screens.runs.screen import RunsScreen
from backprop_tui.screens.tasks import Failed
from backprop_tui.screens.trouble import ErrorPanel

SMALL, LARGE = (80, 24), (140, 45)


@pytest.fixture(autouse=True)
def talking_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_jobs, "EXPORT", "talking_export")
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "truecolor")
    monkeypatch.setattr(
        "backprop_tui.screens.export.formats.shutil.disk_usage", lambda path: type("Usage", (), {"free": 8e9})
    )


@pytest.fixture
def run(output: Path) -> recorded.Recorder:
    """A finished run with a result of 20 MB, the only one."""
    made = recorded.finished_demo(output)
    made.directory.adapter.mkdir(exist_ok=True)
    (made.directory.adapter / "adapter_config.json").write_text("{}")
    with (made.directory.adapter / "adapter_model.safetensors").open("wb") as file:
        file.truncate(20_000_000)
    return made


async def opened(pilot: Pilot[None]) -> ExportScreen:
    """The Export screen with the last run, reached by its number."""
    await pilot.press(key_of("export"))
    await until(lambda: isinstance(pilot.app.screen, ExportScreen), "the screen")
    screen = pilot.app.screen
    assert isinstance(screen, ExportScreen)
    await until(lambda: screen.source is not None, "the run")
    screen.flush()
    await pilot.pause()
    return screen


async def choose(pilot: Pilot[None], screen: ExportScreen, name: str, precision: str) -> None:
    screen.list.cursor = CHOICES.index(Choice(name, precision))
    await pilot.pause()


async def drawn(pilot: Pilot[None], screen: ExportScreen) -> str:
    screen.flush()
    await pilot.pause()
    assert isinstance(pilot.app, BackpropApp)
    return text_of(pilot.app)


async def test_every_format_is_listed_with_its_size_and_the_usual_one_is_chosen(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=LARGE) as pilot:
        screen = await opened(pilot)
        words = await drawn(pilot, screen)
        assert screen.choice == Choice("gguf", "q4_k_m")
        assert len(CHOICES) == sum(len(each.precisions) for each in FORMATS.values())
        lines = words.splitlines()
        assert any("merged" in line and "bf16" in line and "269.0 MB" in line for line in lines), words
        assert any("lora-gguf" in line and "f16" in line and "10.0 MB" in line for line in lines), words
        assert "fill no blocks of 256" in words, "the small model's rows are 576 wide"
        assert "backprop export 3f2a9c1b7d20 --format gguf -q q4_k_m" in words


async def test_the_proof_is_shown_and_the_next_command_copied(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=LARGE) as pilot:
        screen = await opened(pilot)
        await pilot.press("enter")
        await until(lambda: screen.done is not None, "the result")
        words = await drawn(pilot, screen)
        for line in (
            "same  tensors: 272 of 272",
            "same  prompt: byte for byte",
            "llama-cpp-python is not installed",
            "! ",
        ):
            assert line in words, line
        await pilot.press("y")
        await pilot.pause()
        assert pilot.app.clipboard.startswith("backprop ollama register ")
        await pilot.press("down")
        await pilot.press("y")
        assert pilot.app.clipboard.startswith("backprop export ")


async def test_an_export_can_be_cancelled(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        await choose(pilot, screen, "gguf", "f32")
        await pilot.press("enter")
        await until(lambda: any(task.done for task in screen.tasks.running()), "progress")
        assert "writing tensors 40 %" in await drawn(pilot, screen)
        await pilot.press("x")
        assert not screen.exporting
        assert "cancelled: nothing was written" in await drawn(pilot, screen)


async def test_leaving_during_an_export_asks_first(run: recorded.Recorder) -> None:
    app = BackpropApp()
    async with app.run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        await choose(pilot, screen, "gguf", "f32")
        await pilot.press("enter")
        await until(lambda: any(task.total for task in screen.tasks.running()), "progress")
        await pilot.press("4", "q")
        await until(lambda: "An export goes on: writing tensors" in text_of(app), "the question")
        app.flush()
        await pilot.press("s")
        assert screen.exporting
        await pilot.press("q", "l")
        await until(lambda: app._exit, "the end")
    await until(lambda: not screen.exporting, "the end of its process")


async def test_what_was_written_can_be_handed_on_after_looking_at_another_format(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=LARGE) as pilot:
        screen = await opened(pilot)
        await pilot.press("enter")
        await until(lambda: screen.done is not None, "the result")
        await pilot.press("down")
        await pilot.pause()
        assert "register" not in [key.name for key in screen.own_keys()]
        await pilot.press("up")
        assert "same  tensors: 272 of 272" in await drawn(pilot, screen)
        assert "register" in [key.name for key in screen.own_keys()]


async def test_a_run_that_cannot_be_read_is_said_and_no_other_is_exported_instead(
    run: recorded.Recorder, tmp_path: Path
) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        screen.take({"source": str(tmp_path / "gone")})
        await until(lambda: screen.failed is not None, "the error")
        assert "RUN" in await drawn(pilot, screen)
        await pilot.press("enter")
        assert not screen.exporting


async def test_an_export_that_fails_says_why_and_what_to_do(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        await choose(pilot, screen, "merged", "f16")
        await pilot.press("enter")
        await until(lambda: screen.failed is not None, "the error")
        words = await drawn(pilot, screen)
        assert "RUNTIME_DISK_FULL" in words
        assert "free some space" in words
        await pilot.press("e")
        assert isinstance(pilot.app.screen, ErrorPanel)
        assert "RUNTIME_DISK_FULL" in pilot.app.screen.told.text
        await pilot.press("escape", "e", "y")
        assert "RUNTIME_DISK_FULL" in pilot.app.clipboard


async def handed_on(pilot: Pilot[None], screen: ExportScreen, key: str, *typed: str) -> str:
    """Take the step behind ``key`` with what its prompt offers or ``typed``; what the screen says of it then."""
    await pilot.press(key)
    await pilot.pause()
    assert screen._prompt.display, "a name is asked for"
    await pilot.press(*typed, "enter")
    await until(lambda: bool(screen.handed), "what became of it")
    return await drawn(pilot, screen)


async def test_what_was_written_goes_to_ollama_and_a_refusal_leaves_the_export(
    run: recorded.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = run.directory.path / "exports"
    exports.mkdir()
    write_gguf(exports / "small-q4_k_m.gguf")
    with ollama_double() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        async with BackpropApp().run_test(size=LARGE) as pilot:
            screen = await opened(pilot)
            assert not any(key.name in ("register", "push") for key in screen.own_keys()), "there is nothing yet"
            await pilot.press("enter")
            await until(lambda: screen.done is not None, "the result")
            screen.post_message(Failed("export", BackpropError("it exists already")))
            await until(lambda: screen.failed is not None, "a second export that is refused")
            words = await drawn(pilot, screen)
            assert words.index("it exists already") < words.index("same  tensors"), "the first one's proof stays"
            words = await handed_on(pilot, screen, "r")
            assert "it exists already" not in words
            assert "small-q4_k_m" in str(server.models)
            assert "next: ollama run small-q4_k_m" in words
            assert screen.command() == "ollama run small-q4_k_m"
            screen.handed = []
            await pilot.press("r", "enter")
            await until(lambda: isinstance(pilot.app.screen, Question), "the name is taken now: is it replaced?")
            await pilot.press("enter")  # it is kept
            words = await drawn(pilot, screen)
            assert "the export stands" in words
            assert "--" not in words.partition("the export stands")[0], "no flag: there is a key"
            assert words.index("the export stands") < words.index("same  tensors"), "in sight above the proof"
            assert "error" in {key.name for key in screen.own_keys()}, "its panel is one key away"
            await pilot.press("e")
            await until(lambda: isinstance(pilot.app.screen, ErrorPanel), "the error panel")
            panel = pilot.app.screen
            assert isinstance(panel, ErrorPanel)
            assert "has a model small-q4_k_m already" in panel.told.text
            await pilot.press("escape")
            await until(lambda: pilot.app.screen is screen, "the way back")
            await pilot.press("r", "enter")
            await until(lambda: isinstance(pilot.app.screen, Question), "asked again")
            await pilot.press("r")
            await until(lambda: screen.not_handed is None and bool(screen.handed), "it is replaced")
            assert "the model of that name was replaced" in await drawn(pilot, screen)
            screen.handed = []
            words = await handed_on(pilot, screen, "p", *"nobody")
            assert "the export stands" in words, "a name on the hub has an owner"


async def test_w_on_a_run_exports_it_and_another_place_is_asked_for(run: recorded.Recorder, tmp_path: Path) -> None:
    async with BackpropApp().run_test(size=LARGE) as pilot:
        runs = pilot.app.screen
        assert isinstance(runs, RunsScreen)
        await until(lambda: bool(runs.found), "the runs")
        await pilot.press("w")
        await until(lambda: isinstance(pilot.app.screen, ExportScreen), "the screen")
        screen = pilot.app.screen
        assert isinstance(screen, ExportScreen)
        await until(lambda: screen.source is not None, "the run")
        await pilot.press("o", *"here", "enter")
        await pilot.pause()
        assert screen.output == str(tmp_path / "here")
        assert f"--output {tmp_path / 'here'}" in screen.command()


async def test_by_its_number_the_screen_shows_the_run_that_was_looked_at(run: recorded.Recorder, output: Path) -> None:
    older = recorded.finished_demo(output, "0a0a0a0a0a0a", recorded.NOW - 5000)
    async with BackpropApp().run_test(size=LARGE) as pilot:
        runs = pilot.app.screen
        assert isinstance(runs, RunsScreen)
        await until(lambda: runs.found is not None and len(runs.found) == 2, "the runs")
        for wanted in (older, run, older):
            while runs.looked_at != str(wanted.directory.path):
                await pilot.press("down" if wanted is older else "up")
                await pilot.pause()
            await pilot.press(key_of("export"))
            await until(lambda: isinstance(pilot.app.screen, ExportScreen), "the screen")
            screen = pilot.app.screen
            assert isinstance(screen, ExportScreen)
            await until(partial(getattr, screen, "source"), "the run")
            assert screen.looked_at == str(wanted.directory.path)
            await pilot.press(key_of("runs"))
            await until(lambda: pilot.app.screen is runs, "the runs")


async def test_where_the_model_is_here_the_engine_says_the_exact_sizes(
    run: recorded.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backprop_tui.screens.export.formats.find_model", lambda name: Path())
    monkeypatch.setattr("backprop_tui.screens.export.screen.SIZES", "talking_sizes")
    async with BackpropApp().run_test(size=LARGE) as pilot:
        screen = await opened(pilot)
        await until(lambda: screen.source is not None and bool(screen.source.gguf), "the sizes")
        words = await drawn(pilot, screen)
        assert "105.5 MB" in words
        assert "size     105.5 MB" in words


async def test_t_talks_to_the_file_that_was_written(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=LARGE) as pilot:
        screen = await opened(pilot)
        await pilot.press("enter")
        await until(lambda: screen.done is not None, "the result")
        assert screen.done is not None
        await pilot.press("t")
        await until(lambda: isinstance(pilot.app.screen, ChatScreen), "the screen")
        talk = pilot.app.screen
        assert isinstance(talk, ChatScreen)
        assert talk.source == screen.done.path


async def test_without_a_run_the_way_to_one_is_said() -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        await pilot.press(key_of("export"))
        await until(lambda: "no run with a result yet" in text_of(pilot.app), "the words")  # type: ignore[arg-type]


def exported(*keys: str) -> Callable[[Pilot[None]], Awaitable[None]]:
    async def act(pilot: Pilot[None]) -> None:
        screen = await opened(pilot)
        await pilot.press(*keys)
        await until(lambda: not screen.exporting, "its end")
        await drawn(pilot, screen)

    return act


@pytest.mark.usefixtures("fixed_clock")
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("keys", [(), ("enter",)], ids=["before", "after"])
def test_picture(
    run: recorded.Recorder,
    snap_compare: Callable[..., bool],
    size: tuple[int, int],
    keys: tuple[str, ...],
) -> None:
    assert snap_compare(BackpropApp(), run_before=exported(*keys), terminal_size=size)
