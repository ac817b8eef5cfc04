"""``backprop data score`` and the commands that use its scores, with a real engine process on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = ("--backend", "cpu", "--max-seq-length", "256")


def test_scores_are_written_counted_and_used_again(
    backprop: Callable[..., Any], tiny_model: Path, rows_file: Path
) -> None:
    with rows_file.open("a") as more:
        more.write('{"instruction": "half\n')
    model = ("--model", str(tiny_model), *MODEL)
    done = backprop("data", "score", str(rows_file), *model, "--json")
    assert done.code == 0, done.out
    answer = done.json
    assert (answer["rows"], answer["scored"], answer["dropped"], answer["answer_lost"]) == (41, 40, 1, 0)
    assert answer["problems"][0]["line"] == 41
    assert answer["perplexity"] > 1
    lines = [json.loads(line) for line in Path(answer["output"]).read_text().splitlines()]
    assert [row["line"] for row in lines] == list(range(1, 41))
    assert answer["hardest"][0]["loss"] == max(row["loss"] for row in lines)

    again = backprop("data", "score", str(rows_file), *model)
    assert (again.code, "exists already" in again.err) == (1, True)
    words = backprop("data", "score", str(rows_file), *model, "--output", "other.jsonl")
    assert "40 of 41 rows scored" in words.out
    assert "1 rows have no score" in words.out
    assert "line 41:" in words.out

    report = backprop("data", "report", str(rows_file), *model, "--json").json["perplexity"]
    assert report["perplexity"] == answer["perplexity"]
    limit = sorted(row["perplexity"] for row in lines)[29]
    clean = backprop(
        *("data", "clean", str(rows_file), "--scores", answer["output"], "--max-perplexity", repr(limit), "--json")
    )
    assert (clean.json["kept"], clean.json["removed"]) == (30, {"perplexity_high": 10, "broken_json": 1})


def test_perplexity_without_a_model_says_what_to_name(backprop: Callable[..., Any], rows_file: Path) -> None:
    done = backprop("data", "clean", str(rows_file), "--max-perplexity", "9")
    assert done.code == 1
    assert "--model" in done.err
    both = backprop("data", "report", str(rows_file), "--model", "m", "--scores", "s.jsonl")
    assert "exclude each other" in both.err
    for flags in (["--max-seq-length", "256"], ["--backend", "cpu"]):
        alone = backprop("data", "report", str(rows_file), *flags)
        assert (alone.code, f"{flags[0]} is without effect here" in alone.err) == (1, True)
