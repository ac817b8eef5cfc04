"""Which rows each run of a session trains, replays and holds out."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from backprop.core.errors import DatasetValidationError, InvalidSettingError, OperationCancelledError
from backprop.core.settings import RunConfig
from backprop.data import slices
from backprop.data.slices import replayed_rows, windows


def write(folder: Path, name: str, numbers: range, more: str = "") -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in numbers) + more)
    return str(path)


def row(i: int) -> dict[str, str]:
    return {"instruction": f"Number {i}?", "output": f"It is {i}."}


def made(folder: Path, files: list[str], runs: int, replay: float = 0.0, **options: Any) -> slices.Slices:
    look = options.pop("look", lambda: False)
    config = RunConfig(data=files[0], **{"held_out": "none", **options})
    return slices.write(folder / "data", files, runs, config, replay=replay, look=look)


def numbers(file: Path) -> list[int]:
    return [int(json.loads(line)["output"][6:-1]) for line in file.open()]


def test_windows_follow_each_other_and_leave_room_for_earlier_rows() -> None:
    found = windows(500, 100, 4, 0.3)
    assert [(each[0], each[-1] + 1) for each in found] == [(0, 100), (100, 170), (170, 240), (240, 310)]
    assert [replayed_rows(len(each), 0.3, 100) for each in found[1:]] == [30, 30, 30]


def test_windows_begin_again_where_the_pool_ends_and_never_reach_beyond_it() -> None:
    assert windows(18, 8, 3)[2] == [16, 17, 0, 1, 2, 3, 4, 5]
    with pytest.raises(InvalidSettingError, match="a run of 9 rows, and there are 8"):
        windows(8, 9, 1)


def test_parts_of_one_dataset_share_no_row_and_earlier_rows_come_from_earlier_parts(tmp_path: Path) -> None:
    found = made(tmp_path, [write(tmp_path, "a", range(60))], 3, samples=20, replay=0.25)
    parts = [numbers(tmp_path / "data" / each.train) for each in found.runs]
    assert [len(part) for part in parts] == [20, 20, 20]
    assert [each.replayed for each in found.runs] == [0, 5, 5]
    new = [parts[0], parts[1][:15], parts[2][:15]]
    assert list(chain(*new)) == list(range(50))
    assert set(parts[1][15:]) <= set(new[0])
    assert set(parts[2][15:]) <= {*new[0], *new[1]}
    assert not found.again


def test_held_out_rows_are_those_among_a_runs_own_and_none_is_trained(tmp_path: Path) -> None:
    found = made(tmp_path, [write(tmp_path, "a", range(60))], 3, held_out="0.3")
    parts = [numbers(tmp_path / "data" / each.train) for each in found.runs]
    held = [numbers(tmp_path / "data" / each.held_out) for each in found.runs]
    every = sorted(chain(*parts, *held))
    assert every == list(range(60))[: len(every)]
    assert len(every) > 57  # what is left is less than a row for each
    for part, near in zip(parts, held, strict=True):
        assert near
        assert all(part[0] - len(near) <= i <= part[-1] + len(near) for i in near)
    assert sorted(numbers(tmp_path / "data" / "held-out.jsonl")) == sorted(chain(*held))


def test_a_row_that_one_dataset_holds_out_is_trained_from_no_other(tmp_path: Path) -> None:
    files = [write(tmp_path, "a", range(40)), write(tmp_path, "b", range(200))]
    found = made(tmp_path, files, 2, held_out="auto", replay=0.2)
    trained = [set(numbers(tmp_path / "data" / each.train)) for each in found.runs]
    held = [set(numbers(tmp_path / "data" / each.held_out)) for each in found.runs]
    assert held[0] - held[1]  # of the larger one another share is held out
    assert held[1]
    assert not (trained[0] | trained[1]) & (held[0] | held[1])
    assert found.runs[1].replayed == found.runs[0].rows  # more are asked for than there are


def test_the_choice_of_earlier_rows_is_the_seeds(tmp_path: Path) -> None:
    file = write(tmp_path, "a", range(60))
    read = {}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        made(tmp_path / name, [file], 2, samples=20, replay=0.5, seed=seed)
        read[name] = (tmp_path / name / "data" / "run-02.jsonl").read_bytes()
    assert read["one"] == read["same"] != read["other"]


def test_rows_that_cannot_be_used_are_named_by_their_line_or_left_out(tmp_path: Path) -> None:
    file = write(tmp_path, "a", range(20), "{broken\n")
    with pytest.raises(DatasetValidationError, match=r"a\.jsonl: 1 of 21 rows cannot be used; line 21: "):
        made(tmp_path, [file], 2)
    assert slices.read(tmp_path / "data") is None
    assert [each.rows for each in made(tmp_path, [file], 2, skip_bad=True).runs] == [10, 10]


def test_what_was_written_is_read_again_and_what_was_stopped_is_not_there(tmp_path: Path) -> None:
    file = write(tmp_path, "a", range(20))
    with pytest.raises(OperationCancelledError):
        made(tmp_path, [file], 2, look=lambda: True)
    assert slices.read(tmp_path / "data") is None
    found = made(tmp_path, [file], 5, samples=8)
    assert slices.read(tmp_path / "data") == found
    assert found.again
