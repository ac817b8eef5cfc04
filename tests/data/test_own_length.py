"""Rows prepared at the limit that their own lengths make: the same arrays as where that limit is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from backprop.core.settings import RunConfig
from backprop.data.formats import file_format
from backprop.data.plan import plan
from backprop.data.preprocess import prepare
from backprop.data.reader import open_source
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.truncate import count_lengths


def rows(path: Path, question: int, answer: int) -> Path:
    """Two hundred short rows and one with so many words."""
    short = [{"instruction": f"{i}?", "output": "Yes."} for i in range(200)]
    long = {"instruction": "why " * question, "output": "so " * answer}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*short, long]))
    return path


@pytest.mark.parametrize(
    ("words", "most", "cut_and_lost"),
    [
        ((2, 2), 2048, (0, 0)),
        ((400, 2), 2048, (1, 0)),
        ((2, 400), 2048, (1, 0)),
        ((2, 400), 128, (0, 1)),
        ((2, 4000), 128, (0, 1)),
    ],
    ids=["short", "a long question is cut", "a long answer is kept", "beyond what fits", "beyond what the model reads"],
)
def test_the_limit_keeps_answers_and_most_rows_whole(
    words: tuple[int, int],
    most: int,
    cut_and_lost: tuple[int, int],
    model_dir: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    path, model = rows(tmp_path / "rows.jsonl", *words), model_dir("chatml")
    found = prepare(path, model, max_length="auto", most=most)
    summary = found.summary
    assert (summary.cut, summary.answer_lost) == cut_and_lost
    lost = [each.message for each in summary.problems if each.code == "answer_lost"]
    assert [f"into {summary.max_length} with" in message for message in lost] == [True] * summary.answer_lost
    assert summary.max_length == summary.limits[0].max_length <= most
    assert int(found.lengths.max()) <= summary.max_length
    given = prepare(path, model, max_length=summary.max_length)
    assert (given.fingerprint, given.summary.limits[0]) == (found.fingerprint, summary.limits[0])

    with open_source(path) as source:
        file = file_format(source)
    tokenizer = ChatTokenizer.load(model)
    counted = count_lengths(
        path, file, tokenizer, progress=lambda *_: None, cancelled=lambda: False, so_far=lambda _: None
    )
    config = RunConfig(data=str(path))
    planned = plan(config, counted, model, batch_size=lambda config: 1, most=most)
    assert planned is not None
    assert planned.chosen.max_seq_length == summary.max_length
    assert str(summary.p99) in planned.reasons["max_seq_length"]


def test_a_line_end_behind_the_last_answer_is_within_the_limit(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """A run that goes on gives the limit that it was begun at, and must find the same tokens."""
    model = model_dir("chatml")
    for words in range(40, 110):
        path = rows(tmp_path / f"{words}.jsonl", 2, words)
        found = prepare(path, model, max_length="auto")
        if found.summary.longest == found.summary.max_length:
            break
    assert found.summary.longest == found.summary.max_length
    given = prepare(path, model, max_length=found.summary.max_length)
    assert given.fingerprint == found.fingerprint
