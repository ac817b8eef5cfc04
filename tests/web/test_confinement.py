"""A process that is held to one directory writes there, and in the program's own places, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from backprop.core import files, paths
from backprop.core.confinement import CONFINED
from backprop.core.errors import InputError
from backprop.core.settings import RunConfig
from backprop.runs import engine_client
from backprop.runs.deletion import delete_run
from backprop.runs.directory import RunDirectory
from backprop.runs.queue import Queue
from recorded_runs import record


def output(path: Path, *, folder: bool) -> None:
    with files.new_output(path, folder=folder):
        pass


def folder(path: Path) -> None:
    with files.new_folder(path):
        pass


def contents(place: Path) -> dict[Path, bytes]:
    """Every file with its content, every folder with none."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in place.rglob("*")}


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new run": lambda place: RunDirectory.create(RunConfig(data="rows.jsonl", output_dir=str(place / "runs"))),
    "a run in the queue": lambda place: Queue().add(RunConfig(data="rows.jsonl", output_dir=str(place))),
    "going on with a run": lambda place: engine_client.launch(RunDirectory(place / "a"), "resume"),
    "a note on a run": lambda place: RunDirectory(place / "a").update_record(note="x"),
    "deleting a run": lambda place: delete_run(place / "a"),
    "a file": lambda place: files.write_file(place / "clean.jsonl", b"x"),
    "an export": lambda place: output(place / "model.gguf", folder=False),
    "an exported folder": lambda place: output(place / "merged", folder=True),
    "a folder": lambda place: folder(place / "folder"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_beyond_is_refused_and_stays_as_it_is(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, beyond = tmp_path / "root", tmp_path / "root-too"
    root.mkdir()
    record(beyond, "a", RunConfig(data="rows.jsonl"))
    (root / "link").symlink_to(beyond)
    before = contents(beyond)
    monkeypatch.setenv(CONFINED, str(root))
    for place in (beyond, root / "link", root / ".." / "root-too"):
        with pytest.raises(InputError) as refused:
            CHANGES[change](place)
        assert (refused.value.code, refused.value.exit_code) == ("UI_OUTPUT_DIR_FORBIDDEN", 1)
    assert contents(beyond) == before


def test_within_and_in_the_program_s_own_places_all_is_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, "a", RunConfig(data="rows.jsonl"))
    monkeypatch.setenv(CONFINED, str(tmp_path))
    for name, change in CHANGES.items():
        if name != "going on with a run":
            change(tmp_path)
    for place in paths.own_folders():
        place.mkdir(parents=True, exist_ok=True)
        files.write_file(place / "x", b"x")
