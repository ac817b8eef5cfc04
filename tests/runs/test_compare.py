from __future__ import annotations

import os
from array import array
from pathlib import Path

import msgspec
import pytest
import recorded_runs
from backprop.core.settings import RunConfig
from backprop.runs.compare import MOST_ROWS, compare, row_changes
from backprop.runs.directory import RunDirectory
from backprop.runs.state import RunState, read_run


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("abc", "abc", []),
        ("abcde", "abXde", [(3, 3)]),
        ("abcde", "Xabcde", [(None, 1)]),
        ("abcde", "bcde", [(1, None)]),
        ("abcde", "XaYcde", [(None, 1), (2, 3)]),
        ("abcde", "abXcYZ", [(None, 3), (4, 5), (5, 6)]),
        ("aaba", "aba", [(4, None)]),
        ("ab", "ba", []),
        ("", "ab", [(None, 1), (None, 2)]),
        ("ab", "", [(1, None), (2, None)]),
    ],
)
def test_rows_are_changed_added_or_removed_by_what_they_say(
    before: str, after: str, changes: list[tuple[int | None, int | None]]
) -> None:
    sides = [{line: ord(sign) for line, sign in enumerate(text, 1)} for text in (before, after)]
    assert row_changes(*sides) == changes


def run(output: Path, run_id: str, rows: list[str], **settings: object) -> RunState:
    """A run on these rows, each with its number as its hash, as an engine leaves it."""
    path = output / f"{run_id}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    os.utime(path, (1000, 1000))
    directory = recorded_runs.record(output, run_id, RunConfig(data=str(path), output_dir=str(output), **settings))
    directory.source.mkdir()
    (directory.source / "identity.json").write_bytes(msgspec.json.encode({"model": {"config.json": "sha256:1"}}))
    for name, values in (("lines", range(1, len(rows) + 1)), ("contents", map(int, rows))):
        (directory.source / f"{name}.bin").write_bytes(array("q", values).tobytes())
    return read_run(directory.path)


def test_three_settings_and_five_rows_are_listed_exactly(tmp_path: Path) -> None:
    rows = [str(100 + number) for number in range(20)]
    others = ["7", *rows]  # added at the front
    others[5], others[9] = "8", "9"  # two changed
    del others[12]
    others.append("6")
    a = run(tmp_path, "aaaa", rows, learning_rate=1e-4, lora_r=8, seed=1)
    b = run(tmp_path, "bbbb", others, learning_rate=2e-4, lora_r=16, seed=2)
    found = compare(a, b)
    assert [(each.key, each.a, each.b) for each in found if each.group == "set"] == [
        ("data", a.config["data"], b.config["data"]),
        ("learning_rate", 1e-4, 2e-4),
        ("lora_r", 8, 16),
        ("seed", 1, 2),
    ]
    assert [(each.key, each.a, each.b) for each in found if each.group == "data"] == [
        ("rows", 20, 21),
        ("row 1 added", None, "7"),
        ("row 5 (now 6) changed", "104", "8"),
        ("row 9 (now 10) changed", "108", "9"),
        ("row 12 removed", "111", None),
        ("row 21 added", None, "6"),
    ]
    assert [each for each in found if each.group in ("environment", "code")] == []
    assert compare(a, a) == []


def test_what_a_rule_chose_followed_and_what_was_given_was_set(tmp_path: Path) -> None:
    a, b = (run(tmp_path, name, ["1"]) for name in ("aaaa", "bbbb"))
    a.config, a.origins = {"lora_r": 8, "warmup_steps": 10}, {"lora_r": "flag --lora-r", "warmup_steps": "rule: 5 %"}
    b.config, b.origins = {"lora_r": 32, "warmup_steps": 20}, {"lora_r": "rule: usual", "warmup_steps": "rule: 5 %"}
    groups = {each.key: each.group for each in compare(a, b)}
    assert (groups["lora_r"], groups["warmup_steps"]) == ("set", "followed")


def test_a_row_whose_file_was_touched_since_is_named_by_its_line(tmp_path: Path) -> None:
    a, b = run(tmp_path, "aaaa", ["1", "2"]), run(tmp_path, "bbbb", ["1", "3"])
    Path(a.config["data"]).write_text("1\n3\n")
    (changed,) = [each for each in compare(a, b) if each.key.startswith("row")]
    assert (changed.key, changed.a, changed.b) == ("row 2 changed", "line 2", "3")


def test_of_many_rows_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    a, b = run(tmp_path, "aaaa", ["1"]), run(tmp_path, "bbbb", ["1", *map(str, range(2, 302))])
    found = [each for each in compare(a, b) if each.key.startswith(("row ", "more"))]
    assert len(found) == MOST_ROWS + 1
    assert (found[-1].key, found[-1].b) == ("more rows", 300 - MOST_ROWS)


def test_a_run_that_never_read_its_rows_says_so(tmp_path: Path) -> None:
    a, b = run(tmp_path, "aaaa", ["1"]), run(tmp_path, "bbbb", ["1"])
    (RunDirectory(Path(b.path)).source / "contents.bin").unlink()
    (found,) = [each for each in compare(a, b) if each.key == "rows"]
    assert (found.a, found.b) == ("recorded: 1", "not recorded")
