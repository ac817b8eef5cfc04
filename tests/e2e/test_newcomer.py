"""From a dataset in the current directory to a running run without typing a path or a flag: by keys, and by mouse."""

from __future__ import annotations

import re
from pathlib import Path

from place import PATIENCE, Place, program
from terminal import Terminal

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
            ("1", "rows.jsonl"),
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
        terminal.wait_for("rows.jsonl", PATIENCE)
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
