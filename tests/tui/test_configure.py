"""The Configure screen: every setting as it is defined, what is wrong said where it is, and the run it starts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import pytest
import recorded
from acting import text_of, until
from backprop.cli.multi_run import session_config
from backprop.cli.options import run_config, setting_options
from backprop.core import saved_settings
from backprop.core.definition import multi_settings, settings
from backprop.core.errors import InputError
from backprop.core.locate import locate
from backprop.core.multi_run import advice
from backprop.core.presets import TRAINING_PRESETS
from backprop.core.settings import MultiConfig, RunConfig
from backprop.core.settings_sources import settings_file
from backprop.hardware.devices import CardFacts
from backprop.hardware.estimate import Shape
from backprop.runs import engine_process
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from backprop.runs.measured import Measured
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input
from tiny_language_model import write_pairs, write_rows
from tiny_tokenizer import write_model

from backprop_tui.app import BackpropApp
from backprop_tui.screens import again
from backprop_tui.screens.chooser import Chooser
from backprop_tui.screens.configure import forecast
from backprop_tui.screens.configure.about import memory_of, memory_rows
from backprop_tui.screens.configure.screen import ConfigureScreen
from backprop_tui.screens.dialogs import Question
from backprop_tui.screens.live import LiveScreen
from backprop_tui.widgets.list_view import ListView

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(autouse=True)
def talking_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "ENGINE", "talking_engine")
    monkeypatch.setenv("PYTHONPATH", str(FIXTURES))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 40)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


async def opened(pilot: Pilot[None], **values: object) -> ConfigureScreen:
    """The screen with these values, everything that can be known of them known."""
    await pilot.press("2")
    screen = pilot.app.screen
    assert isinstance(screen, ConfigureScreen)
    if values:
        screen.take({name: str(value) if isinstance(value, Path) else value for name, value in values.items()})
    await settled(pilot, screen)
    return screen


async def settled(pilot: Pilot[None], screen: ConfigureScreen) -> None:
    await pilot.pause()
    await until(lambda: screen.draft.machine is not None and not screen.tasks.running(), "the count")
    await pilot.pause()


async def change(pilot: Pilot[None], screen: ConfigureScreen, name: str, text: str) -> None:
    """Paste a value for a setting, over the one that is there."""
    screen.form.go_to(name)
    await pilot.press("enter", "ctrl+u")
    pilot.app.post_message(events.Paste(text))
    await pilot.press("enter")
    await settled(pilot, screen)


async def test_every_setting_is_shown_with_its_definition() -> None:
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        screen = await opened(pilot)
        await pilot.press("a")
        shown = [line.setting.name for line in screen.form.lines if line.setting]
        known = settings() | multi_settings()
        assert sorted(shown) == sorted(known)
        for setting in known.values():
            screen.form.go_to(setting.name)
            await pilot.pause()
            words = " ".join(screen.about.text.split())
            assert setting.help in words
            for part in (setting.range, setting.unit, setting.shown_default, *setting.choices, *setting.flags[:1]):
                assert part in words, setting.name


async def test_settings_that_others_took_the_place_of_are_brought_back(rows: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows)
        await change(pilot, screen, "steps", "77")
        await pilot.press("n")
        await pilot.pause()
        assert "steps" not in screen.draft.given
        assert "o brings back the settings that were here" in text_of(pilot.app)
        await pilot.press("o", "enter")
        await settled(pilot, screen)
        assert (screen.draft.given["steps"], screen.draft.given["data"]) == ("77", str(rows))
        screen.take({"data": str(rows)})  # as from the Data screen
        await settled(pilot, screen)
        screen.take({"data": str(rows), "method": "sft"})
        await pilot.press("o", "enter")
        await settled(pilot, screen)
        assert screen.draft.given["steps"] == "77", "what nobody chose by hand is not what is brought back"


async def test_a_name_that_cannot_be_one_is_said_while_it_is_typed() -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await pilot.press("w", *"a/b", "enter")
        await pilot.pause()
        assert screen._prompt.display, "it can be mended"
        assert "is no name for a configuration: use letters" in text_of(pilot.app)
        await pilot.press("backspace", "backspace", "enter")
        await until(lambda: saved_settings.names() == ["a"], "the file")


async def test_datasets_that_are_there_are_listed_where_one_is_asked_for(rows: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "other.jsonl", 4)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await until(lambda: bool(screen._offered), "what is there")
        screen.form.go_to("data")
        await pilot.press("enter")
        await pilot.pause()
        assert "rows.jsonl" in text_of(pilot.app), "before anything is typed"
        await pilot.press("o")
        await until(lambda: "other.jsonl" in text_of(pilot.app) and "rows.jsonl" not in text_of(pilot.app), "the list")
        await pilot.press("tab", "enter")
        await settled(pilot, screen)
        assert screen.draft.given["data"] == "other.jsonl"


async def test_a_chooser_narrowed_to_nothing_says_what_enter_does() -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        screen.form.go_to("model")
        await pilot.press("enter", *"zzz")
        await pilot.pause()
        assert "no choice holds this: enter takes 'zzz' as it is" in text_of(pilot.app)
        await pilot.press("escape", "e", *"zzz", "enter")
        await pilot.pause()
        assert "no choice holds this: there is nothing to take" in text_of(pilot.app)


async def test_the_short_form_counts_what_it_does_not_show(rows: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows, weight_decay=0.1, seed=7)
        await pilot.press("end")
        assert (
            f"{sum(not s.common for s in settings().values()) + len(multi_settings())} more settings, 2 of them changed"
            in text_of(pilot.app)
        )
        await pilot.press("enter")
        assert {"weight_decay", "seed"} <= {line.setting.name for line in screen.form.lines if line.setting}


async def test_the_run_is_known_before_it_starts(rows: Path, model: Path) -> None:
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        screen = await opened(pilot, data=rows, model=model, held_out="none", batch_size=2, gradient_accumulation=4)
        shown = screen.about.text
        assert "40 trained" in shown
        assert "15 of 8 rows: 3 passes" in shown
        screen.form.go_to("learning_rate")
        await pilot.pause()
        assert "half as much again for a run of 15" in " ".join(screen.about.text.split())
        await change(pilot, screen, "epochs", "1")
        assert "5 of 8 rows: 1 pass" in screen.about.text
        await change(pilot, screen, "steps", "4")
        assert "4 of 8 rows: 0.8 passes" in screen.about.text
        assert "only 80 % of the rows are seen in 4 steps" in " ".join(screen.about.text.split())
        assert screen.draft.found.values["epochs"] == settings()["epochs"].default


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("sft", "of each pair the chosen answer alone is trained: method dpo learns from both"),
        ("dpo", "preference, 6 rows"),
    ],
)
async def test_that_a_method_learns_one_side_of_pairs_is_said_with_the_count(
    method: str, words: str, model: Path, tmp_path: Path
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 6)
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        screen = await opened(pilot, data=pairs, model=model, method=method)
        await settled(pilot, screen)
        assert words in " ".join(screen.about.text.split())


async def test_moving_about_plans_nothing_anew(rows: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of a million rows takes longer than a key may."""
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        screen = await opened(pilot, data=rows, model=model)
        made: list[object] = []
        monkeypatch.setattr(forecast, "plan", lambda *given, **named: made.append(given))
        await pilot.press("down", "down", "up")
        assert not made
        await change(pilot, screen, "epochs", "1")
        assert len(made) == 1


async def test_a_wrong_value_is_said_as_it_is_typed_and_not_taken(rows: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows)
        screen.form.go_to("learning_rate")
        await pilot.press("enter", "ctrl+u", *"1.5", "enter")
        await pilot.pause()
        assert "above 0, at most 1, not 1.5" in text_of(pilot.app)
        await pilot.press(*("left",) * 3, "ctrl+k", *"1E-3", "enter")
        await pilot.pause()
        assert screen.draft.found.values["learning_rate"] == 1e-3
        await pilot.press("u")
        assert screen.draft.found.values["learning_rate"] == settings()["learning_rate"].default


async def test_start_says_what_is_missing_and_goes_there(rows: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        assert "start: data is missing" in text_of(pilot.app)
        screen.form.go_to("model")
        await pilot.press("s", *"rows.jsonl", "enter")
        await settled(pilot, screen)
        assert screen.draft.config is not None
        assert screen.draft.config.data == str(rows)
        assert "start: " not in text_of(pilot.app)


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"data": "row.jsonl"}, "data", "did you mean"),
        ({"data": "header.csv"}, "data", "dataset is empty; write at least one row"),
        ({"held_out": "header.csv"}, "held_out", "dataset is empty; write at least one row"),
        ({"model": "no such model"}, "model", "it is no preset"),
        ({"held_out": "others.jsonl"}, "held_out", "others.jsonl"),
        ({"mapping": "instruction"}, "mapping", "FIELD=COLUMN"),
        ({"lora_preset": "qualty"}, "lora_preset", "did you mean quality"),
    ],
)
async def test_what_is_wrong_is_said_at_its_setting(rows: Path, values: dict[str, str], field: str, words: str) -> None:
    (rows.parent / "header.csv").write_text("question,answer\n")
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        screen = await opened(pilot, **{"data": rows, **values})
        assert screen.draft.config is None
        assert list(screen.draft.wrong) == [field]
        screen.form.go_to(field)
        await pilot.pause()
        assert "".join(words.split()) in "".join(screen.about.text.split())  # a long path is broken anywhere


@pytest.mark.parametrize("size", [(80, 24), (140, 45)])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[training]\nlearning-rate = 1e-4\n", "unknown setting 'learning-rate'"),
        ("[model]\ntrust_remote_code = true\n", "trust_remote_code is taken from"),
        ('log_level = "loud"\n', "log_level takes"),
        ("[training\n", "cannot be read"),
    ],
)
async def test_what_is_wrong_in_a_file_is_said_wherever_the_cursor_is_and_start_turns_nothing(
    rows: Path, text: str, words: str, size: tuple[int, int]
) -> None:
    file = settings_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    async with BackpropApp().run_test(size=size) as pilot:
        screen = await opened(pilot, data=rows)
        screen.form.go_to("skip_bad")
        await pilot.pause()
        assert "✗ " in screen.about.text
        if size[0] > 80:  # the beginning is the file's path there
            assert words in " ".join(screen.about.text.split())
        assert "name a dataset" not in text_of(pilot.app)
        await pilot.press("s")
        await pilot.pause()
        assert screen.draft.given == {"data": str(rows)}
        assert pilot.app.screen is screen


async def test_rows_that_stop_the_run_are_said_first(rows: Path, model: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        turns = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "aye " * 400}]
        rows.write_text(rows.read_text() + json.dumps({"messages": turns}) + "\n")
        screen = await opened(pilot, data=rows, model=model, max_seq_length=128)
        assert screen.about.outlook.warnings[0] == "1 rows cannot be used: training stops there without skip_bad"


async def test_a_setting_of_a_saved_configuration_is_taken_back_to_its_default(rows: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows, seed=7, early_stopping=3)
        await pilot.press("w", *"mine", "enter")
        await pilot.pause()
        for name in ("seed", "early_stopping"):
            screen.form.go_to(name)
            await pilot.press("u")
            assert screen.draft.found.values[name] == settings()[name].default
        await pilot.press("w", "enter")
        await pilot.pause()
        await pilot.press("n", "o", "enter")
        await pilot.pause()
        assert screen.draft.file == "mine"
        assert screen.draft.found.values["data"] == str(rows)
        assert screen.draft.found.values["seed"] == settings()["seed"].default
        assert screen.draft.found.values["early_stopping"] is None


async def test_choices_turn_and_a_model_is_chosen_from_those_that_are_known(rows: Path, model: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows)
        screen.form.go_to("lora_preset")
        await pilot.press("right")
        assert screen.draft.found.values["lora_preset"] == "auto"
        await pilot.press("right")
        assert screen.draft.found.values["lora_preset"] == "balanced"
        await pilot.press("left", "left")
        assert screen.draft.found.values["lora_preset"] is None
        await pilot.press("left")
        assert screen.draft.found.values["lora_preset"] == "quality"
        screen.form.go_to("model")
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, Chooser)
        await until(lambda: "1.2B · Llama Community" in text_of(pilot.app), "the sizes of the models")
        await pilot.press(*"llama 1b", "enter")
        await pilot.pause()
        assert screen.draft.found.values["model"] == "llama-3.2-1b"
        await pilot.press("enter")
        pilot.app.post_message(events.Paste(str(model)))
        await pilot.press("enter")
        await settled(pilot, screen)
        assert screen.draft.config is not None
        assert screen.draft.config.model == str(model)


async def test_settings_are_saved_under_a_name_and_loaded_again(rows: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows, seed=7)
        await pilot.press("w", *"mine", "enter")
        await pilot.pause()
        assert saved_settings.names() == ["mine"]
        assert set(saved_settings.read_configuration("mine").given) == {"data", "seed"}
        await pilot.press("n")
        assert screen.draft.found.values["seed"] == 42
        await pilot.press("w", *"mine", "enter")
        assert isinstance(pilot.app.screen, Question)
        await pilot.press("n", "o", "enter")
        await pilot.pause()
        assert screen.draft.found.values["seed"] == 7
        assert "mine" in text_of(pilot.app).splitlines()[1]
        assert "mine.toml" in str(screen.draft.found.origins["seed"])


async def test_the_environment_is_under_the_screen_and_named(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__SEED", "7")
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        screen = await opened(pilot, data=rows)
        await pilot.press("a")
        assert "BACKPROPAGATE_TRAINING__SEED" in text_of(pilot.app)
        await change(pilot, screen, "seed", "8")
        assert "BACKPROPAGATE_TRAINING__SEED" not in text_of(pilot.app)
        assert screen.draft.config is not None
        assert screen.draft.config.seed == 8


async def test_it_starts_the_run_that_it_shows(rows: Path, output: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows, run_name="3", seed=7)
        warm = screen.warm
        assert warm is not None
        await pilot.press("s")
        await until(lambda: isinstance(pilot.app.screen, LiveScreen), "the Live screen")
        assert screen.warm is None
        app = pilot.app
        assert isinstance(app, BackpropApp)
        assert app.watched is not None
        record = app.watched.link.directory.read_record()
        assert record.config == screen.draft.config
        assert record.config.seed == 7
        assert app.watched.path.parent == output
        await until(lambda: app.watched is not None and app.watched.state.ended, "the end")


async def test_a_training_preset_is_chosen_by_keys(rows: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows)
        await pilot.press("e")
        await until(lambda: isinstance(pilot.app.screen, Chooser), "the presets")
        await pilot.press("down", "enter")
        await until(lambda: pilot.app.screen is screen, "the choice")
        preset = list(TRAINING_PRESETS)[1]
        assert screen.draft.given["preset"] == preset
        assert {str(origin) for origin in screen.draft.found.origins.values()} > {f"preset {preset} (screen)"}
        assert screen.draft.config is not None


async def test_a_row_that_was_clicked_is_not_taken_from_a_list_that_was_narrowed_to_nothing_since(rows: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows)
        await pilot.press("e")
        await until(lambda: isinstance(pilot.app.screen, Chooser), "the presets")
        choices = pilot.app.screen.query_one("#choices", ListView)
        pilot.app.screen.query_one("#chooser-input", Input).value = "no preset is called so"
        await until(lambda: not choices.count, "the narrowed list")
        choices.post_message(ListView.Chosen(choices))  # of a click in the same instant, which waited behind the text
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, Chooser)
        await pilot.press("escape")
        await until(lambda: pilot.app.screen is screen, "the form")
        assert "preset" not in screen.draft.given


async def test_the_waiting_engine_gets_ready_for_what_the_form_says(
    rows: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hints: list[RunConfig] = []
    monkeypatch.setattr("backprop.runs.engine_process.WarmEngine.hint", lambda warm, config: hints.append(config))
    monkeypatch.setattr("backprop_tui.screens.configure.screen.STILL", 0.05)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows)
        await until(lambda: hints and hints[-1] == screen.draft.config, "the first hint")
        screen.set("seed", "7")
        await until(lambda: hints[-1].seed == 7, "a hint after a change")
        before = len(hints)
        screen.set("data", None)  # which leaves nothing to get ready for
        screen.set("data", str(rows))
        screen.set("seed", "8")
        await until(lambda: hints[-1].seed == 8, "a hint after several changes")
        assert {each.seed for each in hints[before:]} == {8}


async def test_several_runs_in_sequence_are_configured_and_started(rows: Path, model: Path, output: Path) -> None:
    other = write_rows(rows.with_name("other.jsonl"), 20)
    async with BackpropApp().run_test(size=(140, 45)) as pilot:
        screen = await opened(pilot, data=rows, model=model, preset="fast")
        assert screen.draft.multi is None  # that a preset has a number of runs makes no session
        assert screen.draft.config is not None
        assert "multi-run" not in screen.about.text
        await change(pilot, screen, "tasks", f"{other} | {rows}")
        assert screen.draft.multi == MultiConfig(tasks=[str(other), str(rows)])
        words = " ".join(screen.about.text.split())
        assert "2 runs in sequence, merged by slao; of the first: alpaca, 20 rows" in words
        assert "one run 1.000" in words  # what training on all rows together gives
        assert screen.about.outlook.warnings[0] in advice(screen.draft.multi)
        await change(pilot, screen, "replay", "0.125")
        assert screen.draft.multi is not None
        assert session_of(screen.about.outlook.command) == (screen.draft.config, screen.draft.multi)
        await change(pilot, screen, "merge_weight", "0.5")
        assert "without effect on slao" in screen.draft.wrong["merge_weight"]
        await pilot.press("u", "l")
        assert "not queued" in screen.notice
        await pilot.press("w", *"mine", "enter")
        await pilot.pause()
        assert saved_settings.read_configuration("mine").given["tasks"].value == [str(other), str(rows)]
        assert screen.draft.wrong == {}
        assert screen.draft.multi == MultiConfig(tasks=[str(other), str(rows)], replay=0.125)
        await pilot.press("s")
        await until(lambda: isinstance(pilot.app.screen, LiveScreen), "the Live screen")
        (run,) = output.iterdir()
        record = RunDirectory(run).read_record()
        assert (record.kind, record.multi) == ("multi_run", screen.draft.multi)
        assert record.config.data == str(other)


def session_of(command: str) -> tuple[RunConfig, MultiConfig]:
    """What ``backprop multi-run`` makes of a command's flags."""
    found: list[tuple[RunConfig, MultiConfig]] = []

    @click.command
    @setting_options(*multi_settings(), *(name for name in settings() if name != "data"))
    def take(**given: object) -> None:
        found.append(session_config(given, None)[:2])

    words = shlex.split(command)
    assert words[:2] == ["backprop", "multi-run"]
    take.main(words[2:], standalone_mode=False)
    return found[0]


def test_a_session_that_is_not_finished_in_the_same_place_goes_on(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = recorded.session(output)
    record = session.directory.read_record()
    monkeypatch.setattr("backprop.runs.engine_client.resume", lambda path: path)
    assert again.start(record.config, record.multi, {}, None) == session.directory.path
    changed = MultiConfig(tasks=record.multi.tasks if record.multi else [], replay=0.5)
    with pytest.raises(InputError, match=r"replay was 0\.125 and is 0\.5"):
        again.start(record.config, changed, {}, None)


async def test_a_second_run_beside_a_living_one_is_asked_about(rows: Path) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        app = pilot.app
        assert isinstance(app, BackpropApp)
        await opened(pilot, data=rows, run_name="1 obey")
        await pilot.press("s")
        await until(lambda: app.watched is not None and app.watched.live, "the run")
        await pilot.press("2")
        app.flush()
        await pilot.press("s")
        assert isinstance(app.screen, Question)
        await pilot.press("n")
        assert len(app.living()) == 1
        app.watched and app.watched.kill()
        await until(lambda: not app.living(), "the end")


async def test_a_run_beside_one_of_the_queue_or_of_a_shell_is_asked_about(rows: Path, output: Path) -> None:
    run = recorded.running(output, steps=40)
    with RunIndex() as index:
        index.add(run.directory.path)
    with run.directory.hold_lock():
        async with BackpropApp().run_test(size=(80, 24)) as pilot:
            app = pilot.app
            await opened(pilot, data=rows)
            await until(lambda: "b81e40aa" in text_of(app).split("\n")[0], "the run of somebody else")
            await pilot.press("s")
            assert isinstance(app.screen, Question)
            assert "b81e40aa12cd is being trained" in " ".join(app.screen.text.split())
            await pilot.press("n")


async def test_the_command_that_is_copied_gives_the_same_run(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(BackpropApp, "copy_to_clipboard", lambda _, text: copied.append(text))
    values = {"data": rows, "mapping": "system=a b", "steps": "7", "packing": "false", "sample_prompts": ["a 'b'", "c"]}
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, **values)
        await pilot.press("y")
        assert screen.draft.config is not None
        assert msgspec.json.encode(config_of(copied[0])) == msgspec.json.encode(screen.draft.config)


def config_of(command: str) -> RunConfig:
    """The run that a shell would start by this command."""
    found: list[RunConfig] = []

    @click.command
    @setting_options()
    def train(**given: object) -> None:
        found.append(run_config(given, None).config)

    assert shlex.split(command)[:2] == ["backprop", "train"]
    train.main(shlex.split(command)[2:], standalone_mode=False)
    return locate(found[0])


async def test_data_and_runs_lead_here(rows: Path, output: Path) -> None:
    recorded.finished_demo(output)
    async with BackpropApp().run_test(size=(120, 40)) as pilot:
        await pilot.press("4")
        await until(lambda: "3f2a9c1b" in text_of(pilot.app), "the runs")
        await pilot.press("e")
        await until(lambda: isinstance(pilot.app.screen, ConfigureScreen), "the Configure screen")
        screen = pilot.app.screen
        assert isinstance(screen, ConfigureScreen)
        await until(lambda: screen.draft.found.values["steps"] == 60, "the run's settings")


@pytest.mark.parametrize("size", [(80, 24), (140, 45)])
def test_picture(rows: Path, model: Path, size: tuple[int, int], snap_compare: Callable[..., bool]) -> None:
    async def act(pilot: Pilot[None]) -> None:
        await opened(pilot, data="rows.jsonl", model="./tiny", epochs="2", learning_rate="1e-4")
        await pilot.press("down")
        await pilot.pause()

    assert json.loads(rows.read_text().splitlines()[0])
    assert snap_compare(BackpropApp(), run_before=act, terminal_size=size)


def test_the_memory_says_what_an_earlier_run_of_this_shape_took() -> None:
    config = RunConfig(data="d", model="llama-3.2-1b", mode="lora", batch_size=2, max_seq_length=512, lora_r=8)
    card = CardFacts(index=0, name="Test Card", vram_total=24 * 2**30, vram_free=20 * 2**30, temperature=None)
    shape = Shape.of(config, memory=card.vram_free).settings(config)
    peak = Measured(5 * 2**30, 1_790_000_000.0, "Test Card", "abc", 700)
    rows = memory_rows(memory_of(config, card, [({**shape, "lora_r": 16}, peak), (shape, peak)]), 100)
    assert "measured  5.0 GiB on 2026-09-21 on Test Card, rows up to 700" in [
        "".join(text for text, _ in row) for row in rows
    ]
    assert memory_of(config, card, [({**shape, "lora_r": 16}, peak)]).measured is None


async def test_the_waiting_engine_is_let_go_while_other_screens_are_shown_and_is_there_again(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot, data=rows)
        first = screen.warm
        assert first is not None
        await pilot.press("4", "2")
        await pilot.pause()
        assert screen.warm is first, "a look at another screen ends nothing"
        monkeypatch.setattr("backprop_tui.screens.configure.screen.AWAY", 0.05)
        await pilot.press("4")
        await until(lambda: screen.warm is None, "the end of the waiting engine")
        assert not Path(f"/proc/{first.pid}").exists()
        await pilot.press("2")
        await until(lambda: screen.warm is not None, "another one")
