"""A compiled stand-in for NVIDIA's library under the real bindings, each time in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[1] / "fixtures" / "nvml" / "stand_in.c"

Play = Callable[..., Any]


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory) -> Path:
    """Directory with the stand-in, for LD_LIBRARY_PATH."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the NVML stand-in needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return folder


@pytest.fixture
def play(nvml_library, tmp_path) -> Play:
    """``play(script, code)``: run ``code`` with the stand-in playing ``script``; returns what it gave ``answer``.

    ``library`` puts another directory in place of the stand-in's, ``env`` adds variables.
    """

    def run(script: str, code: str, *, library: Path = nvml_library, env: dict[str, str] | None = None) -> Any:
        path = tmp_path / "script.txt"
        path.write_text(script)
        program = (
            "import json, msgspec\n"
            "def answer(value): print(json.dumps(msgspec.to_builtins(value)))\n"
            "class Clock:\n"
            "    now = 0.0\n"
            "    def __call__(self): return self.now\n"
            "clock = Clock()\n" + code
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_SCRIPT": str(path), **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def no_library(tmp_path) -> Path:
    """Directory in which the library's name is no library: stops the search also where a real driver is installed."""
    folder = tmp_path / "none"
    folder.mkdir()
    (folder / "libnvidia-ml.so.1").write_bytes(b"")
    return folder
