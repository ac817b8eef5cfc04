"""Checking, preparing for training, the report and the Data screen give one answer about one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.core.errors import DatasetError
from backprop.data.encode import Renderer, Side, encode_row
from backprop.data.example import PLAIN
from backprop.data.formats import file_format
from backprop.data.preprocess import prepare
from backprop.data.reader import open_source
from backprop.data.report import report
from backprop.data.split import split_file
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.truncate import LengthCounter, truncate_value
from backprop.data.validate import validate

ModelDir = Callable[[str], Path]


def judged(i: int) -> dict[str, Any]:
    return {"prompt": f"Which is deeper, {i}?", "chosen": f"The {i}th.", "rejected": "None."}


def answered(i: int) -> dict[str, Any]:
    return {"prompt": f"How deep is {i}?", "completion": f"{i} fathoms."}


def instructed(i: int) -> dict[str, Any]:
    return {"instruction": f"Name hold {i}.", "output": f"Hold {i}."}


def chat(i: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Hold {i}?"}, {"role": "assistant", "content": f"Dry, {i}."}]}


MIXED = {
    "pairs after answers": ({"prompt_completion": 250, "preference": 700}, (answered, judged)),
    "chats after instructions": ({"alpaca": 200, "openai": 700}, (instructed, chat)),
}


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("mix", MIXED)
@pytest.mark.parametrize("turned", [False, True])
def test_a_mixed_file_has_one_format_and_each_row_its_own_whoever_asks(
    mix: str, turned: bool, model_dir: ModelDir, tmp_path: Path
) -> None:
    counts, makers = MIXED[mix]
    (fewer, some), (usual, most) = counts.items()
    rows = [make(i) for make, count in zip(makers, counts.values(), strict=True) for i in range(count)]
    path = written(tmp_path, rows[::-1] if turned else rows)
    with open_source(path) as source:
        screen = file_format(source)
    checked, reported = validate(path), report(path)
    prepared = prepare(path, model_dir("chatml")).summary
    assert {screen.format, checked.format, reported.format, prepared.format} == {usual}
    assert screen.counts == checked.formats == counts
    assert checked.valid == reported.usable == prepared.kept == some + most
    assert checked.problem_counts["mixed_format"] == prepared.problem_counts["mixed_format"] == some
    note = next(note for note in prepared.notes if note.startswith("the file mixes formats"))
    assert f"{most} {usual}, {some} {fewer} (lines " in note
    warned = {problem.message for problem in checked.problems if problem.code == "mixed_format"}
    assert warned == {problem.message for problem in prepared.problems if problem.code == "mixed_format"}


def test_a_big_file_is_told_by_rows_from_all_over_it(tmp_path: Path) -> None:
    text = "and so on " * 40
    rows = [instructed(i) | {"output": text} for i in range(2_000)]
    path = written(tmp_path, [*rows, *[{"prompt": f"{i}", "completion": text} for i in range(6_000)]])
    with open_source(path) as source:
        seen = file_format(source)
        assert sum(seen.counts.values()) < 2_000
    assert seen.format == validate(path).format == report(path).format == "prompt_completion"


def test_a_row_is_a_duplicate_for_all_or_for_none(model_dir: ModelDir, tmp_path: Path) -> None:
    rows = [instructed(i) for i in range(20)]
    rows += [{"output": "Hold 3.", "id": 9, "input": "", "instruction": "Name hold 3."}]
    rows += [{"instruction": "Name hold", "input": "4.", "output": "Hold 4."}]
    path = written(tmp_path, rows)
    checked = validate(path)
    assert [problem.line for problem in checked.problems if problem.code == "duplicate_row"] == [21]
    assert report(path).duplicates == 1
    prepared = prepare(path, model_dir("chatml")).summary
    assert (prepared.duplicated, prepared.problem_counts) == (1, {"duplicate_row": 1})
    assert split_file(path, near=None).kept_together == 2


@pytest.mark.parametrize("limit", [8, 24, 40])
def test_a_limit_does_to_rows_what_is_told_of_it(limit: int, model_dir: ModelDir, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [instructed(i) | {"output": "so " * i + "on"} for i in range(1, 12)]
    rows += [{"text": "word " * i} for i in range(1, 12)]
    tokenizer = ChatTokenizer.load(model_dir("gemma"))
    counter = LengthCounter()
    alone = {"whole": 0, "cut": 0, "split": 0, "answer_lost": 0}
    for row in rows:
        format = "text" if "text" in row else "alpaca"
        rendered = Renderer(tokenizer).render(row, format, PLAIN)
        encoding = tokenizer.encode([rendered.text], special=rendered.raw)[0]
        counter.add([[Side(rendered, encoded=encode_row(rendered, encoding, tokenizer))]], tokenizer.bos_id)
        fitted = truncate_value(row, tokenizer, limit)
        does = "cut" if fitted.cut else "split" if fitted.split else "whole"
        alone[does if fitted.samples else "answer_lost"] += 1
    told = counter.snapshot().at(limit)
    assert {name: getattr(told, name) for name in alone} == alone
    summary = prepare(written(tmp_path, rows), model_dir("gemma"), max_length=limit).summary
    assert (summary.cut, summary.answer_lost) == (alone["cut"], alone["answer_lost"])
    assert summary.limits[0] == told


@pytest.mark.parametrize(
    "settings",
    [
        '{"max_position_embeddings": 64, "text_config": null}',
        '{"text_config": {"max_position_embeddings": 64}}',
        '{"n_positions": 64}',
        '{"max_seq_len": 64}',
    ],
)
def test_no_more_tokens_are_prepared_than_the_model_has_positions(
    settings: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    model = model_dir("chatml")
    (model / "config.json").write_text(settings)
    try:
        prepared = prepare(written(tmp_path, [{"text": "word " * 200}]), model, max_length=4096)
    finally:
        (model / "config.json").unlink()
    assert prepared.summary.max_length == 64
    assert max(prepared.lengths) == 64


def test_rows_of_which_nothing_is_trained_stop_all(model_dir: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="answer_lost"):
        prepare(written(tmp_path, [instructed(1)]), model_dir("chatml"), max_length=8)
