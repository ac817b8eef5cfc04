from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import recorded
from acting import key_of, text_of, until
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.screen import Screen

from backprop_tui.app import BackpropApp
from backprop_tui.screens import SCREENS

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "numpy", "pyarrow")


def test_the_application_starts_without_any_of_the_heavy_libraries() -> None:
    script = (
        "import asyncio, sys\n"
        "import backprop_tui.main\n"
        "from backprop_tui.app import BackpropApp\n"
        "async def go():\n"
        "    async with BackpropApp().run_test() as pilot:\n"
        f"        await pilot.press({key_of('live')!r}, {key_of('runs')!r}, 'question_mark', 'escape')\n"
        "asyncio.run(go())\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_first_screen_loads_nothing_that_it_does_not_show() -> None:
    later = ("backprop.core.datasets", "backprop.core.jobs", "backprop_tui.palette", "statistics")
    script = (
        "import sys\n"
        "from backprop_tui.app import BackpropApp\n"
        "import backprop_tui.screens.runs.screen\n"
        f"print([name for name in {later!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_watching_a_run_loads_no_command_line(tmp_path: Path) -> None:
    run = recorded.failed(tmp_path / "output")
    script = (
        "import sys\n"
        "from backprop_tui import main\n"
        f"sys.argv = ['backprop-tui', '--attach', {run.directory.run_id!r}]\n"
        "main.terminal.obstacle = lambda: ''\n"
        "main.show = lambda config, run, *more: print(run, 'click' in sys.modules)\n"
        "main.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == f"{run.directory.path} False", done.stderr


def test_every_screen_states_the_name_and_the_keys_that_the_table_knows() -> None:
    for entry in SCREENS:
        screen = entry.load_screen()
        assert (entry.name, entry.load_keys()) == (screen.NAME, screen.KEYS)
        missing = [key.action for key in screen.KEYS if not hasattr(screen, f"action_{key.name}")]
        assert missing == []


def test_deleting_a_run_names_its_whole_directory() -> None:
    from backprop_tui.screens.dialogs import AnswerList, deleting

    path = "~/a/very/long/way/to/the/directory/of/the/run/" + "x" * 60
    rows = AnswerList(deleting("run abc", path)).rows(60, 20)
    text = "".join(piece for row in rows for piece, _ in row).replace(" ", "")
    assert path in text
    assert all(sum(len(piece) for piece, _ in row) <= 60 for row in rows)


async def test_what_was_drawn_with_the_whole_screen_is_not_drawn_once_more(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells that are sent until the list and the run under the cursor are there, in screens."""
    recorded.one_of_each(output)
    width, height = size = 140, 45
    sent = []

    def display(app: BackpropApp, screen: Screen[None], update: object) -> None:
        if isinstance(update, LayoutUpdate):
            sent.append(width * height)
        elif isinstance(update, ChopsUpdate):
            sent.append(sum(end - start for _, start, end in update.spans))
        shown(app, screen, update)

    shown = BackpropApp._display
    monkeypatch.setattr(BackpropApp, "_display", display)
    async with BackpropApp().run_test(size=size) as pilot:
        await until(lambda: "directory" in text_of(pilot.app), "the run under the cursor")
        await pilot.pause()
        assert sum(sent) < 2.6 * width * height, sent
