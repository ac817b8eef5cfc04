"""The keys of the application: one table, which a person's own ``keys.toml`` changes."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import recorded
from acting import key_of, seen, text_of, until
from backprop.core.settings_sources import keys_file
from terminal import Terminal

from backprop_tui.app import BackpropApp
from backprop_tui.own_keys import all_keys, listed, own_keys
from backprop_tui.screens.dialogs import Help
from backprop_tui.screens.runs.screen import RunsScreen

TAKEN = {"ctrl+a", "ctrl+b", "ctrl+j", "ctrl+q", "ctrl+s"}
"""The prefixes of screen and tmux, of readline and of claims on it, and those that stop and start a terminal."""


@pytest.fixture(autouse=True)
def home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    keys_file().parent.mkdir(parents=True)


def test_no_key_is_one_that_terminals_and_multiplexers_take() -> None:
    for title, keys in all_keys().items():
        for key in keys:
            assert not TAKEN & set(key.keys.split(",")), (title, key)
    assert not TAKEN & set(BackpropApp._merged_bindings.key_to_bindings)


def test_every_id_is_one_of_a_kind() -> None:
    ids = [key.id for keys in all_keys().values() for key in keys if key.id]
    assert len(ids) == len(set(ids))
    assert len(ids) > 90


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('live.puase = "x"', "there is no key live.puase: did you mean live.pause?"),
        ('live.pause = "a"', "live.pause: a is taken by live.abort"),
        ('live.pause = "q"', "live.pause: q is taken by everywhere.leave"),
        ('everywhere.leave = "p"', "everywhere.leave: p is taken by"),
        ('live.pause = "k"', "live.pause: k is taken by moving in lists"),
        ('live.pause = "X"\nlive.stop = "X"', "X is taken by live."),
        ('live.pause = "ctrl+nix"', "there is no 'ctrl+nix' on a keyboard"),
        ("live.pause = 3", "live.pause: a key is a text"),
        ('live.pause = "', "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_left_out(line: str, words: str) -> None:
    keys_file().write_text(f"[keys]\n{line}\n")
    chosen, problems = own_keys()
    assert len(problems) == 1
    assert words in problems[0]
    assert "keys.toml" in problems[0]
    assert "live.pause" not in chosen or "live.stop" not in chosen
    assert len(chosen) == line.count('"X"') // 2


def test_two_keys_can_be_swapped() -> None:
    keys_file().write_text('[keys]\nlive.pause = "s"\nlive.stop = "p"\n')
    assert own_keys() == ({"live.pause": "s", "live.stop": "p"}, [])


def test_the_list_of_keys_is_a_file_that_changes_nothing() -> None:
    lines = "\n".join(listed({}))
    keys_file().write_text(lines.replace("# live.pause", "live.pause"))
    assert tomllib.loads(keys_file().read_text()) == {"keys": {"live": {"pause": "p"}}}
    assert own_keys() == ({"live.pause": "p"}, [])


async def test_own_keys_work_and_are_shown_in_bar_help_and_palette(output: Path) -> None:
    keys_file().write_text('[keys]\nlive.log = "f7"\neverywhere.help = "f8"\neverywhere.runs = "f9"\n')
    run = recorded.finished_demo(output)
    async with BackpropApp(attach=run.directory.path).run_test(size=(120, 40)) as pilot:
        app = await seen(pilot, run.seq)
        assert "f8 help" in text_of(app)
        plot = app.screen.query_one("#plot")
        await pilot.press("l")
        assert not plot.log_y  # type: ignore[attr-defined]
        await pilot.press("f7")
        assert plot.log_y  # type: ignore[attr-defined]
        await pilot.press("f8")
        assert isinstance(app.screen, Help)
        assert "f7  logarithmic or linear" in text_of(app)
        await pilot.press("escape", "4")
        assert app.current_mode == "live"
        await pilot.press("f9")
        assert app.current_mode == "runs"
        await pilot.press("ctrl+p")
        await until(lambda: "f8  this list" in " ".join(text_of(app).split(" ")), "the palette")


async def test_the_key_that_a_person_took_away_from_marking_does_what_it_was_given_to(output: Path) -> None:
    keys_file().write_text('[keys]\nruns.mark = "m"\nruns.queue = "space"\n')
    recorded.finished_demo(output)
    async with BackpropApp().run_test(size=(80, 24)) as pilot:
        screen = pilot.app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: screen._table.count == 1, "the run")
        await pilot.press("m")
        assert len(screen._table.marked) == 1
        bar = text_of(pilot.app).split("\n")[-1]
        assert "m mark" in bar
        assert "space queue" in bar
        await pilot.press("space")
        assert len(screen._table.marked) == 1
        assert screen.has_class("-queueing")


async def test_every_sentence_that_names_a_key_names_the_persons_own(tmp_path: Path) -> None:
    own = {
        "everywhere.data": "f8",
        "runs.demo": "f7",
        "data.check": "f6",
        "data.hardest": "f9",
        "data.statistics": "f10",
    }
    keys_file().write_text("[keys]\n" + "".join(f'{id} = "{key}"\n' for id, key in own.items()))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    async with BackpropApp().run_test(size=(120, 30)) as pilot:
        await until(lambda: "f7   the demonstration" in text_of(pilot.app), "the way to the demonstration")
        assert "f8   open a dataset" in text_of(pilot.app)
        await pilot.press(key_of("live"))
        await until(lambda: "there f7 starts the demo" in text_of(pilot.app), "the same on Live")
        assert "f8 Data" in text_of(pilot.app).splitlines()[0]
        await pilot.press("f8", "enter")
        await until(lambda: "1 of 1" in text_of(pilot.app), "the file")
        await pilot.press("f10")
        await until(lambda: "f6 checks every row" in text_of(pilot.app), "what is not known yet")
        assert "f9 scores every row" in text_of(pilot.app)
        await pilot.press("n")
        await until(lambda: "f6 checks the file, then n and N go to" in text_of(pilot.app), "why there is no next")


async def test_keys_of_one_application_are_not_those_of_the_next() -> None:
    keys_file().write_text('[keys]\nruns.demo = "f7"\n')
    async with BackpropApp().run_test(size=(100, 30)) as pilot:
        await until(lambda: "f7   the demonstration" in text_of(pilot.app), "the own key")
    keys_file().unlink()
    async with BackpropApp().run_test(size=(100, 30)) as pilot:
        await until(lambda: "d   the demonstration" in text_of(pilot.app), "the usual one")


async def test_a_wrong_file_is_said_at_the_start_and_hinders_nothing(output: Path) -> None:
    keys_file().write_text('[keys]\nlive.puase = "x"\n')
    async with BackpropApp().run_test(size=(100, 30)) as pilot:
        said = pilot.app._notifications
        await until(lambda: any("did you mean live.pause?" in each.message for each in said), "what is wrong")


def test_the_command_prints_them_also_into_a_file(tmp_path: Path) -> None:
    keys_file().write_text('[keys]\nlive.pause = "P"\nlive.puase = "x"\n')
    argv = [sys.executable, "-c", "from backprop_tui.main import main; main()", "--keys"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert 'live.pause = "P"' in done.stdout.splitlines()[[*done.stdout.splitlines()].index("# Live") + 1]
    assert "did you mean live.pause?" in done.stderr


def test_in_a_terminal_too(output: Path, tmp_path: Path) -> None:
    keys_file().write_text('[keys]\neverywhere.leave = "ctrl+x"\n')
    recorded.finished_demo(output)
    argv = [sys.executable, "-c", "from backprop_tui.main import main; main()"]
    with Terminal(argv, cwd=tmp_path) as terminal:
        terminal.wait_for("ctrl+x leave")
        terminal.send("\x18")
        assert terminal.wait_exit() == 0
        assert terminal.is_clean
