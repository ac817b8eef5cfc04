"""Splits that leak nothing, cleaned copies that leave the original alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backprop.core.errors import DatasetError, InputError, InvalidSettingError
from backprop.core.methods import Rows as Learned
from backprop.data.clean import Rules, clean_file
from backprop.data.dedup import clusters, overlap, shingles
from backprop.data.quality import LengthLimits
from backprop.data.report import report
from backprop.data.split import held_out, held_out_size, places, split_file, split_rows
from backprop.data.traces import TraceLimits
from backprop.data.validate import validate
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def keys(count: int) -> list[bytes]:
    return [f"row {i}".encode() for i in range(count)]


def held_out_rows(keys: list[bytes], setting: str = "auto") -> list[int]:
    return np.flatnonzero(held_out(places(keys), setting)).tolist()


def written(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: str | Path) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize(
    ("rows", "ratio", "train", "held"),
    [(10, 0.1, 9, 1), (10, 0.25, 8, 2), (2, 0.01, 1, 1), (2, 0.99, 1, 1), (5, 0.5, 3, 2), (3, 0.5, 1, 2)],
)
def test_split_sizes(rows: int, ratio: float, train: int, held: int) -> None:
    chosen = split_rows(keys(rows), ratio)
    assert (rows - len(chosen), len(chosen)) == (train, held)
    assert held_out_size(rows, ratio) == held


def test_rows_that_share_four_fifths_of_their_word_triples_stay_together_and_others_need_not(tmp_path: Path) -> None:
    words = [f"{letter}{number}" for letter in "ab" for number in range(11)]
    one, other = words[:11], words[11:21]
    said = [" ".join(text) for text in (one, [*one[:10], "changed"], other, [*other[:9], "changed"])]
    pairs = [(shingles(said[0]), shingles(said[1])), (shingles(said[2]), shingles(said[3]))]
    assert [overlap(*pair) for pair in pairs] == [8 / 10, 7 / 9]
    path = written(tmp_path, [{"instruction": text, "output": "."} for text in said])
    assert split_file(path).kept_together == 2


@pytest.mark.parametrize(("rows", "ratio"), [(10, 0), (10, 1), (10, -0.1), (1, 0.5), (0, 0.5)])
def test_impossible_splits_are_setting_errors(rows: int, ratio: float) -> None:
    with pytest.raises(InvalidSettingError):
        held_out_size(rows, ratio)


def test_a_split_depends_on_seed_and_content_and_not_on_order() -> None:
    rows = keys(200)
    chosen = {rows[i] for i in split_rows(rows, 0.2, seed=1)}
    assert split_rows(rows, 0.2, seed=1) == split_rows(list(rows), 0.2, seed=1)
    assert {rows[i] for i in split_rows(rows, 0.2, seed=2)} != chosen
    shuffled = random.Random(0).sample(rows, len(rows))
    assert {shuffled[i] for i in split_rows(shuffled, 0.2, seed=1)} == chosen


@settings(max_examples=100, deadline=None)
@given(
    names=st.lists(st.integers(0, 12), min_size=2, max_size=40),
    groups=st.lists(st.lists(st.integers(0, 39), min_size=2, max_size=4, unique=True), max_size=6),
    ratio=st.floats(0.05, 0.95),
)
def test_no_content_and_no_group_is_on_both_sides(names: list[int], groups: list[list[int]], ratio: float) -> None:
    rows = [str(name).encode() for name in names]
    groups = [[i for i in group if i < len(rows)] for group in groups]
    groups = [group for group in groups if len(group) > 1]
    try:
        chosen = set(split_rows(rows, ratio, groups=groups))
    except InvalidSettingError:
        assert len(clusters(rows, groups)) == 1
        return
    assert 0 < len(chosen) < len(rows)
    assert not {rows[i] for i in chosen} & {rows[i] for i in range(len(rows)) if i not in chosen}
    assert all(len({i in chosen for i in group}) == 1 for group in groups)


def test_held_out_rows_stay_held_out_when_rows_are_added() -> None:
    few, many = keys(4000), keys(6000)
    before, after = held_out_rows(few), held_out_rows(many)
    assert set(before) <= set(after)
    assert not {i for i in after if i < 4000} - set(before)
    assert 150 < len(before) < 250


@pytest.mark.parametrize(
    ("rows", "held"), [(1, 0), (2, 1), (5, 1), (9, 1), (10, 1), (20, 2), (101, 10), (160, 16), (100_000, 512)]
)
def test_held_out_size_has_bounds(rows: int, held: int) -> None:
    assert len(held_out_rows(keys(rows))) == held


@pytest.mark.parametrize("share", ["0.5", "0.9", "0.999"])
def test_a_share_leaves_rows_to_train_on_however_often_they_repeat(share: str) -> None:
    for rows in (keys(2) * 50, keys(1) * 30 + keys(3), keys(100)):
        assert 0 < len(held_out_rows(rows, share)) < len(rows)


def test_equal_rows_are_held_out_together() -> None:
    doubled = keys(400) * 2
    chosen = set(held_out_rows(doubled))
    assert chosen
    assert all((i in chosen) == (i + 400 in chosen) for i in range(400))


def test_a_file_is_split_without_leaks_and_left_as_it_is(tmp_path: Path) -> None:
    rng = random.Random(4)
    rows: list[Any] = [{"n": i, "instruction": prose(rng, 8), "output": prose(rng, 40)} for i in range(100)]
    rows += [dict(rows[i], n=100 + i) for i in range(20)]
    rows += [dict(rows[i], n=120 + i - 20, output=rows[i]["output"] + " again") for i in range(20, 40)]
    rows += ['{"broken": ', {"instruction": "no output"}]
    path = written(tmp_path, rows)
    original = path.read_bytes()
    done = split_file(path, ratio=0.2, seed=3)
    train, held = read(done.train), read(done.held_out)
    assert (done.rows, done.train_rows, done.held_out_rows) == (142, len(train), len(held))
    assert done.left_out == {"broken_json": 1, "missing_field": 1}
    assert sorted(row["n"] for row in train + held) == list(range(140))
    assert len(held) == pytest.approx(28, abs=2)
    assert not {row["instruction"] for row in train} & {row["instruction"] for row in held}
    assert done.kept_together == 80
    assert path.read_bytes() == original
    with pytest.raises(InputError, match="exists already"):
        split_file(path)
    Path(done.train).unlink()
    Path(done.held_out).unlink()
    assert read(split_file(path, ratio=0.2, seed=3).held_out) == held


def test_a_table_is_split_into_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\n" + "".join(f"q{i},a{i} {'x' * i}\n" for i in range(10)))
    done = split_file(path, near=None)
    assert Path(done.train).name == "rows.train.jsonl"
    assert {"prompt", "completion"} == set(read(done.held_out)[0])


def test_a_cleaned_copy_says_of_every_row_why_it_went(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows: list[Any] = [{"instruction": prose(rng, 8), "output": prose(rng, 60)} for _ in range(20)]
    rows += ['{"cut": ', dict(rows[3], id=5), dict(rows[4], output=rows[4]["output"] + " too")]
    rows += [{"instruction": "Hi", "output": "Yo"}, {"instruction": "x", "output": prose(rng, 5000)}]
    path = written(tmp_path, rows)
    original = path.read_bytes()
    rules = Rules(near=0.8, lengths=LengthLimits(min_tokens=20, max_tokens=2000))
    done = clean_file(path, rules)
    assert [(row.line, row.reason) for row in done.left_out] == [
        (21, "broken_json"),
        (22, "duplicate_row"),
        (23, "near_duplicate"),
        (24, "short"),
        (25, "long"),
    ]
    assert done.left_out[1].detail == "the same as line 4"
    assert done.left_out[2].detail == "nearly the same as line 5"
    assert (done.rows, done.kept) == (25, 20)
    assert Path(done.output).read_bytes() == b"".join(original.splitlines(keepends=True)[:20])
    assert json.loads(Path(done.report).read_text())["removed"] == done.removed
    assert path.read_bytes() == original
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "rows.clean.jsonl",
        "rows.clean.report.json",
        "rows.jsonl",
    ]
    with pytest.raises(InputError, match="exists already"):
        clean_file(path, rules)


def test_what_is_written_for_a_method_is_what_it_can_learn_from(tmp_path: Path) -> None:
    odd: dict[Learned, list[Any]] = {
        "pairs": [{"prompt": "p", "chosen": "x", "rejected": "x"}, {"prompt": "p", "chosen": "x", "rejected": " "}],
        "feedback": [{"prompt": "q", "completion": "a"}],
    }
    codes = {"pairs": {"same_sides": 1, "empty_content": 1}, "feedback": {"no_label": 1}}
    good: dict[Learned, list[Any]] = {
        "pairs": [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)],
        "feedback": [{"prompt": f"q{i}", "completion": f"a {i}", "label": i % 2 == 0} for i in range(8)],
    }
    for rows, kept in good.items():
        path = written(tmp_path, [*kept, *odd[rows]], f"{rows}.jsonl")
        cleaned, parted = clean_file(path, rows=rows), split_file(path, rows=rows)
        assert (cleaned.kept, cleaned.removed) == (8, codes[rows])
        assert (parted.train_rows + parted.held_out_rows, parted.left_out) == (8, codes[rows])
        assert validate(cleaned.output, rows=rows).invalid == validate(parted.train, rows=rows).invalid == 0
        assert (report(path, rows=rows).usable, report(path).usable) == (8, 8 + len(odd[rows]))


def test_language_traces_and_order_are_rules_too(tmp_path: Path) -> None:
    english = "The captain looked at the sea and said nothing for a long while. "
    rows = [
        {"instruction": "a", "output": english * 9},
        {"instruction": "b", "output": "Der Kapitän sah auf das Meer und schwieg eine lange Weile."},
        {"instruction": "c", "output": english},
        {"instruction": "d", "output": "<think>" + english + "</think>" + english},
    ]
    path = written(tmp_path, rows)
    easy_first = clean_file(path, Rules(languages=frozenset({"en"}), curriculum=True), output=tmp_path / "a.jsonl")
    assert easy_first.removed == {"language": 1}
    assert [row["instruction"] for row in read(easy_first.output)] == ["a", "d", "c"]
    with_traces = clean_file(path, Rules(traces=TraceLimits()), output=tmp_path / "b.jsonl")
    assert [row["instruction"] for row in read(with_traces.output)] == ["d"]


def test_rules_that_leave_nothing_are_an_error_and_write_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, [{"text": "short"}])
    with pytest.raises(DatasetError, match="no row would be left: 1 short"):
        clean_file(path, Rules(lengths=LengthLimits()))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, [{"text": f"row {i}"} for i in range(10)])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="No space left on device"):
        clean_file(path)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("write", [clean_file, split_file])
def test_a_file_that_came_while_rows_were_read_is_not_replaced(write: Any, tmp_path: Path) -> None:
    path = written(tmp_path, [{"text": f"row {i}"} for i in range(10)])
    other = tmp_path / ("rows.clean.jsonl" if write is clean_file else "rows.held-out.jsonl")
    with pytest.raises(InputError, match="exists already and is not overwritten"):
        write(path, progress=lambda done, total: other.write_text("another's"))
    assert other.read_text() == "another's"
    assert not [file.name for file in tmp_path.iterdir() if file.name.endswith(("report.json", "output", "partial"))]
