"""What a newcomer wants to do, by the keys that the screen names: no path, no flag, few keystrokes; and by mouse."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from forked_engines import EngineHost
from patience import PATIENCE
from place import ENDLESS, Place, program
from terminal import Terminal
from trained_runs import run_of_four_steps

STEPS = "2"


def application(place: Place, model: Path, columns: int, rows: int) -> Terminal:
    """The application where a tiny model is the usual one and a run takes two steps."""
    env = {"BACKPROPAGATE_MODEL__NAME": str(model), "BACKPROPAGATE_TRAINING__STEPS": STEPS}
    return Terminal([program("backprop-tui")], columns=columns, rows=rows, cwd=place.folder, env=env)


def finished(terminal: Terminal, place: Place) -> None:
    """The run that was started is the one that is shown, to its end."""
    terminal.wait_until((place.folder / "output").is_dir, PATIENCE, "a run's directory")
    place.output = place.folder / "output"
    terminal.wait_for(place.run().run_id[:8], PATIENCE)
    terminal.wait_for("✓ done", PATIENCE)
    record = place.run().read_record()
    assert record.config.data == str(place.rows)
    assert record.origins["steps"] == "BACKPROPAGATE_TRAINING__STEPS"


def test_by_keys_at_80x24(place: Place, tiny_model: Path) -> None:
    with application(place, tiny_model, 80, 24) as terminal:
        terminal.wait_for("Welcome")
        pressed = 0
        for key, words in (
            ("1", "\n   rows.jsonl"),
            ("enter", "40 rows"),
            ("enter", "line 1"),
            ("v", "as JSON"),
            ("v", "trained"),
            ("t", "steps"),
            ("s", "step"),
        ):
            terminal.send(key)
            terminal.wait_for(words, PATIENCE)
            pressed += 1
            if key == "t":
                terminal.wait_for("trained tokens", PATIENCE)
        assert pressed < 10
        finished(terminal, place)


def click(terminal: Terminal, words: str) -> None:
    """Click on the words when they are there, on the last of them from the top."""
    terminal.wait_for(words, PATIENCE)
    found = [(y, line.index(words)) for y, line in enumerate(terminal.lines) if words in line]
    y, x = found[-1]
    for end in "Mm":
        terminal.send(f"\x1b[<0;{x + 1};{y + 1}{end}")


def test_by_mouse_at_140x45(place: Place, tiny_model: Path) -> None:
    with application(place, tiny_model, 140, 45) as terminal:
        terminal.wait_for("Welcome")
        click(terminal, "Data")
        terminal.wait_for("\n   rows.jsonl", PATIENCE)
        click(terminal, "rows.jsonl")
        click(terminal, "rows.jsonl")
        terminal.wait_for("40 rows", PATIENCE)
        click(terminal, "v view")
        click(terminal, "v view")
        terminal.wait_for("as tokens", PATIENCE)
        click(terminal, "t train")
        terminal.wait_until(lambda: bool(re.search(r"\d+ of 16 rows", terminal.text)), PATIENCE, "the plan")
        click(terminal, "s start")
        finished(terminal, place)


# Tasks at 80x24


class Newcomer(Terminal):
    """Somebody at 80x24 who presses keys one by one, each after the words that name it or tell what it did."""

    def __init__(self, place: Place, model: Path, **settings: str) -> None:
        env = {"BACKPROPAGATE_MODEL__NAME": str(model), "BACKPROPAGATE_TRAINING__STEPS": STEPS, **settings}
        super().__init__([program("backprop-tui")], columns=80, rows=24, cwd=place.folder, env=env)
        self.pressed = 0

    def press(self, *pairs: str) -> None:
        """Keys and words in turn: a key, and what the screen then says."""
        for key, words in zip(pairs[::2], pairs[1::2], strict=True):
            self.send(key)
            self.pressed += 1
            self.wait_for(words, PATIENCE)

    def type(self, text: str) -> None:
        """A text of one's own, which is not counted."""
        self.send(text)
        self.wait_for(text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, engine_host: EngineHost) -> Path:
    """A folder with a model, rows, and two finished runs in ``output``."""
    folder = tmp_path_factory.mktemp("newcomer")
    for rate in (1e-2, 1e-3):
        shutil.rmtree(folder / "tiny", ignore_errors=True)
        run_of_four_steps(folder, engine_host, 40, output_dir=str(folder / "output"), learning_rate=rate)
    return folder


@pytest.fixture
def home(place: Place, trained: Path) -> Place:
    """A place with those two runs in ``output``."""
    place.output = place.folder / "output"
    shutil.copytree(trained / "output", place.output, ignore=shutil.ignore_patterns("control"))
    return place


@pytest.fixture
def bad(place: Place) -> Path:
    """The only dataset of the folder: line 31 has no answer, line 32 is cut off."""
    lines = place.rows.read_text().splitlines()
    lines[30], lines[31] = json.dumps({"instruction": "Who?", "output": ""}), lines[31][:20]
    place.rows.write_text("\n".join(lines) + "\n")
    return place.rows


@pytest.fixture
def newcomer(place: Place, tiny_model: Path) -> Iterator[Newcomer]:
    with Newcomer(place, tiny_model) as terminal:
        terminal.wait_for("Welcome")
        yield terminal


@pytest.fixture
def returned(home: Place, trained: Path) -> Iterator[Newcomer]:
    """Somebody who has two runs."""
    with Newcomer(home, trained / "tiny") as terminal:
        terminal.wait_for("✓ done")
        yield terminal


def test_a_file_is_opened_without_typing_its_path(bad: Path, newcomer: Newcomer) -> None:
    before = bad.read_bytes()
    newcomer.press("1", "\n   rows.jsonl", "enter", "40 rows")
    assert newcomer.pressed == 2
    assert bad.read_bytes() == before
    assert list(bad.parent.iterdir()) == [bad]


def test_a_bad_row_is_found_by_the_keys_that_the_screen_names(bad: Path, newcomer: Newcomer) -> None:
    newcomer.press("1", "\n   rows.jsonl", "enter", "c check", "c", "checked 40 rows: 2 unusable")
    newcomer.press("n", "31 of 40", "n", "32 of 40", "v", "line 32")
    assert newcomer.pressed == 6
    assert list(bad.parent.iterdir()) == [bad]


def test_the_mask_of_a_row_is_seen(place: Place, newcomer: Newcomer) -> None:
    newcomer.press("1", "\n   rows.jsonl", "enter", "enter row", "enter", "v view", "v", "as JSON", "v", "trained")
    assert newcomer.pressed == 5
    answer = json.loads(place.rows.read_text().splitlines()[0])["output"]
    wanted = (answer, "What is number 0", "trained")  # which may come in several pieces
    newcomer.wait_until(lambda: all(words in newcomer.text for words in wanted), PATIENCE, "the mask")
    y, x = next((y, line.index(answer)) for y, line in enumerate(newcomer.lines) if answer in line)
    asked = next(y for y, line in enumerate(newcomer.lines) if "What is number 0" in line)
    colours = [
        newcomer.screen.buffer[row][column].fg for row, column in ((y, x), (asked, newcomer.lines[asked].index("What")))
    ]
    assert colours[0] != colours[1]


def test_a_run_is_configured_and_its_settings_kept_under_a_name(
    place: Place, newcomer: Newcomer, own_home: Path
) -> None:
    newcomer.press("1", "\n   rows.jsonl", "enter", "t train", "t", "trained tokens")
    newcomer.press("down", "longest row in tokens", "enter", "enter answer")
    newcomer.type("64")
    newcomer.press("enter", "enter change", "w", "Save these settings as")
    newcomer.type("mine")
    newcomer.press("enter", "saved")
    assert newcomer.pressed == 8
    (kept,) = (own_home / "config").rglob("mine*")
    assert "max_seq_length = 64" in kept.read_text()
    assert str(place.rows) in kept.read_text()


def test_a_run_is_started_paused_and_goes_on(place: Place, tiny_model: Path) -> None:
    with Newcomer(place, tiny_model, BACKPROPAGATE_TRAINING__STEPS=str(ENDLESS)) as newcomer:
        newcomer.wait_for("Welcome")
        place.output = place.folder / "output"
        newcomer.press("1", "\n   rows.jsonl", "enter", "t train", "t", "s start", "s", "p pause")
        place.wait_step(1)
        newcomer.press("p", "p go on")
        assert newcomer.pressed == 5
        place.wait_until(lambda: place.state().status == "paused", "the pause")
        at = place.state().step
        newcomer.press("p", "p pause")
        place.wait_step(at + 1)
        # Somebody leaves it and comes back.
        newcomer.pressed = 0
        newcomer.press("q", "Leave it running", "enter", "watch it again")
        assert newcomer.wait_exit(PATIENCE) == 0
        assert place.run().is_locked()
        assert newcomer.pressed == 2
    with Newcomer(place, tiny_model) as again:
        again.wait_for("running")
        beyond = place.state().step
        again.press("enter", "s stop")
        again.wait_until(lambda: shown_step(again) >= beyond, PATIENCE, f"step {beyond}")
        again.press("s", "stopped")
        assert again.pressed == 2
        place.wait_until(lambda: place.state().status == "stopped", "the end")


def shown_step(terminal: Terminal) -> int:
    found = re.search(r"step ([\d,]+)/", terminal.text)
    return int(found[1].replace(",", "")) if found else 0


def test_two_runs_are_compared(returned: Newcomer, home: Place) -> None:
    returned.press("v", "mark two runs")
    returned.press(" ", "1 marked", " ", "2 marked", "v", "loss of 2 runs", "tab", "learning_rate")
    assert returned.pressed == 5
    (line,) = [line for line in returned.lines if "learning_rate" in line]
    assert {"0.01", "0.001"} <= set(line.split())
    assert {read_run(path).status for path in home.output.iterdir()} == {"done"}


def test_a_model_is_exported_and_proved(returned: Newcomer, home: Place) -> None:
    returned.press("w", "enter export", "enter", "same")
    returned.wait_for("tensors", PATIENCE)
    assert returned.pressed == 2
    newest = max(home.output.iterdir(), key=lambda path: RunDirectory(path).read_record().created)
    (written,) = (newest / "exports").iterdir()
    assert written.read_bytes()[:4] == b"GGUF"


def test_a_model_is_talked_to_and_the_talk_kept_as_a_row(returned: Newcomer, home: Place) -> None:
    returned.press("t", "enter ask")
    returned.type("What is number 1?")
    returned.press("enter", "identical on", "escape", "enter write", "w", "save the conversation")
    returned.type("talk.jsonl")
    returned.press("enter", "saved")
    assert returned.pressed == 5
    (row,) = map(json.loads, (home.folder / "talk.jsonl").read_text().splitlines())
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["messages"][0]["content"] == "What is number 1?"
