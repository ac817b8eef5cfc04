"""The verdict: how often it is wrong, what it finds, and what it refuses to say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from backprop.core.events import Verdict
from backprop.core.jobs import EvaluatedRow
from backprop.runs.verdict import _student, compare, gate, interval, mcnemar
from msgspec.structs import replace


def scored(losses: list[float | None], tokens: list[int] | None = None) -> list[EvaluatedRow]:
    counts = tokens or [10] * len(losses)
    return [
        EvaluatedRow(line=i, content=i, loss=x, tokens=n) for i, (x, n) in enumerate(zip(losses, counts, strict=True))
    ]


def pairs(shift: float, rows: int, seed: int) -> tuple[list[EvaluatedRow], list[EvaluatedRow]]:
    """Scores of two models whose losses differ by ``shift`` on average; rows of very different lengths."""
    chooser = np.random.default_rng([seed, rows])
    before, tokens = chooser.normal(2.0, 0.8, rows), chooser.integers(5, 300, rows).tolist()
    after = before + chooser.normal(shift, 0.4, rows)
    return scored(before.tolist(), tokens), scored(after.tolist(), tokens)


@pytest.mark.parametrize("rows", [8, 20, 50])
def test_equal_models_are_called_better_in_five_of_a_hundred_cases_at_most(rows: int) -> None:
    words = [found.word for seed in range(200) if (found := compare(*pairs(0.0, rows, seed)))]
    assert len(words) == 200
    assert words.count("better") <= 10
    assert words.count("worse") <= 10


def test_a_real_shift_is_found_in_ninety_five_of_a_hundred_cases_and_by_its_sign() -> None:
    words = [found.word for seed in range(100) if (found := compare(*pairs(-0.2, 100, seed)))]
    assert words.count("better") >= 95
    assert compare(*pairs(0.4, 100, 0)).word == "worse"


def test_rows_count_with_their_tokens_and_the_same_scores_give_the_same_answer() -> None:
    before, after = scored([1.0] * 7 + [3.0], [10] * 7 + [930]), scored([0.5] * 7 + [3.1], [10] * 7 + [930])
    found = compare(before, after)
    assert found.difference == pytest.approx((7 * 10 * -0.5 + 930 * 0.1) / 1000)
    assert found.word == "cannot tell"
    assert found == compare(before, after)
    assert found.rows == 8
    assert found.smallest > abs(found.difference)


def test_rows_that_say_the_same_are_one_witness() -> None:
    def thrice(rows: list[EvaluatedRow]) -> list[EvaluatedRow]:
        return [replace(row, line=row.line + 100 * i) for i in range(3) for row in rows]

    before, after = pairs(-0.05, 12, 1)
    once, again = compare(before, after), compare(thrice(before), thrice(after))
    assert (again.rows, again.difference) == (12, pytest.approx(once.difference))
    assert (again.low, again.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert compare(thrice(scored([2.0] * 5)), thrice(scored([1.0] * 5))).word == "cannot tell"


def test_too_few_rows_say_nothing_however_they_fall() -> None:
    for rows in range(1, Verdict.LEAST):
        assert compare(scored([2.0] * rows), scored([1.0 - i / 9 for i in range(rows)])).word == "cannot tell"
    assert compare(scored([2.0] * 6), scored([1.0 - i / 9 for i in range(6)])).word == "better"
    one = compare(scored([2.0]), scored([1.0]))
    assert (one.low, one.high, one.smallest) == (None, None, None)
    assert compare([], []) is None


def test_nothing_and_next_to_nothing_is_no_improvement_however_sure_it_is() -> None:
    before = [1.0 + i / 10 for i in range(40)]
    for change, word in ((0.0, "cannot tell"), (-1e-4, "cannot tell"), (-0.02, "better"), (0.02, "worse")):
        assert compare(scored(before), scored([x + change for x in before])).word == word


def test_a_model_that_cannot_score_a_row_which_the_other_could_is_worse() -> None:
    before, after = [2.0] * 20, [1.0 + i / 50 for i in range(20)]
    assert compare(scored(before), scored([None, *after[1:]])).word == "worse"
    ours = compare(scored([None, *before[1:]]), scored(after))
    assert (ours.word, ours.rows) == ("better", 19)


def test_rows_are_paired_by_what_they_are_and_not_by_their_order() -> None:
    before, after = scored([float(i) for i in range(10)]), scored([i - 1.0 for i in range(12)])
    found = compare(before, after[::-1])
    assert (found.rows, found.difference) == (10, pytest.approx(-1.0))


def test_the_interval_is_that_of_theory_where_theory_has_one() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 40)
    found = interval(values)
    error = values.std(ddof=1) / math.sqrt(40)
    assert found.mean == pytest.approx(values.mean())
    assert found.error == pytest.approx(error, rel=0.05)
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 2.0227 * error, values.mean() + 2.0227 * error), abs=0.15 * error
    )
    assert [_student(n) for n in (5, 10, 39)] == pytest.approx([2.5706, 2.2281, 2.0227], abs=3e-3)


def test_mcnemar_is_the_exact_binomial_tail() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(3, 3) == 1.0


@pytest.mark.parametrize(
    ("worsening", "margin", "allowed", "passes"),
    [
        (0.9 - 1.0, 0.0, 0.0, True),
        (1.0 - 1.0, 0.0, 0.0, True),
        (1.1 - 1.0, 0.0, 0.0, False),
        (1.1 - 1.0, 0.0, 0.2, True),
        (None, 0.0, 0.0, False),
        (math.nan, 0.0, 9.0, False),
        (0.1, 0.0, 0.05, False),
        (0.03, 0.0, 0.05, True),
        (0.1, 0.2, 0.05, True),
    ],
)
def test_the_gate_lets_pass_what_is_not_surely_worse_than_allowed(
    worsening: float | None, margin: float, allowed: float, passes: bool
) -> None:
    assert gate(worsening, margin, allowed) is passes
