"""What is copied reaches the clipboard of the terminal that a person sits at, or a file."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import recorded
from acting import key_of
from backprop.core.paths import state_dir
from patience import PATIENCE
from terminal import Terminal

from backprop_tui.clipboard import LONGEST, hand_over

APPLICATION = [sys.executable, "-c", "from backprop_tui.main import main; main()"]
PLAIN = {"TERM": "xterm-256color"}


@pytest.fixture(autouse=True)
def home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def sequence_of(text: str) -> str:
    return f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\a"


def test_a_terminal_gets_it_as_it_is() -> None:
    sent: list[str] = []
    assert hand_over("ä " * 1000, sent.append, PLAIN) == "copied 2,000 characters"
    assert sent == [sequence_of("ä " * 1000)]


def test_gnu_screen_passes_it_on_in_parts_that_it_takes() -> None:
    sent: list[str] = []
    hand_over("hello " * 1000, sent.append, PLAIN | {"STY": "1.pts"})
    parts = re.findall(r"\x1bP(.*?)\x1b\\", sent[0], re.DOTALL)
    assert "".join(f"\x1bP{part}\x1b\\" for part in parts) == sent[0]
    assert max(map(len, parts)) < 768
    assert "".join(parts) == sequence_of("hello " * 1000)


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("secret plan", {"TERM": "linux"}),
        ("secret plan", PLAIN | {"TERM_PROGRAM": "Apple_Terminal"}),
        ("x" * LONGEST, PLAIN),
    ],
)
def test_where_no_clipboard_takes_it_a_file_does_and_its_path_is_said(
    text: str, environment: dict[str, str], tmp_path: Path
) -> None:
    sent: list[str] = []
    assert "~/state/backprop/copied.txt" in hand_over(text, sent.append, environment)
    assert sent == []
    assert (state_dir() / "copied.txt").read_text() == text


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    assert "cannot be written" in hand_over("text", bool, {"TERM": "linux"})


def test_a_tmux_that_does_not_answer_leaves_it_to_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sent: list[str] = []
    assert "set-clipboard on" in hand_over("text", sent.append, PLAIN | {"TMUX": "/none,1,0"})
    assert sent == [sequence_of("text")]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
@pytest.mark.parametrize("setting", ["on", "external", "off"])
def test_tmux_and_the_terminal_outside_it_get_it_whatever_is_set(output: Path, tmp_path: Path, setting: str) -> None:
    run = recorded.finished_demo(output)
    (tmp_path / "tmux.conf").write_text(f"set -g set-clipboard {setting}\n")
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", str(tmp_path / "tmux.conf")]
    with Terminal([*tmux, "new-session", *APPLICATION], cwd=tmp_path) as terminal:
        try:
            terminal.wait_for("done after")
            terminal.send("yi")
            sent = base64.b64encode(run.directory.run_id.encode())
            terminal.wait_until(lambda: re.search(rb"\x1b\]52;c?;" + sent, terminal.output) is not None, what="the id")
            terminal.wait_for("copied 12 characters")
            pasted = subprocess.run([*tmux, "show-buffer"], capture_output=True, text=True, check=True)
            assert pasted.stdout == run.directory.run_id
        finally:
            subprocess.run([*tmux, "kill-server"], check=False, capture_output=True, timeout=PATIENCE)


def test_the_mouse_is_turned_off_and_stays_off(output: Path, tmp_path: Path) -> None:
    recorded.finished_demo(output)
    with Terminal(APPLICATION, cwd=tmp_path) as terminal:
        terminal.wait_for("done after")
        assert b"\x1b[?1003h" in terminal.output
        terminal.send("\x1bOR")  # f3
        terminal.wait_for("the mouse is off")
        terminal.wait_until(lambda: b"\x1b[?1003l" in terminal.output, what="its end")
        terminal.send("q")
        assert terminal.wait_exit() == 0
    with Terminal(APPLICATION, cwd=tmp_path) as terminal:
        terminal.wait_for("done after")
        terminal.send(key_of("live"))
        terminal.wait_for("no run is open")
        assert b"\x1b[?1000h" not in terminal.output
        terminal.send("\x1bOR")
        terminal.wait_for("the mouse is on")
        terminal.wait_until(lambda: b"\x1b[?1003h" in terminal.output, what="its beginning")
        terminal.send("q")
        assert terminal.wait_exit() == 0
        assert terminal.is_clean
