"""A real ``backprop ui`` that asks for a password."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from patience import PATIENCE
from web_pages import PASSWORD, USER, Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, home = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("home-of-web")
    (folder / "password").write_text(f"{USER}:{PASSWORD}\n")
    names = {"HOME": home, **{f"XDG_{name}_HOME": home / name.lower() for name in ("CACHE", "DATA", "CONFIG", "STATE")}}
    environment = {**os.environ, **{name: str(path) for name, path in names.items()}}
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("backprop")), "ui", "--port", "0", "--json", "--auth", "@password"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
    try:
        assert process.stdout is not None
        told = ""
        while "}" not in told:
            told += (line := process.stdout.readline())
            assert line, (folder / "said").read_text()
        facts = json.loads(told)
        yield Served(psutil.Process(process.pid), facts["url"], Path(facts["output_dir"]), folder, environment)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130, (folder / "said").read_text()
    finally:
        process.kill()
        process.wait()
