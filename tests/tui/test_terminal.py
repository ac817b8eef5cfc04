"""What only a real terminal shows: clean exits, refusals, and silence when nothing changes."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import recorded
from acting import key_of
from patience import PATIENCE
from terminal import Terminal

APPLICATION = [sys.executable, "-c", "from backprop_tui.main import main; main()"]


def test_a_finished_run_sends_nothing_more(output: Path, tmp_path: Path) -> None:
    run = recorded.finished_demo(output)
    with Terminal([*APPLICATION, "--attach", str(run.directory.path)], cwd=tmp_path) as terminal:
        terminal.wait_for("step 60/60")
        terminal.wait_until(lambda: terminal.read(2.0) == 0, what="silence")


def test_the_first_drawing_of_the_runs_is_the_screen_itself(tmp_path: Path) -> None:
    recorded.finished_demo(tmp_path / "output")
    with Terminal(APPLICATION, cwd=tmp_path) as terminal:
        terminal.wait_for("leave")
        assert b"keep the filter" not in terminal.output


def test_what_is_copied_goes_to_the_terminals_own_clipboard(output: Path, tmp_path: Path) -> None:
    run = recorded.finished_demo(output)
    with Terminal([*APPLICATION, "--attach", str(run.directory.path)], cwd=tmp_path) as terminal:
        terminal.wait_for("step 60/60")
        terminal.send("yi")
        sent = b"\x1b]52;c;" + base64.b64encode(run.directory.run_id.encode()) + b"\a"
        terminal.wait_until(lambda: sent in terminal.output, what="the id")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_clean_terminal(output: Path, tmp_path: Path, number: int) -> None:
    run = recorded.finished_demo(output)
    with Terminal([*APPLICATION, "--attach", str(run.directory.path)], cwd=tmp_path) as terminal:
        terminal.wait_for("step 60/60")
        terminal.kill(number)
        assert terminal.wait_exit() == 128 + number
        assert terminal.is_clean
        assert terminal.echoes


def test_an_application_whose_terminal_goes_while_hang_ups_are_ignored_ends(output: Path, tmp_path: Path) -> None:
    run = recorded.finished_demo(output)
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *APPLICATION, "--attach", str(run.directory.path)]
    with Terminal(ignoring, cwd=tmp_path) as terminal:
        terminal.wait_for("step 60/60")
        terminal.hang_up()
        assert terminal.process.wait(PATIENCE) is not None


def test_a_run_that_nobody_has_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with Terminal([*APPLICATION, "--attach", "nothing"], cwd=tmp_path) as terminal:
        assert terminal.wait_exit() == 1
        assert "RUN_NOT_FOUND" in terminal.text
        assert "hint" in terminal.text


def test_a_run_that_cannot_start_is_an_error_on_a_clean_terminal(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "taken").write_text("a file where a directory is wanted")
    argv = [*APPLICATION, "--data", str(rows), "--model", "smollm2-135m", "--output", str(tmp_path / "taken")]
    with Terminal(argv, cwd=tmp_path) as terminal:
        assert terminal.wait_exit() == 1
        assert "CONFIG_INVALID" in terminal.text
        assert terminal.is_clean


@pytest.mark.parametrize("variable", [{"TERM": "dumb"}, {"PYTHONIOENCODING": "latin-1"}])
def test_where_a_full_screen_cannot_be_it_says_why_in_one_line(tmp_path: Path, variable: dict[str, str]) -> None:
    with Terminal(APPLICATION, cwd=tmp_path, env=variable) as terminal:
        terminal.wait_exit()
        assert "no full screen here" in terminal.text
        assert b"\x1b[?1049h" not in terminal.output


def test_without_a_terminal_it_goes_on_with_plain_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        APPLICATION, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=120, check=False
    )
    assert "no full screen here (standard input is no terminal)" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_no_color_is_heeded(output: Path, tmp_path: Path) -> None:
    recorded.finished_demo(output)
    with Terminal(APPLICATION, cwd=tmp_path, env={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for("done")
        styles = re.findall(rb"\x1b\[([\d;]*)m", bytes(terminal.output))
        numbers = {int(number) for style in styles for number in style.split(b";") if number}
        assert numbers <= {0, 1, 2, 4, 7, 39, 49}


@pytest.mark.parametrize(
    ("redirected", "what"), [("</dev/null", "input"), (">/dev/null", "output"), ("2>said.txt", "error")]
)
def test_a_stream_that_is_no_terminal_is_named(tmp_path: Path, redirected: str, what: str) -> None:
    argv = ["sh", "-c", f'exec "$@" {redirected}', "sh", *APPLICATION]
    with Terminal(argv, cwd=tmp_path) as terminal:
        assert terminal.wait_exit() == 0
        said = tmp_path / "said.txt"
        assert f"standard {what} is no terminal" in terminal.text + (said.read_text() if said.exists() else "")
        assert b"\x1b[?1049h" not in terminal.output


def test_a_hang_up_that_is_ignored_changes_nothing_while_the_terminal_is_there(output: Path, tmp_path: Path) -> None:
    run = recorded.finished_demo(output)
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *APPLICATION, "--attach", str(run.directory.path)]
    with Terminal(ignoring, cwd=tmp_path) as terminal:
        terminal.wait_for("step 60/60")
        terminal.kill(signal.SIGHUP)
        terminal.send(key_of("runs"))
        terminal.wait_for("runs 1")
