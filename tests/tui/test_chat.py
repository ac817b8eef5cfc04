"""The Chat screen over a real process that speaks the protocol, without a model in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import recorded
from acting import key_of, text_of, until
from backprop.runs import conversation
from patience import PATIENCE
from textual.pilot import Pilot

from backprop_tui.app import BackpropApp
from backprop_tui.screens.chat import ChatScreen
from backprop_tui.screens.dialogs import Question
from backprop_tui.screens.runs.screen import RunsScreen

SMALL, LARGE = (80, 24), (140, 45)


@pytest.fixture(autouse=True)
def talking_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "CHAT", "talking_model")
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "truecolor")


@pytest.fixture
def run(output: Path) -> recorded.Recorder:
    """A finished run with a result, the only one."""
    made = recorded.finished_demo(output)
    made.directory.adapter.mkdir(exist_ok=True)
    (made.directory.adapter / "adapter_config.json").write_text("{}")
    return made


async def opened(pilot: Pilot[None]) -> ChatScreen:
    """The Chat screen with the last run's model, reached by its number."""
    await pilot.press(key_of("chat"))
    await until(lambda: isinstance(pilot.app.screen, ChatScreen), "the screen")
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    await until(lambda: screen.conversation.ready is not None, "the model")
    await pilot.pause()
    return screen


async def ask(pilot: Pilot[None], words: str) -> None:
    """Type a question; return when it is answered."""
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    number = len(screen.conversation.turns)
    screen.entry.value = words
    await pilot.press("enter")
    await until(lambda: len(screen.conversation.turns) > number and screen.conversation.waits_for is None, "a reply")
    screen.flush()
    await pilot.pause()


def shown(pilot: Pilot[None]) -> str:
    assert isinstance(pilot.app, BackpropApp)
    return text_of(pilot.app)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_both_models_answer_and_what_is_identical_is_counted(
    run: recorded.Recorder, size: tuple[int, int]
) -> None:
    async with BackpropApp().run_test(size=size) as pilot:
        await opened(pilot)
        await ask(pilot, "What do you do?")
        await ask(pilot, "Say the same")
        words = shown(pilot)
        assert "identical on 1 of 2" in words
        assert "both say the same" in words
        lines = words.splitlines()
        beside = any("Ahoy!" in line and "You said: What do you do?" in line for line in lines)
        assert beside == (size == LARGE)
        assert "You said: What do you do?" in words


async def test_t_on_a_run_talks_to_it_and_runs_without_a_result_have_no_such_key(
    run: recorded.Recorder, output: Path
) -> None:
    recorded.failed(output)
    async with BackpropApp().run_test(size=LARGE) as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: screen.found is not None and len(screen.found) == 2, "the runs")
        for _ in range(2):
            chosen = screen._table.chosen
            assert chosen is not None
            has_key = any(key.keys == "t" for key in screen.own_keys())
            assert has_key == bool(chosen.output_path)
            if not has_key:
                await pilot.press("t")
                assert pilot.app.screen is screen
            await pilot.press("down")
            await pilot.pause()
        while not (screen._table.chosen and screen._table.chosen.output_path):
            await pilot.press("up")
            await pilot.pause()
        await pilot.press("t")
        await until(lambda: isinstance(pilot.app.screen, ChatScreen), "the Chat screen")
        chat = pilot.app.screen
        assert isinstance(chat, ChatScreen)
        assert chat.source == str(run.directory.path)
        await until(lambda: chat.conversation.ready is not None, "the model")


async def test_a_question_before_the_model_is_loaded_is_asked_when_it_is(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        await pilot.press("escape", "u")
        await until(lambda: not screen.loaded, "its end")
        await pilot.press("enter")
        screen.flush()
        assert "stops it" not in shown(pilot), "x is a letter while one writes"
        screen.entry.value = "Hello?"
        await pilot.press("enter")
        await until(lambda: bool(screen.conversation.turns), "the question")
        await until(lambda: screen.conversation.waits_for is None, "the reply")
        screen.flush()
        await pilot.pause()
        assert "Fair winds!" in shown(pilot)


async def test_what_must_be_known_of_the_model_stays_above_the_conversation(
    run: recorded.Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKING_MODEL_WARNS", "1")
    async with BackpropApp().run_test(size=SMALL) as pilot:
        await opened(pilot)
        for number in range(6):
            await ask(pilot, f"warned {number}?")
        assert shown(pilot).splitlines()[2].strip() == "! the base was changed; these are not the run's answers"


async def test_a_reply_is_stopped_and_the_next_one_comes(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        screen.entry.value = "please wait"
        await pilot.press("enter")
        await until(lambda: bool(screen.conversation.turns and screen.conversation.turns[0].text), "its beginning")
        screen.entry.value = "too early"
        await pilot.press("enter")
        assert "a reply is coming: esc stops it" in shown(pilot)
        await pilot.press("escape")
        await until(lambda: screen.conversation.waits_for is None, "the end of the reply")
        screen.flush()
        await pilot.pause()
        assert "stopped" in shown(pilot)
        assert "a reply is coming" not in shown(pilot)
        assert screen.focused is screen.entry, "esc stops the reply first and leaves the line then"
        await ask(pilot, "Go on")
        assert "Fair winds!" in shown(pilot)


async def test_a_new_conversation_begun_during_a_reply_can_be_talked_in(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        screen.entry.value = "please wait"
        await pilot.press("enter")
        await until(lambda: bool(screen.conversation.turns and screen.conversation.turns[0].text), "its beginning")
        screen.view.focus()
        await pilot.press("n")
        await until(lambda: screen.conversation.waits_for is None, "the end of the reply")
        await pilot.press("i")
        await ask(pilot, "Go on")
        assert [turn.prompt for turn in screen.conversation.turns] == ["Go on"]


async def test_a_second_question_before_the_model_is_loaded_replaces_none(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        screen.conversation.ready = None  # as while it is loaded
        for words in ("first", "second"):
            screen.entry.value = words
            await pilot.press("enter")
        assert (screen.waiting, screen.entry.value) == ("first", "second")
        assert "one question waits for the model already: first" in shown(pilot)


async def test_settings_reach_the_next_question_and_a_wrong_one_is_not_taken(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        await pilot.press("escape", "p")
        await pilot.press(*"Be brief", "enter")
        await pilot.press("s")
        screen._prompt._entry.value = "temperature=7"
        await pilot.press("enter")
        assert screen._prompt.display, "a wrong answer is not taken"
        assert "temperature is a number from 0 to 5" in shown(pilot)
        screen._prompt._entry.value = "temperature=0.5 seed=3"
        await pilot.press("enter")
        await pilot.press("b")
        await pilot.press("enter")
        await ask(pilot, "Hello?")
        (turn,) = screen.conversation.turns
        assert (turn.sampling.temperature, turn.sampling.seed, set(turn.replies)) == (0.5, 3, {True})
        assert screen.conversation.messages(True)[0] == {"role": "system", "content": "Be brief"}
        await pilot.press("escape", "a")
        await until(lambda: screen.conversation.waits_for is None, "the reply")
        assert [turn.sampling.seed for turn in screen.conversation.turns] == [4]


async def test_the_conversation_is_saved_as_a_row_once(run: recorded.Recorder, tmp_path: Path) -> None:
    async with BackpropApp().run_test(size=LARGE) as pilot:
        screen = await opened(pilot)
        await ask(pilot, "Hello?")
        for words in (f"saved: {tmp_path / 'talk.jsonl'}", "exists already"):
            await pilot.press("escape", "w", *"talk", "enter")
            await pilot.pause()
            assert words in shown(pilot)
        assert screen._prompt.display, "the name can be mended"
        await pilot.press("end", "2", "enter")
        await until((tmp_path / "talk2.jsonl").exists, "the second name")
        row = json.loads((tmp_path / "talk.jsonl").read_text())
        assert [each["role"] for each in row["messages"]] == ["user", "assistant"]


async def test_an_unsaved_conversation_is_not_dropped_unasked(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        await ask(pilot, "Hello?")
        for key in ("n", "q"):
            await pilot.press("escape", key)
            await until(lambda: isinstance(pilot.app.screen, Question), "the question")
            asked = pilot.app.screen
            assert isinstance(asked, Question)
            assert "The conversation, 1 question, is not saved" in asked.text
            await pilot.press("escape")
            await until(lambda: pilot.app.screen is screen, "the way back")
            assert len(screen.conversation.turns) == 1
        screen.take({"source": str(run.directory.path / "another")})
        await until(lambda: isinstance(pilot.app.screen, Question), "the question before another model")
        await pilot.press("escape")
        await until(lambda: pilot.app.screen is screen, "the way back")
        assert screen.source == str(run.directory.path)
        await pilot.press("escape", "n", "d")
        await until(lambda: not screen.conversation.turns, "a new conversation")


async def test_a_saved_conversation_is_begun_anew_at_once(run: recorded.Recorder, tmp_path: Path) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        await ask(pilot, "Hello?")
        await pilot.press("escape", "w", *"talk", "enter")
        await until((tmp_path / "talk.jsonl").exists, "the file")
        await pilot.press("n")
        await until(lambda: not screen.conversation.turns, "a new conversation")
        await pilot.press("w")
        assert not screen._prompt.display
        assert "nothing was said yet" in shown(pilot)


async def test_without_a_model_a_digit_leads_away(output: Path) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        await pilot.press(key_of("chat"))
        await until(lambda: isinstance(pilot.app.screen, ChatScreen), "the screen")
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        await until(lambda: screen.focused is screen.view, "the keys")
        await pilot.press("enter", key_of("runs"))
        await until(lambda: isinstance(pilot.app.screen, RunsScreen), "the list of runs")


async def test_a_model_that_dies_is_said_and_loaded_again_with_what_was_said(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=LARGE) as pilot:
        screen = await opened(pilot)
        await ask(pilot, "Hello?")
        screen.entry.value = "die"
        await pilot.press("enter")
        await until(lambda: not screen.loaded, "its end")
        await until(lambda: "the engine process is gone" in text_of(pilot.app), "why")
        await pilot.press("enter", "enter")
        await until(lambda: screen.conversation.ready is not None, "the model again")
        await ask(pilot, "fail")
        assert "the conversation is too long" in shown(pilot)
        await ask(pilot, "And now?")
        asked = [message["content"] for message in screen.conversation.messages(True) if message["role"] == "user"]
        assert asked == ["Hello?", "And now?"]


async def test_unloading_ends_the_process(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
        await pilot.press("escape", "u")
        await until(lambda: not screen.loaded, "its end")
        screen.flush()
        await pilot.pause()
        assert "enter loads the model of run" in shown(pilot)


async def test_beside_a_run_that_is_trained_nothing_is_loaded_unasked(run: recorded.Recorder, output: Path) -> None:
    living = recorded.running(output, created=recorded.NOW - 1000)
    with living.directory.hold_lock():
        async with BackpropApp(attach=living.directory.path).run_test(size=SMALL) as pilot:
            await until(lambda: bool(pilot.app.living()), "the run")  # type: ignore[attr-defined]
            await pilot.press(key_of("chat"))
            await until(lambda: isinstance(pilot.app.screen, ChatScreen), "the screen")
            screen = pilot.app.screen
            assert isinstance(screen, ChatScreen)
            await until(lambda: bool(screen.source), "the last result")
            assert not screen.loaded
            await pilot.press("enter")
            await until(lambda: screen.conversation.ready is not None, "the model")


async def test_without_a_run_the_way_to_one_is_said() -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        await pilot.press(key_of("chat"))
        await until(lambda: "no run with a result yet" in shown(pilot), "the words")


def talked(*prompts: str) -> Callable[[Pilot[None]], Awaitable[None]]:
    async def act(pilot: Pilot[None]) -> None:
        await opened(pilot)
        for prompt in prompts:
            await ask(pilot, prompt)

    return act


@pytest.mark.usefixtures("fixed_clock")
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_picture(run: recorded.Recorder, snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    act = talked("What do you do on a calm day?", "Please say the same", "fail")
    assert snap_compare(BackpropApp(), run_before=act, terminal_size=size)


async def test_the_models_process_ends_with_the_screen_though_somebody_still_holds_it(run: recorded.Recorder) -> None:
    async with BackpropApp().run_test(size=SMALL) as pilot:
        screen = await opened(pilot)
    for thread in [each for each in threading.enumerate() if each.name == "chat"]:
        thread.join(PATIENCE)
        assert not thread.is_alive(), screen
