"""Paths of a configuration: absolute before an engine starts, and missing files named."""

from __future__ import annotations

from pathlib import Path

import pytest
from backprop.core.errors import DatasetNotFoundError
from backprop.core.locate import locate
from backprop.core.settings import RunConfig


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory and the person's home, with rows, held-out rows and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("rows.jsonl", "dev.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "model").mkdir()
    return tmp_path


@pytest.mark.parametrize("written", ["dev.jsonl", "~/dev.jsonl", "./dev.jsonl"])
@pytest.mark.parametrize("rows_in_memory", [False, True])
def test_every_path_is_absolute_wherever_the_run_is_looked_at_from(
    folder: Path, written: str, rows_in_memory: bool
) -> None:
    config = RunConfig(data="rows.jsonl", model="model", held_out=written, output_dir="~/out")
    found = locate(config, rows_in_memory=rows_in_memory)
    assert (found.held_out, found.model, found.output_dir) == tuple(
        str(folder / name) for name in ("dev.jsonl", "model", "out")
    )
    assert found.data == ("rows.jsonl" if rows_in_memory else str(folder / "rows.jsonl"))


@pytest.mark.parametrize("written", ["parts", "./parts/*.jsonl", "~/parts/part-?.jsonl"])
def test_parts_of_a_dataset_are_found_by_their_folder_or_a_pattern(folder: Path, written: str) -> None:
    (folder / "parts").mkdir()
    for i in range(2):
        (folder / "parts" / f"part-{i}.jsonl").write_text("{}\n")
    found = locate(RunConfig(data=written, held_out=written))
    assert found.data == found.held_out == str(folder / written.removeprefix("~/"))


@pytest.mark.parametrize("word", ["auto", "none", "0.1", "1e-2"])
def test_what_is_no_file_of_held_out_rows_stays_as_it_is(folder: Path, word: str) -> None:
    assert locate(RunConfig(data="rows.jsonl", held_out=word)).held_out == word


def test_a_missing_file_of_held_out_rows_is_named_with_the_nearest(folder: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="held-out rows") as raised:
        locate(RunConfig(data="rows.jsonl", held_out="deb.jsonl"))
    assert str(folder / "dev.jsonl") in raised.value.hint
    assert raised.value.details["field"] == "held_out"
