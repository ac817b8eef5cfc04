"""Filters, duplicates, difficulty and the report: what is kept, what is counted, the same every time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backprop.core.errors import OperationCancelledError
from backprop.data.convert import convert
from backprop.data.dedup import MinHashIndex, content, content_key, overlap, repeated, shingles
from backprop.data.quality import LengthLimits, difficulty, language
from backprop.data.report import histogram, length_outliers, report
from backprop.data.traces import TraceLimits, estimate_tokens

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def written(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("abc", 0), ("abcd", 1), ("abcdefgh", 2)])
def test_tokens_are_estimated_at_four_characters(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def test_the_length_filter_says_why_a_row_goes() -> None:
    def messages(*turns: tuple[str, str]) -> Any:
        row = {"messages": [{"role": role, "content": content} for role, content in turns]}
        return convert(row, "openai")

    long_enough = "word " * 60
    limits = LengthLimits()
    assert limits.reason(messages(("user", "a"), ("assistant", "b"))) == "short"
    assert limits.reason(messages(("user", long_enough), ("assistant", "b"))) == ""
    assert limits.reason(messages(("user", "a"), ("assistant", "word " * 20_000))) == "long"
    assert limits.reason(messages(("user", ""), ("assistant", " "))) == "empty"
    asked_twice = messages(("user", long_enough), ("user", "b"), ("assistant", "c"))
    asked_twice.turns.pop()
    assert limits.reason(asked_twice) == "no_assistant"
    assert limits.reason(messages(("assistant", long_enough))) == "few_turns"
    assert limits.reason(convert({"text": long_enough}, "text")) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think></think>x", "too_short"),
        ("<think>" + "a" * 8 + "</think>x", "too_short"),
        ("<think>" + "a" * 31 + "</think>x", "too_short"),
        ("<think>" + "a" * 32 + "</think>x", ""),
        ("<THINK>" + "a" * 32 + "</Think>x", ""),
        ("<think>" + "a" * 40_000 + "</think>x", "too_long"),
        ("x", "no_think"),
        ("<think>" + "a" * 32, "unbalanced"),
        ("a</think>b", "unbalanced"),
        ("<think>a<think>b</think></think>", "unbalanced"),
    ],
)
def test_the_trace_filter_keeps_traces_of_a_useful_length(text: str, reason: str) -> None:
    assert TraceLimits().text_reason(text) == reason


def test_a_trace_kept_apart_from_the_answer_is_measured_too() -> None:
    def row(thought: str) -> Any:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": thought}]
        return convert({"messages": turns}, "openai")

    assert TraceLimits().reason(row("a" * 32)) == ""
    assert TraceLimits().reason(row("a" * 31)) == "too_short"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("", 0),
        ("   ", 0.0006),
        ("a", 0.2751),
        ("hello world", 0.3761),
        ("hello hello hello hello", 0.1898),
        ("The quick brown fox jumps over the lazy dog", 0.3237),
        ("x" * 10_000, 1.0),
    ],
)
def test_difficulty_weighs_length_variety_and_word_length(text: str, score: float) -> None:
    assert round(difficulty(text), 4) == score


def test_exact_duplicates_name_the_first_of_them() -> None:
    again, first = repeated(np.array([7, 5, 7, 5, 9, 7]))
    assert (again.tolist(), first.tolist()) == ([2, 3, 5], [0, 1, 0])


@pytest.mark.parametrize(
    ("row", "other", "format", "same"),
    [
        (
            {"instruction": "a", "output": "b"},
            {"output": "b", "id": 7, "input": "", "instruction": "a"},
            "alpaca",
            True,
        ),
        ({"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b", "system": "s"}, "alpaca", False),
        (
            {"prompt": "a", "completion": "b", "label": True},
            {"prompt": "a", "completion": "b", "label": 0},
            "kto",
            False,
        ),
        ("a", {"text": "a"}, "text", True),
    ],
)
def test_rows_of_equal_content_are_exact_duplicates(row: Any, other: Any, format: Any, same: bool) -> None:
    assert (content(row, format) == content(other, format)) == same
    assert (content_key(row, format) == content_key(other, format)) == same


def near(texts: list[str], threshold: float = 0.8) -> list[list[int]]:
    found = MinHashIndex(threshold)
    for i, text in enumerate(texts):
        found.add(i, text)
    return found.groups(texts.__getitem__)


def test_rows_with_a_changed_word_are_near_duplicates_and_others_are_not() -> None:
    rng = random.Random(1)
    texts = [prose(rng, 80) for _ in range(300)]
    planted = {}
    for i in range(0, 40, 2):
        words = texts[i].split()
        words[7] = "changed"
        planted[len(texts)] = i
        texts.append(" ".join(words).upper() + "!")
    groups = near(texts)
    assert sorted(groups) == sorted([original, copy] for copy, original in planted.items())


def test_overlap_below_the_threshold_keeps_rows_apart() -> None:
    rng = random.Random(2)
    text = prose(rng, 60)
    half = " ".join(text.split()[:40]) + " " + prose(rng, 20)
    assert 0.3 < overlap(shingles(text), shingles(half)) < 0.8
    assert near([text, half]) == []
    assert near([text, half], threshold=0.3) == [[0, 1]]


def test_empty_rows_are_in_no_group_and_text_without_spaces_is_compared() -> None:
    assert near(["", "", " ", "!?", "!?"]) == []
    chinese = "潮水退去之后海滩上留下了许多贝壳和一只旧靴子孩子们捡起来看了又看最后还是放回了原处因为那是海的东西"
    assert near(
        [
            chinese,
            chinese[:-1] + "事",
            "另外一句完全不同的话说的是山上的风和雪还有一条很长很长的路通向远方的村子和灯火",
        ],
        0.7,
    ) == [[0, 1]]


def test_languages_are_told_and_short_texts_are_not_guessed_at() -> None:
    assert language("The captain looked at the sea and said nothing for a long while.") == "en"
    assert language("Der Kapitän sah auf das Meer und schwieg eine lange Weile.") == "de"
    assert language("x = 1") == "unknown"


def test_the_report_counts_what_is_in_the_file_and_is_the_same_every_time(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows: list[Any] = [{"instruction": prose(rng, 10), "output": prose(rng, 60)} for _ in range(60)]
    rows.append(dict(rows[0], id=1))
    rows.append(dict(rows[1], output=rows[1]["output"] + " more"))
    rows.append({"instruction": "no output"})
    rows.append({"instruction": "q", "output": "<think>" + "thought " * 20 + "</think>" + prose(rng, 60)})
    rows.append({"instruction": "q2", "output": prose(rng, 9000)})
    path = written(tmp_path, rows)
    found = report(path)
    assert (found.format, found.rows, found.usable) == ("alpaca", 65, 64)
    assert found.problems == {"missing_field": 1}
    assert (found.duplicates, found.near_duplicates) == (1, 1)
    assert [group.lines for group in found.near_groups] == [[2, 62]]
    assert found.traces == {"kept": 1}
    assert found.too_short_or_long == {"long": 1}
    assert found.length_outliers[0] == 65
    assert found.hardest[0] == 65
    assert sum(count for _, count in found.histogram) == 64
    assert found.total_tokens is not None
    assert found.total_tokens.max == estimate_tokens(rows[-1]["instruction"]) + estimate_tokens(rows[-1]["output"])
    assert sum(found.languages.values()) == found.language_sample == 64
    assert report(path) == found


def test_a_report_can_be_stopped(tmp_path: Path) -> None:
    path = written(tmp_path, [{"text": f"row {i}"} for i in range(2000)])
    seen: list[int] = []
    with pytest.raises(OperationCancelledError):
        report(path, progress=lambda done, _: seen.append(done), cancelled=lambda: len(seen) > 2)
    assert len(seen) == 3


def test_lengths_fall_into_doubling_classes_and_far_ones_stand_out() -> None:
    assert histogram([0, 16, 17, 64]) == [(16, 2), (32, 1), (64, 1)]
    assert histogram([]) == []
    assert length_outliers([50 + i % 7 for i in range(100)] + [9000, 700]) == [100, 101]
    assert length_outliers([5] * 50) == []
