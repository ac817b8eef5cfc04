"""A text to the clipboard of the terminal that a person sits at, also over SSH, tmux and GNU screen.

A terminal takes it as OSC 52 and does not answer. tmux 3.3 passes that on only with ``set-clipboard on``, which is not
its default; ``tmux load-buffer -w`` gives it to tmux and to the terminal outside whatever is set. GNU screen 4.9 drops
OSC 52, and passes on what is wrapped in DCS, of which it takes 768 bytes at once.
"""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Callable, Mapping

from backprop.core.files import write_file
from backprop.core.paths import state_dir

from backprop_tui.text import count, from_home

LONGEST = 100_000
"""Characters of the encoded text that terminals take; of a longer one many keep nothing."""
_CHUNK = 700
_SECONDS = 5.0
"""After which tmux is taken not to answer."""


def hand_over(text: str, write: Callable[[str], object], environment: Mapping[str, str] = os.environ) -> str:
    """Send ``text`` by what reaches the clipboard, and say what became of it; it may wait for tmux.

    Args:
        write: sends characters to the terminal.
    """
    content = text.encode("utf-8", "replace")
    said = f"copied {count(len(text))} characters"
    if "TMUX" in environment and _to_tmux(content):
        return f"{said}; in tmux prefix ] pastes them too"
    sequence = f"\x1b]52;c;{base64.b64encode(content).decode()}\a"
    takes_none = environment.get("TERM") == "linux" or environment.get("TERM_PROGRAM") == "Apple_Terminal"
    if takes_none or len(sequence) > LONGEST:
        why = "this terminal has no clipboard" if takes_none else "too long for a terminal's clipboard"
        return f"{why}: {_to_file(content)}"
    if "STY" in environment and "TMUX" not in environment:
        parts = (sequence[at : at + _CHUNK] for at in range(0, len(sequence), _CHUNK))
        sequence = "".join(f"\x1bP{part}\x1b\\" for part in parts)
    write(sequence)
    return f"{said}; where nothing arrives: tmux needs `set -g set-clipboard on`" if "TMUX" in environment else said


def _to_tmux(content: bytes) -> bool:
    """Whether tmux took it; before 3.2 it has no ``-w``."""
    try:
        done = subprocess.run(
            ["tmux", "load-buffer", "-w", "-"], input=content, capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _to_file(content: bytes) -> str:
    path = state_dir() / "copied.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    except OSError as error:
        return f"and {from_home(str(path))} cannot be written ({error.strerror})"
    return f"it is in {from_home(str(path))}"
