"""Names of datasets on the hub, told from paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from backprop.core.datasets import HubName, hub_name, missing


@pytest.mark.parametrize(
    ("text", "revision", "parts"),
    [
        ("harbour/charts", None, ()),
        ("harbour/charts:test", None, ("test",)),
        ("https://huggingface.co/datasets/harbour/charts:test", None, ("test",)),
        ("harbour/charts:large:test", None, ("large", "test")),
        ("harbour/charts@v1.0", "v1.0", ()),
        ("harbour/charts@refs/pr/1:large", "refs/pr/1", ("large",)),
    ],
)
def test_a_name_may_say_revision_configuration_and_split(
    text: str, revision: str | None, parts: tuple[str, ...]
) -> None:
    assert hub_name(text) == HubName("harbour/charts", revision, parts)


@pytest.mark.parametrize(
    "text", ["harbour/charts.jsonl", "./harbour/charts", "a/b/c", "rows.jsonl", "harbour/charts:a:b:c", "charts:test"]
)
def test_a_path_that_nearly_is_a_name_is_none(text: str) -> None:
    assert hub_name(text) is None


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "harbour").mkdir()
    assert hub_name("harbour/charts") is None


def test_a_link_that_leads_nowhere_is_told_from_one_that_leads_back_to_itself(tmp_path: Path) -> None:
    (tmp_path / "circle.jsonl").symlink_to("circle.jsonl")
    (tmp_path / "gone.jsonl").symlink_to("nowhere.jsonl")
    assert "leads back to itself" in missing(tmp_path / "circle.jsonl").message
    assert missing(tmp_path / "gone.jsonl").message.endswith("is a link to nowhere.jsonl, which is gone")
