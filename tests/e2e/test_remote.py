"""The application of another machine in this terminal: real terminal, real engine, ssh a double that can be cut."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box, another_machine
from patience import PATIENCE
from place import ENDLESS, Place, program
from terminal import Terminal
from test_survival import shown_step

CUTS = 6
LOST = "connection lost, the run goes on"


@pytest.fixture
def box() -> Iterator[Box]:
    with another_machine() as made:
        yield made


def leave(terminal: Terminal) -> None:
    """Leave an application in which no run is open."""
    terminal.send("q")
    assert terminal.wait_exit(PATIENCE) == 0
    assert terminal.is_clean
    assert terminal.echoes


def is_bold(terminal: Terminal, text: str) -> bool:
    """Whether ``text`` is on the screen in bold, as the line under the cursor of what has the focus."""
    row, line = next(((i, line) for i, line in enumerate(terminal.lines) if text in line), (0, text))
    return bool(terminal.screen.buffer[row][line.index(text)].bold)


def test_a_run_started_there_loses_nothing_when_the_line_is_cut_again_and_again(place: Place, box: Box) -> None:
    with box.application(*place.flags, "--steps", str(ENDLESS)) as terminal:
        terminal.wait_until(lambda: shown_step(terminal) > 2, PATIENCE, "a few steps")
        for _ in range(CUTS):
            before = len(terminal.output)
            box.cut()
            terminal.wait_written(LOST, before)
            there = place.wait_step(place.state().step + 2)
            terminal.wait_until(lambda at_least=there: shown_step(terminal) >= at_least, PATIENCE, f"step {there}")
            terminal.wait_gone(LOST, PATIENCE)
        terminal.send("yi")
        copied = b"\x1b]52;c;" + base64.b64encode(place.run().run_id.encode()) + b"\a"
        terminal.wait_until(lambda: copied in terminal.output, PATIENCE, "the id in the clipboard")
        terminal.wait_for("copied", PATIENCE)  # the question is gone, and takes no key along
        terminal.send("s")
        terminal.wait_for("run stopped after", PATIENCE)
        leave(terminal)
        assert f"look at it again: backprop-tui --host me@box --attach {place.run().run_id}" in terminal.text
    state = place.state()
    assert list(state.curves.step) == list(range(1, state.step + 1))
    assert state.damage == []
    assert len(list(place.output.iterdir())) == 1
    box.wait_holders(0)
    assert list((box.home / ".local" / "state" / "backprop" / "remote").iterdir()) == []


def test_a_run_that_was_asked_for_is_not_started_again_where_its_application_is_gone(place: Place, box: Box) -> None:
    with box.application(*place.flags, "--steps", str(ENDLESS)) as terminal:
        terminal.wait_until(lambda: shown_step(terminal) > 2, PATIENCE, "a few steps")
        before = len(terminal.output)
        (holder,) = box.holders()
        os.kill(holder, signal.SIGKILL)
        terminal.wait_written(LOST, before)
        terminal.wait_gone(LOST, PATIENCE)
        name = place.run().run_id[:8]
        terminal.wait_until(lambda: name.encode() in terminal.output[before:], PATIENCE, "the run")
        terminal.wait_until(lambda: is_bold(terminal, name), PATIENCE, "the focus")
        terminal.send("enter")
        terminal.wait_until(lambda: shown_step(terminal) > 2, PATIENCE, "the run's screen")
        terminal.send("q")
        terminal.wait_for("Leave it running", PATIENCE)
        terminal.send("enter")
        assert terminal.wait_exit(PATIENCE) == 0
    place.wait_step(place.state().step + 2)
    assert len(list(place.output.iterdir())) == 1


def test_the_first_line_and_what_the_other_machine_prints_are_not_on_the_screen(box: Box) -> None:
    with box.application() as terminal:
        terminal.wait_for("Welcome to backprop", PATIENCE)
        assert b"connecting to me@box" in terminal.output
        terminal.wait_until(lambda: terminal.read(2.0) == 0, what="silence")
        leave(terminal)
        assert b"Welcome to the box" not in terminal.output
        assert b"WARNING" not in terminal.output
    (words,) = box.calls()
    assert words[:4] == ["-T", "-o", "RemoteCommand=none", "-o"]
    assert words[4:-1] == ["ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "--", "me@box"]


def test_a_size_and_a_paste_go_through(box: Box) -> None:
    with box.application(columns=120) as terminal:
        terminal.wait_for("Welcome to backprop", PATIENCE)
        terminal.resize(59, 20)
        terminal.wait_for("60", PATIENCE)
        terminal.resize(80, 24)
        terminal.wait_for("Welcome to backprop", PATIENCE)
        terminal.send("1o")
        terminal.wait_for("path", PATIENCE)
        terminal.send("\x1b[200~/no/such\x1b[201~")
        terminal.wait_for("/no/such", PATIENCE)


def test_what_was_half_typed_is_there_for_the_next_terminal_after_this_one_was_killed(box: Box) -> None:
    with box.application() as terminal:
        terminal.wait_for("Welcome to backprop", PATIENCE)
        terminal.send("1o")
        terminal.wait_for("path", PATIENCE)
        terminal.send("/half/ty")
        terminal.wait_for("/half/ty", PATIENCE)
        terminal.kill(signal.SIGKILL)
    with box.application(columns=80, rows=24) as terminal:
        terminal.wait_for("/half/ty", PATIENCE)
        terminal.send("ped")
        terminal.wait_for("/half/typed", PATIENCE)
        with box.application() as second:
            second.wait_for("Welcome to backprop", PATIENCE)
            leave(second)
        box.wait_holders(1)
        terminal.hang_up()
        assert terminal.process.wait(PATIENCE) == 128 + signal.SIGHUP
    with box.application(env={"NO_COLOR": "1"}) as plain:
        plain.wait_for("Welcome to backprop", PATIENCE)
        leave(plain)
        assert b";48;2;" not in plain.output
    with box.application() as terminal:
        terminal.wait_for("/half/typed", PATIENCE)


def test_while_the_line_is_cut_keys_are_dropped_and_q_leaves(box: Box) -> None:
    with box.application() as terminal:
        terminal.wait_for("Welcome to backprop", PATIENCE)
        (box.bin / "down").touch()
        box.cut()
        terminal.wait_for("Connection refused", PATIENCE)
        terminal.send("1")
        terminal.resize(80, 20)
        terminal.wait_until(lambda: LOST in terminal.lines[-1], PATIENCE, "the line in the last row")
        assert all(terminal.screen.buffer[19][column].reverse for column in range(79))
        (box.bin / "down").unlink()
        terminal.wait_gone(LOST, PATIENCE)
        terminal.wait_for("Welcome to backprop", PATIENCE)
        (box.bin / "down").touch()
        box.cut()
        terminal.wait_for(LOST, PATIENCE)
        terminal.send("q")
        assert terminal.wait_exit() == 0
        assert terminal.is_clean
        assert terminal.echoes
        assert b"come back with: backprop-tui --host me@box" in terminal.output
    assert "BatchMode=yes" in box.calls()[-1]
    box.wait_holders(1)


def test_r_tries_at_once_however_long_the_wait_has_become(box: Box) -> None:
    with box.application() as terminal:
        terminal.wait_for("Welcome to backprop", PATIENCE)
        (box.bin / "down").touch()
        box.cut()
        for _ in range(5):
            tried = len(box.calls())
            terminal.send("r")
            terminal.wait_until(lambda tried=tried: len(box.calls()) > tried, PATIENCE, "another try")
            terminal.wait_written("again in ", len(terminal.output))
        long = re.compile(r"again in (2\d|30) s")
        terminal.wait_until(lambda: long.search(terminal.text) is not None, PATIENCE, "a long wait")
        (box.bin / "down").unlink()
        terminal.send("r")
        terminal.wait_gone(LOST, PATIENCE)
    box.wait_holders(1)


def test_a_password_is_asked_for_before_the_screen_and_again_when_the_line_was_cut(box: Box) -> None:
    (box.bin / "asks").write_text("secret")
    with box.application() as terminal:
        terminal.wait_for("me@box's password:", PATIENCE)
        assert b"\x1b[?1049h" not in terminal.output
        terminal.send("secret\n")
        terminal.wait_for("Welcome to backprop", PATIENCE)
        before = len(terminal.output)
        box.cut()
        terminal.wait_until(lambda: b"password: " in terminal.output[before:], PATIENCE, "the question")
        assert terminal.is_clean
        before = len(terminal.output)
        terminal.send("secret\n")
        terminal.wait_until(lambda: b"Welcome to backprop" in terminal.output[before:], PATIENCE, "the screen")
        leave(terminal)


def test_ctrl_z_gives_the_shell_back_and_fg_returns(box: Box) -> None:
    command = shlex.join([program("backprop-tui"), "--host", "me@box"])
    variables = {"PATH": f"{box.bin}:/usr/bin:/bin"}
    with Terminal(["bash", "--norc", "--noprofile", "-i"], columns=100, rows=30, env=variables) as shell:
        shell.send(command + "\n")
        shell.wait_for("Welcome to backprop", PATIENCE)
        shell.send("ctrl+z")
        shell.wait_for("Stopped", PATIENCE)
        assert shell.is_clean
        before = len(shell.output)
        shell.send("fg\n")
        shell.wait_until(lambda: b"Welcome to backprop" in shell.output[before:], PATIENCE, "the screen")
        shell.send("q")
        left = b"\x1b[?1049l"  # what is typed before its prompt is dropped with the answers of the terminal
        shell.wait_until(
            lambda: shell.is_clean and b"bash-" in shell.output[shell.output.rfind(left) :], PATIENCE, "the prompt"
        )
        shell.send("echo still $((40 + 2))\n")
        shell.wait_for("still 42", PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_clean_terminal_and_the_application(box: Box, number: int) -> None:
    with box.application() as terminal:
        terminal.wait_for("Welcome to backprop", PATIENCE)
        terminal.kill(number)
        assert terminal.wait_exit(PATIENCE) == 128 + number
        assert terminal.is_clean
        assert terminal.echoes
    box.wait_holders(1)


def test_the_colours_of_this_terminal_are_used_there(box: Box) -> None:
    with box.application(env={"COLORTERM": "truecolor"}) as terminal:
        terminal.wait_for("Welcome to backprop", PATIENCE)
        assert b"38;2;" in terminal.output
        leave(terminal)


def refused(terminal: Terminal, code: str, exit_code: int) -> str:
    """The screen of a client that ended with an error before any full screen."""
    assert terminal.wait_exit(PATIENCE) == exit_code
    assert code in terminal.text
    assert "hint: " in terminal.text
    assert b"\x1b[?1049h" not in terminal.output
    return terminal.text


def test_a_machine_without_backprop_is_told_how_to_get_it_and_where_else_it_may_be(box: Box, own_home: Path) -> None:
    box.backprop.rename(box.home / "it's $here")
    with box.application(columns=200) as terminal:
        shown = refused(terminal, "DEP_MISSING", 1)
        assert "~/.local/bin/backprop" in shown
        assert 'pip install "backprop-tui[train]"' in shown
    with box.application(env={"BACKPROPAGATE_REMOTE_COMMAND": "~/it's $here"}) as terminal:
        terminal.wait_for("Welcome to backprop", PATIENCE)
        leave(terminal)


def test_another_protocol_is_refused_with_both_versions(box: Box) -> None:
    box.backprop.unlink()
    greeting = json.dumps({"protocol": 99, "version": "7.8.9"})
    box.backprop.write_text(f"#!/bin/sh\necho 'backprop-engine {greeting}'\ncat\n")
    box.backprop.chmod(0o700)
    with box.application(columns=200) as terminal:
        shown = refused(terminal, "REMOTE_VERSION_MISMATCH", 2)
        assert "7.8.9 with protocol 99" in shown
        assert "0.1.0 with protocol 1" in shown


def test_an_unreachable_machine_is_told_in_the_words_of_ssh(box: Box) -> None:
    (box.bin / "down").touch()
    with box.application(columns=200) as terminal:
        assert "ssh: connect to host box port 22: Connection refused" in refused(terminal, "REMOTE_UNREACHABLE", 2)


def test_a_program_that_knows_no_host_is_told_in_its_own_words(box: Box) -> None:
    box.backprop.unlink()
    box.backprop.write_text("#!/bin/sh\necho \"error [INPUT_VALIDATION_FAILED] no command 'engine'\" >&2\nexit 1\n")
    box.backprop.chmod(0o700)
    with box.application(columns=200) as terminal:
        assert "no command 'engine'" in refused(terminal, "REMOTE_UNREACHABLE", 2)


def test_what_the_application_there_refuses_is_told_here(box: Box) -> None:
    with box.application("--data", "nowhere.jsonl", columns=200) as terminal:
        assert terminal.wait_exit(PATIENCE) == 1
        assert f"[DATASET_NOT_FOUND] no file {box.home}/nowhere.jsonl" in terminal.text
        assert terminal.is_clean
    with box.application("--stepz", "3", columns=200) as terminal:
        assert terminal.wait_exit(PATIENCE) == 1
        assert "--stepz" in terminal.text


@pytest.mark.parametrize(
    "words",
    [
        ["--host=-oProxyCommand=touch owned"],
        ["--host", "-F/tmp/x"],
        ["--host", "me@-box"],
        ["--host", "ssh://-box"],
        ["--host", "ssh://me:secret@box"],
        ["--host", "two words"],
        ["--host"],
        ["--host", "a", "--host", "b"],
        ["--host", "box", "--json"],
    ],
)
def test_what_ssh_could_take_for_an_option_never_reaches_it(box: Box, words: list[str]) -> None:
    variables = {"PATH": f"{box.bin}:/usr/bin:/bin"}
    with Terminal([program("backprop-tui"), *words], columns=200, env=variables) as terminal:
        refused(terminal, "INPUT_VALIDATION_FAILED", 1)
    assert not (box.bin / "words.jsonl").exists()


def test_this_end_loads_neither_the_application_nor_the_command_line() -> None:
    code = "import sys, backprop_tui.remote.client\nprint({'textual', 'click', 'rich'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_without_ssh_it_is_said(tmp_path: Path) -> None:
    with Terminal([program("backprop-tui"), "--host", "box"], columns=200, env={"PATH": str(tmp_path)}) as terminal:
        assert "there is no ssh" in refused(terminal, "DEP_MISSING", 1)
