from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import recorded
from backprop.core import events as ev
from backprop.runs import index

from backprop_tui import run_reader
from backprop_tui.run_reader import RunReader


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose files were asked about."""
    names: list[str] = []
    stamp = index._stamp

    def counted(path: Path) -> str:
        names.append(path.name)
        return stamp(path)

    monkeypatch.setattr(index, "_stamp", counted)
    return names


def many(output: Path, count: int) -> list[recorded.Recorder]:
    return [recorded.failed(output, f"{number:012x}") for number in range(count)]


def nothing(portion: object) -> None:
    pass


def test_runs_that_are_over_are_looked_at_while_they_are_seen_and_the_others_seldom(
    output: Path, looked_at: list[str]
) -> None:
    runs = many(output, 20)
    living = recorded.running(output, steps=3)
    with living.directory.hold_lock():
        reader = RunReader(output)
        assert len(reader.read([], nothing)) == 21
        looked_at.clear()
        seen = [str(run.directory.path) for run in runs[:2]]
        living.steps(4, 9, 1000)
        found = {run.run_id: run for run in reader.read(seen, nothing)}
        assert sorted(looked_at) == sorted([*(Path(path).name for path in seen), living.directory.run_id])
        assert found[living.directory.run_id].steps == 9
        assert len(found) == 21


def test_a_run_that_comes_or_goes_is_found_at_the_next_look(output: Path) -> None:
    runs = many(output, 3)
    reader = RunReader(output)
    reader.read([], nothing)
    recorded.finished_demo(output)
    assert len(reader.read([], nothing)) == 4
    shutil.rmtree(runs[0].directory.path)
    assert len(reader.read([], nothing)) == 3


def test_a_run_of_another_place_is_found_when_the_index_is_told(output: Path, tmp_path: Path) -> None:
    many(output, 1)
    reader = RunReader(output)
    reader.read([], nothing)
    with index.RunIndex() as runs:
        runs.add(recorded.finished_demo(tmp_path / "elsewhere").directory.path)
    assert len(reader.read([], nothing)) == 2


def test_a_run_out_of_sight_that_somebody_continued_is_found_in_time(output: Path) -> None:
    (run,) = many(output, 1)
    reader = RunReader(output)
    (before,) = reader.read([], nothing)
    run.write(ev.RunStarted(config={}, output_dir="", pid=1, resumed_from=0))
    assert reader.read([], nothing) == [before]
    assert reader.read([before.path], nothing)[0].status == "crashed"
    run.finish(1, 1.0)
    reader.read_all()
    assert reader.read([], nothing)[0].status == "done"


def test_of_many_runs_the_first_are_shown_before_all_are_read(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_reader, "PORTION", 0.0)
    many(output, 3)
    portions: list[int] = []
    RunReader(output).read([], lambda runs: portions.append(len(runs)))
    assert portions == [1, 2, 3]


def test_without_an_index_the_runs_are_found_and_stay(output: Path, own_home: Path) -> None:
    many(output, 2)
    (own_home / "data").write_text("in the way")
    reader = RunReader(output)
    for _ in range(2):
        assert len(reader.read([], nothing)) == 2
    assert "cannot be used" in reader.trouble
