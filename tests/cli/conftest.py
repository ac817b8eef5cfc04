from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from backprop.cli.main import main
from patience import PATIENCE
from tiny_language_model import write_rows

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def run_command(arguments: list[str], folder: Path, **environment: str) -> Answer:
    """Run ``backprop`` as a process of its own in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backprop.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def backprop(tmp_path: Path, shared_start: None) -> Callable[..., Answer]:
    """Runs ``backprop`` in the test's folder and process; the engines that it starts share one start."""

    def run(*arguments: str, **environment: str) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(tmp_path)
            for name, value in environment.items():
                patch.setenv(name, value)
            code = main(list(arguments))
        return Answer(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def backprop_process(tmp_path: Path) -> Callable[..., Answer]:
    """Runs ``backprop`` in the test's folder as a process of its own, with real starts of everything."""

    def run(*arguments: str, **environment: str) -> Answer:
        return run_command(list(arguments), tmp_path, **environment)

    return run


@dataclass(frozen=True)
class NosyRun:
    """One real run of ``train --json``, watched by ``fixtures/nosy``: what it printed, did and left behind."""

    answer: Answer
    folder: Path
    home: Path
    notes: list[tuple[str, str]]

    @property
    def run(self) -> Path:
        return Path(self.answer.events[0]["output_dir"])

    @property
    def environment(self) -> dict[str, str]:
        return {f"XDG_{name}_HOME": str(self.home / name.lower()) for name in ("CACHE", "DATA", "CONFIG", "STATE")}


@pytest.fixture(scope="session")
def nosy_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> NosyRun:
    """The run that several tests look at: six steps, two sample prompts."""
    folder, home = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("nosy-home")
    notes = tmp_path_factory.mktemp("notes") / "notes.txt"
    (home / "tmp").mkdir()
    run = NosyRun(Answer(0, "", ""), folder, home, [])
    data = write_rows(folder / "rows.jsonl")
    arguments = ["train", "--data", str(data), "--model", str(tiny_model), "--steps", "6", "--batch-size", "2"]
    arguments += ["--gradient-accumulation", "2", "--lora-r", "4", "--lr", "0.01", "--backend", "cpu", "--json"]
    arguments += ["--sample-prompt", "What is number 3?", "--sample-tokens", "8"]
    answer = run_command(
        arguments,
        folder,
        **run.environment,
        HOME=str(home / "user"),
        TMPDIR=str(home / "tmp"),
        PYTHONPATH=os.pathsep.join([str(FIXTURES / "nosy"), str(FIXTURES)]),
        PYTHONDONTWRITEBYTECODE="1",
        NOSY_NOTES=str(notes),
        HF_HUB_OFFLINE="0",
    )
    lines = [line.split("\t", 1) for line in notes.read_text().splitlines()]
    return NosyRun(answer, folder, home, [(kind, what) for kind, what in lines])
