"""Scores of rows by a model: summed up, kept in a file, and used to leave rows out and to order them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from backprop.core.errors import DatasetNotFoundError, DatasetParseError, InputError
from backprop.core.jobs import RowScore
from backprop.data.clean import CleanResult, Rules, clean_file
from backprop.data.quality import Scores, read_scores
from backprop.data.report import report

LOSSES = {1: 1.0, 2: 1.2, 3: 0.9, 4: 1.1, 5: 9.0, 6: 0.05, 7: 1.05, 8: 0.95, 9: 1.15, 10: 1.0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Eleven rows; the last has no score."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"instruction": f"Say {i}", "output": f"It is {i}."}) + "\n" for i in range(11)))
    return file


@pytest.fixture
def scores() -> Scores:
    return Scores(RowScore(line, loss, 10 * line) for line, loss in LOSSES.items())


def kept(result: CleanResult) -> list[int]:
    """Lines of the original that are in the cleaned copy, in its order."""
    with Path(result.output).open() as file:
        return [int(json.loads(line)["instruction"].removeprefix("Say ")) + 1 for line in file]


def test_the_report_weights_rows_by_their_tokens_and_names_the_ends(scores: Scores, path: Path) -> None:
    found = report(path, scores=scores).perplexity
    assert found is not None
    mean = sum(10 * line * loss for line, loss in LOSSES.items()) / 550
    assert (found.scored, found.tokens) == (10, 550)
    assert found.loss == pytest.approx(mean)
    assert found.perplexity == pytest.approx(math.exp(mean))
    assert [row.line for row in found.hardest[:3]] == [5, 2, 9]
    assert [row.line for row in found.easiest[:2]] == [6, 3]
    assert found.hardest[0].perplexity == pytest.approx(math.exp(9))
    assert found.outliers[:2] == [5, 6]
    assert report(path).perplexity is None


def test_a_file_of_scores_is_read_as_it_was_written_and_never_overwritten(scores: Scores, tmp_path: Path) -> None:
    target = tmp_path / "rows.scores.jsonl"
    scores.write(target)
    first = json.loads(target.read_text().splitlines()[0])
    assert first == {"line": 1, "loss": 1.0, "perplexity": pytest.approx(math.e), "tokens": 10}
    assert read_scores(target).rows == scores.rows
    with pytest.raises(InputError, match="exists already"):
        scores.write(target)


def test_a_loss_beyond_a_float_is_still_a_number_in_json(tmp_path: Path) -> None:
    Scores([RowScore(1, 1000.0, 1)]).write(tmp_path / "s.jsonl")
    assert json.loads((tmp_path / "s.jsonl").read_text())["perplexity"] > 1e300
    assert read_scores(tmp_path / "s.jsonl").report().hardest[0].loss == 1000.0


def test_a_file_that_holds_no_scores_says_where(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('{"line": 1, "loss": 2.0, "tokens": 3}\n{"line": 2}\n')
    with pytest.raises(DatasetParseError, match="line 2"):
        read_scores(tmp_path / "s.jsonl")
    with pytest.raises(DatasetNotFoundError, match="scores"):
        read_scores(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("rules", "lines", "removed"),
    [
        (Rules(max_perplexity=math.exp(1.1) + 1e-9), [1, 3, 4, 6, 7, 8, 10], {"perplexity_high": 3, "no_score": 1}),
        (Rules(min_perplexity=math.exp(0.1)), [1, 2, 3, 4, 5, 7, 8, 9, 10], {"perplexity_low": 1, "no_score": 1}),
        (Rules(perplexity_outliers=True), [1, 2, 3, 4, 7, 8, 9, 10], {"perplexity_outlier": 2, "no_score": 1}),
    ],
)
def test_rows_are_left_out_by_perplexity_with_the_reason(
    path: Path, scores: Scores, rules: Rules, lines: list[int], removed: dict[str, int]
) -> None:
    result = clean_file(path, rules, scores=scores)
    assert kept(result) == lines
    assert result.removed == removed
    assert {row.line for row in result.left_out} == set(range(1, 12)) - set(lines)
    told = {row.line: row.detail for row in result.left_out}
    assert "no score" in told[11]


def test_a_curriculum_goes_by_the_scores_and_rows_without_one_come_last(path: Path, scores: Scores) -> None:
    assert kept(clean_file(path, Rules(curriculum=True), scores=scores)) == [6, 3, 8, 1, 10, 7, 4, 9, 2, 5, 11]


def test_a_rule_about_perplexity_without_scores_is_refused_before_anything_is_written(path: Path) -> None:
    with pytest.raises(InputError, match="scored"):
        clean_file(path, Rules(max_perplexity=20.0))
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]
