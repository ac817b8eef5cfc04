from __future__ import annotations

import sys
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
