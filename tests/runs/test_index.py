from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from backprop.core.errors import RunError
from backprop.core.settings import RunConfig
from backprop.runs import index as index_module
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


def test_a_run_that_is_reached_under_two_names_is_listed_once(directory: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(directory.path.parent)
    with RunIndex() as index:
        index.add(tmp_path / "link" / directory.run_id)
        index.add(directory.path / ".." / directory.run_id)
        assert [s.path for s in index.summaries()] == [str(directory.path)]
        index.remove(tmp_path / "link" / directory.run_id)
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


def rename(run: RunDirectory, name: str) -> RunDirectory:
    path = run.path.rename(run.path.with_name(name))
    return RunDirectory(path)


def test_a_prefix_finds_one_run_and_an_ambiguous_one_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunIndex() as index:
        for name in ("abc111", "abc222", "def333"):
            run = rename(RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path))), name)
            index.add(run.path)
        assert index.find("abc2").name == "abc222"
        assert index.find("d").name == "def333"
        with pytest.raises(RunError, match=r"fits 2 runs: .*abc111"):
            index.find("abc")
        copy = RunDirectory(
            shutil.copytree(run.path, tmp_path / "copy" / "def333", ignore=shutil.ignore_patterns("control"))
        )
        index.add(copy.path)
        with pytest.raises(RunError, match=rf"def333 is in 2 places: .*{copy.path}") as caught:
            index.find("def333")
        assert "directory" in caught.value.hint
        for path, said in ((tmp_path / "no", "there is no directory"), (tmp_path / "copy", "is no directory of a run")):
            with pytest.raises(RunError, match=said):
                index.find(str(path))
        monkeypatch.chdir(copy.path.parent)
        copy.path.rename("moved")
        assert index.find("moved") == Path("moved")
        monkeypatch.chdir("moved")
        for unknown in ("", "x", "%", "abc_"):
            with pytest.raises(RunError):
                index.find(unknown)


def test_a_damaged_index_is_set_aside_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(b"this is no database" * 100)
    with RunIndex(path) as index:
        assert index.summaries() == []
    (aside,) = tmp_path.glob("runs.set-aside-*")
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
    assert [each.name for each in path.parent.iterdir() if "set-aside" in each.name] == []


def spoil(path: Path) -> None:
    """A page of the table is overwritten."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 4096)


def alter(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(statement)
            db.commit()

    return change


def another_program(path: Path) -> None:
    path.unlink()
    alter("create table bookmarks (url text)")(path)


@pytest.mark.parametrize("opened_anew", [False, True])
def test_what_was_listed_is_not_forgotten_when_the_damage_shows(
    opened_anew: bool, tmp_path: Path, directory: RunDirectory
) -> None:
    path = tmp_path / "index" / "runs.db"
    elsewhere = RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path / "elsewhere")))
    with RunIndex(path) as first, RunIndex(path) as second:
        first.add(elsewhere.path)
        first.add(directory.path)
        listing = (second if opened_anew else first).each()
        seen = {next(listing).run_id}
        path.write_bytes(b"no database" * 1000)
        seen |= {summary.run_id for summary in listing}
    with RunIndex(path) as index:
        assert {summary.run_id for summary in index.summaries()} == seen == {elsewhere.run_id, directory.run_id}


@pytest.mark.parametrize(
    ("damage", "keeps"),
    [
        (spoil, False),
        (lambda path: path.write_bytes(b"no database" * 1000), False),
        (another_program, False),
        (alter("pragma user_version=-1"), True),
        (alter("alter table runs drop column stamp"), True),
        (alter("alter table runs add column colour"), True),
        (alter("drop table runs"), False),
    ],
    ids=["page", "foreign file", "another program", "older", "missing column", "more columns", "no table"],
)
def test_an_index_that_is_not_ours_is_set_aside_and_made_anew_with_what_it_named(
    damage: Callable[[Path], None], keeps: bool, tmp_path: Path, directory: RunDirectory
) -> None:
    path = tmp_path / "index" / "runs.db"
    elsewhere = RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path / "elsewhere")))
    with RunIndex(path) as index:
        index.add(elsewhere.path)
        for number in range(400):
            index.add(tmp_path / "gone" / f"{number:0200}")
    damage(path)
    with RunIndex(path) as index:
        index.add(directory.path)
        found = {summary.run_id for summary in index.summaries()}
        assert index.find(directory.run_id) == directory.path
        assert "set aside as" in index.trouble
        assert "\n" not in index.trouble
    assert directory.run_id in found
    assert not keeps or elsewhere.run_id in found
    assert len([each for each in path.parent.iterdir() if "set-aside" in each.name]) == 1
    with RunIndex(path) as index:
        assert index.trouble == ""
        assert {summary.run_id for summary in index.summaries()} == found


def test_a_newer_index_is_left_alone_and_what_it_names_is_listed(tmp_path: Path, directory: RunDirectory) -> None:
    path = tmp_path / "index" / "runs.db"
    with RunIndex(path) as index:
        index.add(directory.path)
    alter("pragma user_version=99")(path)
    before = path.read_bytes()
    with RunIndex(path) as index:
        assert [summary.run_id for summary in index.summaries()] == [directory.run_id]
        assert "of version 99, newer than this program's 1" in index.trouble
        assert index.trouble.endswith("going on without it")
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["runs.db"]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("begin exclusive")
        yield


@contextlib.contextmanager
def full(path: Path) -> Iterator[None]:
    """As on a full disk, the file cannot grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def replaced(path: Path, by: str) -> Iterator[None]:
    path.unlink()
    make = {
        "directory": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path),
    }
    make[by]()
    yield


@contextlib.contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """For root a file is never read-only: SQLite is told."""
    real = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sqlite3,
            "connect",
            lambda name, **options: (
                real(f"file:{name}?mode=ro", uri=True, **options) if name == path else real(name, **options)
            ),
        )
        yield


@pytest.mark.parametrize(
    "situation",
    [
        locked,
        full,
        unwritable,
        *(functools.partial(replaced, by=by) for by in ("directory", "pipe", "loop")),
    ],
    ids=["locked", "full disk", "read-only", "directory", "pipe", "loop"],
)
def test_an_index_that_cannot_be_used_is_done_without_and_said_once(
    situation: Callable[[Path], contextlib.AbstractContextManager[None]],
    tmp_path: Path,
    directory: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_module, "PATIENCE", 0.05)
    path = tmp_path / "index" / "runs.db"
    with RunIndex(path):
        pass
    with situation(path), RunIndex(path) as index:
        for number in range(300):
            index.add(tmp_path / "gone" / f"{number:0200}")
        index.add(directory.path)
        index.scan(directory.path.parent)
        assert [summary.run_id for summary in index.summaries()] == [directory.run_id]
        assert index.find(directory.run_id[:8]) == directory.path
        index.remove(directory.path)
        assert index.summaries() == []
        assert index.trouble.endswith("going on without it")
        assert str(path) in index.trouble
        assert "\n" not in index.trouble


def test_what_a_read_only_index_knows_is_still_found(tmp_path: Path, directory: RunDirectory) -> None:
    path = tmp_path / "index" / "runs.db"
    with RunIndex(path) as index:
        index.add(directory.path)
    with unwritable(path), RunIndex(path) as index:
        assert [summary.run_id for summary in index.summaries()] == [directory.run_id]


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nothing"])
def test_without_a_data_directory_runs_are_still_found(
    home: str, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", home)
    with RunIndex() as index:
        index.scan(directory.path.parent)
        assert index.find(directory.run_id) == directory.path
        assert "going on without it" in index.trouble


def test_a_run_on_a_disk_that_is_away_is_not_forgotten(tmp_path: Path, directory: RunDirectory) -> None:
    away = tmp_path / "away"
    with RunIndex() as index:
        index.add(directory.path)
        directory.path.parent.rename(away)
        assert index.summaries() == []
        away.rename(directory.path.parent)
        assert [summary.run_id for summary in index.summaries()] == [directory.run_id]
