from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from backprop.core import extras
from backprop.core.extras import install_command


def test_what_installs_an_extra_is_told_for_the_environment_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/opt/a place/bin/python")
    assert install_command("train") == 'pip install "backprop-tui[train]"'

    monkeypatch.setattr(extras, "find_spec", lambda name: None)  # as in what uv makes
    assert install_command("web") == 'uv pip install --python "/opt/a place/bin/python" "backprop-tui[web]"'

    (tmp_path / "pipx_metadata.json").touch()
    assert install_command("llama") == 'pipx runpip backprop-tui install "backprop-tui[llama]"'


def test_the_extras_that_messages_and_scripts_name_are_there() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = {"train", "qlora", "unsloth", "export", "llama", "tracking", "observability", "web", "mlx", "all"}
    assert named | set(extras._EXTRAS.values()) <= set(project["optional-dependencies"])
    assert not any(part.startswith(("torch", "transformers", "peft")) for part in project["dependencies"])
