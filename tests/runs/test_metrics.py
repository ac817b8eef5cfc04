"""Metrics of generated answers: the values of SQuAD's own script where it has one."""

from __future__ import annotations

import pytest
from backprop.core.errors import InputError
from backprop.runs.metrics import contains, exact_match, f1, measure, normalised, pattern_of


def test_texts_are_compared_without_case_punctuation_articles_and_blanks() -> None:
    assert normalised("The  Cat, sat!") == "cat sat"
    assert exact_match("The Paris.", "paris") == 1
    assert exact_match("Paris, France", "paris") == 0


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [("paris france", "paris is in france", 2 / 3), ("", "", 1), ("", "x", 0), ("x", "the", 0), ("a b", "c", 0)],
)
def test_f1_is_that_of_the_common_words(answer: str, expected: str, value: float) -> None:
    assert f1(answer, expected) == pytest.approx(value)


def test_contains_looks_past_the_case_and_a_pattern_is_searched_as_it_is() -> None:
    assert contains("It is PARIS.", "paris") == 1
    assert contains("It is Rome.", "paris") == 0
    assert measure("42 is it", "no", r"^\d+")["regex"] == 1
    assert "regex" not in measure("42", "no")
    with pytest.raises(InputError, match="no regular expression"):
        pattern_of("(")
