"""What starts quickly must not load what is heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
REPORT = f"""
import sys
print("loaded:", *sorted(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
"""


def heavy_modules_of(code: str) -> list[str]:
    """Heavy libraries that a fresh interpreter has loaded after ``code``."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code + REPORT], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["list-runs"], ["info"], ["list-runs", "--json"], ["--version"]]
)
def test_the_command_line_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"from backprop.cli.main import main\nassert main({arguments!r}) == 0\n"
    assert heavy_modules_of(code) == []


def test_help_loads_neither_settings_nor_rich_nor_pydantic() -> None:
    code = """
from backprop.cli.main import main
assert main(["--help"]) == 0
import sys
assert not {"msgspec", "rich", "pydantic", "textual", "sqlite3"} & set(sys.modules), sorted(sys.modules)
"""
    assert heavy_modules_of(code) == []


def test_the_library_loads_nothing_heavy_until_it_trains() -> None:
    assert heavy_modules_of("import backprop\n") == []
    assert heavy_modules_of("from backprop import Trainer, TrainingCallback, get_preset, GPUMonitor\n") == []
    assert heavy_modules_of("from backprop import Trainer\nTrainer('smollm2-135m', lora_r=8)\n") == []


def test_every_public_name_can_be_had() -> None:
    import backprop

    for name in backprop.__all__:
        assert getattr(backprop, name).__name__ == name
        assert name in dir(backprop)
    with pytest.raises(AttributeError, match="Trainerr"):
        _ = backprop.Trainerr
