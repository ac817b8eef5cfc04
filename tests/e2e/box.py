"""Another machine for tests of ``backprop-tui --host``: a home of its own behind a double of ssh that can be cut."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from patience import PATIENCE
from place import program
from terminal import Terminal


class Box:
    """The machine ``me@box``. Its home has a short path, as a socket must; ``backprop`` is in ``.local/bin`` there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "h"
        self.bin = folder / "b"
        (self.home / ".local" / "bin").mkdir(parents=True)
        self.backprop = self.home / ".local" / "bin" / "backprop"
        self.backprop.symlink_to(program("backprop"))
        self.bin.mkdir()
        double = (Path(__file__).parents[1] / "fixtures" / "ssh_double.py").read_text()
        (self.bin / "ssh").write_text(f"#!{sys.executable} -IS\n{double}")
        (self.bin / "ssh").chmod(0o700)
        self.set_variables()

    def set_variables(self, **more: str) -> None:
        """What a command of ssh finds there: next to nothing, and what pins this machine in tests."""
        pinned = {name: os.environ[name] for name in ("PYTHONPATH", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")}
        bare = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}
        (self.bin / "ssh.json").write_text(json.dumps({**pinned, **bare, **more}))

    def application(self, *argv: str, **more: Any) -> Terminal:
        """A terminal in which the application of that machine is asked for."""
        variables = {"PATH": f"{self.bin}:{os.environ['PATH']}", **more.pop("env", {})}
        argv = (program("backprop-tui"), "--host", "me@box", *argv)
        return Terminal(argv, **{"columns": 100, "rows": 30, "env": variables, **more})

    def cut(self) -> None:
        """Kill ssh with what it runs, but for what has a session of its own."""
        ssh = psutil.Process(int((self.bin / "pid").read_text()))
        for process in (*ssh.children(recursive=True), ssh):
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == os.getsid(ssh.pid):
                    process.kill()

    def calls(self) -> list[list[str]]:
        """The words that ssh was called with, each time."""
        return [json.loads(line) for line in (self.bin / "words.jsonl").read_text().splitlines()]

    def wait_holders(self, count: int) -> None:
        """Wait until ``count`` applications are held there."""
        deadline = time.monotonic() + PATIENCE
        while len(self.holders()) != count:
            assert time.monotonic() < deadline, f"{len(self.holders())} applications are held, not {count}"
            time.sleep(0.05)

    def holders(self) -> list[int]:
        """The processes that hold an application there."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if "backprop_tui.remote.holder" in process.cmdline() and str(self.home) in " ".join(process.cmdline()):
                    found.append(process.pid)
        return found


@contextmanager
def another_machine() -> Iterator[Box]:
    folder = Path(tempfile.mkdtemp(prefix="box-", dir="/tmp"))
    box = Box(folder)
    try:
        yield box
    finally:
        for pid in box.holders():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
