"""Without the packages of [train], [export] and [web]: what works all the same, and how the rest is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from backprop.cli.main import main
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.state import read_run
from recorded_runs import record
from tiny_language_model import write_rows

HIDDEN = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "gguf", "libgguf"),
    *("textual_serve", "aiohttp", "aiohttp_jinja2", "pandas", "requests", "psutil", "regex"),
)
"""What the base does not bring, and what that brings along."""
HIDE = f"import sys\nsys.modules.update(dict.fromkeys({HIDDEN!r}))\n"
IMPORT_ALL = """
import importlib, pkgutil
import backprop, backprop_tui
from backprop import cli, core, data, demo, hardware, runs
for package in (backprop_tui, cli, core, data, demo, hardware, runs):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if found.name not in ("backprop_tui.web.guard", "backprop_tui.web.server", "backprop_tui.web.session"):
            importlib.import_module(found.name)
"""


def without(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter that has the base alone."""
    return subprocess.run(
        [sys.executable, "-P", "-c", HIDE + code, *arguments], capture_output=True, text=True, check=False
    )


def test_the_faces_and_the_data_tools_need_the_base_alone(tmp_path: Path, tiny_model: Path) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl"))
    commands = (
        ["validate", rows, "--model", str(tiny_model)],
        ["data", "report", rows],
        ["estimate-vram", "--model", str(tiny_model), "--vram", "16"],
    )
    done = without(IMPORT_ALL + f"from backprop.cli.main import main\nsys.exit(sum(map(main, {commands!r})))")
    assert done.returncode == 0, done.stderr
    for words in ("tokens: ", "languages: ", "takes no more"):
        assert words in done.stdout


@pytest.fixture
def light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in HIDDEN:
        monkeypatch.setitem(sys.modules, name, None)


TRAIN = 'torch, transformers, peft, safetensors, which this installation does not have\nhint: pip install "{}[train]"'
EXPORT = 'gguf, which this installation does not have\nhint: pip install "{}[export]"'


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--data", "{rows}", "--model", "{model}"], f"training needs {TRAIN}"),
        (["train", "--data", "{rows}", "--model", "{model}", "--dry-run"], f"this needs {TRAIN}"),
        (["demo"], f"training needs {TRAIN}"),
        (["queue", "add", "--data", "{rows}", "--model", "{model}"], f"training needs {TRAIN}"),
        (["queue", "run"], f"training needs {TRAIN}"),
        (["resume", "{run}"], f"training needs {TRAIN}"),
        (["export", "{model}", "--format", "lora"], f"this needs {TRAIN}"),
        (["ollama", "register", "{rows}", "--name", "x"], f"this needs {EXPORT}"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_missing_is_named_before_anything_is_made(
    arguments: list[str], said: str, tmp_path: Path, tiny_model: Path, capsys: Any
) -> None:
    run = record(tmp_path, "a" * 12, RunConfig(data="rows.jsonl")).path
    places = {"rows": write_rows(tmp_path / "rows.jsonl"), "model": tiny_model, "run": run}
    before = sorted(tmp_path.rglob("*"))
    assert main([word.format_map(places) for word in arguments]) == 1
    assert f"error [DEP_MISSING] {said.format('backprop-tui')}\n" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_engine_that_finds_a_package_missing_says_which_in_its_last_event(tmp_path: Path, tiny_model: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    directory = RunDirectory.create(RunConfig(data=str(rows), model=str(tiny_model), output_dir=str(tmp_path)))
    done = without('import runpy\nrunpy.run_module("backprop.train", run_name="__main__")', str(directory.path))
    failed = read_run(directory.path).failed
    assert (done.returncode, failed is not None) == (1, True)
    assert (failed.code, failed.hint) == ("DEP_MISSING", 'pip install "backprop-tui[train]"')
