"""A file or folder is there whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from backprop.core.files import (
    DEEPEST,
    new_folder,
    new_output,
    open_regular,
    read_regular,
    remove,
    sha256,
    sweep_outputs,
    too_deep,
    write_file,
)
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from written_order import written_order


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_file(path, b"old")

    def refuse(descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("kind", ["file", "output file", "output folder", "removed"])
def test_content_survives_a_power_cut_before_its_name_says_that_it_is_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "made"
    if kind == "removed":
        path.touch()
    told = written_order(monkeypatch)
    if kind == "removed":
        remove(path)
    elif kind == "file":
        write_file(path, b"new")
    else:
        with new_output(path, folder=kind == "output folder") as aside:
            (aside / "part" if aside.is_dir() else aside).write_bytes(b"new")
    (named,) = (place for place, (what, _) in enumerate(told) if what != "flushed")
    before, after = ({each for what, each in part if what == "flushed"} for part in (told[:named], told[named:]))
    aside = told[named][1]
    wanted = {"removed": set(), "output folder": {aside, aside / "part"}}
    assert before == wanted.get(kind, {aside})
    assert after == {tmp_path}


def test_a_disk_without_room_is_told_with_the_file_that_needed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"No space left on device: '.*run\.json'$"):
        write_file(tmp_path / "run.json", b"new")


def test_a_folder_replaces_another_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "adapter"

    def write(content: str) -> None:
        with new_folder(path) as folder:
            (folder / "weights").write_text(content)
            if content == "half":
                raise ValueError(content)

    write("first")
    write("second")
    with pytest.raises(ValueError, match="half"):
        write("half")
    assert (path / "weights").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_files_and_folders_are_removed_whole(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "loop"])
def test_only_a_regular_file_is_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    make = {
        "pipe": lambda: os.mkfifo(path),
        "directory": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
    }
    make[kind]()
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND):
        with pytest.raises(OSError, match=r"not a file|Too many levels|Is a directory|No such device"):
            open_regular(path, flags)


def test_a_file_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger"):
        read_regular(path, 4)


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (b"[" * DEEPEST + b"]" * DEEPEST, False),
        (b"[" * (DEEPEST + 1), True),
        (b'{"a":' * (DEEPEST + 1), True),
        (b"[]" * 1000, False),
        (b'["' + b"[" * 1000 + b'"]', False),
        (b'["\\"' + b"[" * 1000 + b'"]', False),
        (b'["' + b"[" * 1000, False),
        (b'"' * 100_001 + b"[" * 100, False),
    ],
)
def test_nesting_is_counted_outside_strings(text: bytes, deep: bool) -> None:
    assert too_deep(text) is deep


def make(path: Path, folder: bool, content: str) -> None:
    """A file, or a folder with one in it; an empty folder where there is no content."""
    if folder:
        path.mkdir(exist_ok=True)
    if content:
        (path / "part" if folder else path).write_text(content)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("folder", [True, False], ids=["folder", "file"])
def test_an_output_is_whole_at_its_place_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool, links: bool
) -> None:
    def refuse(*words: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "deep" / "output"
    with new_output(path, folder=folder) as aside:
        make(aside, folder, "mine")
        assert not path.exists()
    assert (path / "part" if folder else path).read_text() == "mine"
    assert list(path.parent.iterdir()) == [path]

    def fail() -> None:
        with new_output(tmp_path / "other", folder=folder) as aside:
            make(aside, folder, "half")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert list(tmp_path.iterdir()) == [path.parent]


@pytest.mark.parametrize("theirs", ["", "theirs"], ids=["empty", "full"])
@pytest.mark.parametrize("early", [True, False], ids=["before", "meanwhile"])
@pytest.mark.parametrize("folder", [True, False], ids=["folder", "file"])
def test_an_output_takes_nobodys_place(tmp_path: Path, folder: bool, early: bool, theirs: str) -> None:
    path = tmp_path / "output"
    if early:
        make(path, True, theirs)

    def write() -> None:
        with new_output(path, folder=folder) as aside:
            make(aside, folder, "mine")
            make(path, True, theirs)

    with pytest.raises(FileExistsError) as refused:
        write()
    assert refused.value.filename == str(path)
    assert [each.name for each in path.iterdir()] == ["part"] * bool(theirs)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_swept_and_what_is_written_stays(tmp_path: Path) -> None:
    left = tmp_path / ".old.1.1.output"
    left.mkdir()
    (left / "part").write_text("half")
    (tmp_path / ".mine.output").write_text("kept")

    with new_output(tmp_path / "one", folder=True) as first:
        assert not left.exists()
        with new_output(tmp_path / "two", folder=False):
            sweep_outputs(tmp_path)
            assert first.exists()

    assert sorted(each.name for each in tmp_path.iterdir()) == [".mine.output", "one", "two"]


def test_threads_may_read_the_same_kind_of_document_for_the_first_time_at_once(tmp_path: Path) -> None:
    """What decodes a struct is prepared at its first use, and one that is met half prepared ends the process."""
    record = RunDirectory.create(RunConfig(data="d", output_dir=str(tmp_path))).record
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from backprop.core.files import read_json\n"
        "from backprop.runs.record import RunRecord\n"
        "sys.setswitchinterval(1e-6)\n"
        "together = threading.Barrier(4)\n"
        "def read():\n"
        "    together.wait()\n"
        "    read_json(Path(sys.argv[1]), RunRecord)\n"
        "threads = [threading.Thread(target=read) for _ in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", script, str(record)], check=False).returncode == 0
