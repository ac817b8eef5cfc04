from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from backprop.core.errors import RunError
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.runs.index import RunIndex
from made_events import finished, started, step


def test_a_run_is_listed_as_its_directory_says_now(directory: RunDirectory, story: Callable[..., None]) -> None:
    story(started(), step(1))
    with RunIndex() as index:
        index.add(directory.path)
        assert [s.status for s in index.summaries()] == ["crashed"]
        story(step(2), finished(2))
        (summary,) = index.summaries()
    assert (summary.status, summary.steps, summary.model) == ("done", 2, "m")


def test_a_run_that_was_deleted_drops_out(directory: RunDirectory) -> None:
    with RunIndex() as index:
        index.add(directory.path)
        shutil.rmtree(directory.path)
        assert index.summaries() == []


def test_runs_of_an_output_directory_are_found_by_scanning(directory: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "out" / "notes").mkdir()
    with RunIndex() as index:
        index.scan(tmp_path / "out")
        index.scan(tmp_path / "missing")
        assert [s.run_id for s in index.summaries()] == [directory.run_id]


def test_the_newest_run_comes_first_and_limits_hold(tmp_path: Path) -> None:
    made = [RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path))) for _ in range(3)]
    with RunIndex() as index:
        for run in made:
            index.add(run.path)
        assert [s.run_id for s in index.summaries(limit=2)] == [made[2].run_id, made[1].run_id]
        assert index.summaries(status="done") == []


def rename(run: RunDirectory, name: str) -> RunDirectory:
    path = run.path.rename(run.path.with_name(name))
    return RunDirectory(path)


def test_a_prefix_finds_one_run_and_an_ambiguous_one_names_them(tmp_path: Path) -> None:
    with RunIndex() as index:
        for name in ("abc111", "abc222", "def333"):
            run = rename(RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path))), name)
            index.add(run.path)
        assert index.find("abc2").name == "abc222"
        assert index.find("d").name == "def333"
        with pytest.raises(RunError, match=r"fits 2 runs: .*abc111"):
            index.find("abc")
        for unknown in ("", "x", "%", "abc_"):
            with pytest.raises(RunError):
                index.find(unknown)


def test_a_damaged_index_is_set_aside_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(b"this is no database" * 100)
    with RunIndex(path) as index:
        assert index.summaries() == []
    (aside,) = tmp_path.glob("runs.damaged-*")
    assert aside.read_bytes().startswith(b"this is no database")


def test_many_threads_may_open_a_new_index_at_once(tmp_path: Path, directory: RunDirectory) -> None:
    path = tmp_path / "index" / "runs.db"
    gate = threading.Barrier(8)

    def look(_: int) -> list[str]:
        gate.wait()
        with RunIndex(path) as index:
            index.add(directory.path)
            return [summary.run_id for summary in index.summaries()]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look, range(8))) == [[directory.run_id]] * 8
    assert [each.name for each in path.parent.iterdir() if "damaged" in each.name] == []
