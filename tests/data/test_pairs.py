"""Pairs and feedback as they are trained: however a row spells them, under every limit, and what is none of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backprop.core.errors import DatasetError
from backprop.core.methods import Rows
from backprop.data.convert import convert
from backprop.data.formats import file_format
from backprop.data.preprocess import Prepared, prepare
from backprop.data.reader import open_source
from backprop.data.token_cache import Judged, Pair
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.truncate import count_lengths
from backprop.data.validate import validate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ModelDir = Callable[[str], Path]
Q, A, B = "Which is deeper?", "The fifth.", "None of them."


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


ASKED, GOOD, BAD = said(("user", Q)), said(("assistant", A)), said(("assistant", B))
SPELLINGS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": Q, "chosen": A, "rejected": B},
    "sides alone": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "sides that repeat the prompt": {"prompt": Q, "chosen": ASKED + GOOD, "rejected": ASKED + BAD},
    "sides that bring the prompt": {"chosen": ASKED + GOOD, "rejected": ASKED + BAD},
    "one side that repeats it": {"prompt": Q, "chosen": ASKED + GOOD, "rejected": B},
    "one side that brings it": {"chosen": ASKED + GOOD, "rejected": B},
    "the other side that brings it": {"chosen": A, "rejected": ASKED + BAD},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": Q}],
        "chosen": {"from": "gpt", "value": A},
        "rejected": {"from": "gpt", "value": B},
    },
    "ShareGPT sides": {
        "chosen": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}],
        "rejected": [{"from": "human", "value": Q}, {"from": "gpt", "value": B}],
    },
    "messages": {"messages": ASKED, "chosen": A, "rejected": B},
    "a chat with a rejected answer": {"messages": ASKED + GOOD, "rejected": B},
    "ChatML with a rejected answer": {
        "text": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>",
        "rejected": B,
    },
    "JSON text": {"chosen": json.dumps(ASKED + GOOD), "rejected": json.dumps(ASKED + BAD)},
    "transcripts": {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}"},
    "other names": {"question": Q, "chosen_response": A, "rejected_response": B},
}
JUDGED: dict[str, Callable[[bool], dict[str, Any]]] = {
    "texts": lambda good: {"prompt": Q, "completion": A, "label": good},
    "numbers": lambda good: {"prompt": Q, "completion": A, "label": int(good)},
    "written": lambda good: {"prompt": Q, "completion": A, "label": str(good)},
    "messages": lambda good: {"messages": ASKED + GOOD, "label": good},
    "turns": lambda good: {"prompt": ASKED, "completion": GOOD, "label": good},
    "ShareGPT": lambda good: {
        "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}],
        "label": good,
    },
    "ChatML": lambda good: {
        "text": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>",
        "label": good,
    },
    "Alpaca": lambda good: {"instruction": Q, "output": A, "label": good},
}


def written(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def ready(model_dir: ModelDir, tmp_path: Path) -> Callable[..., Prepared]:
    def make(rows: list[Any], of: Rows = "conversation", *, family: str = "chatml", **options: Any) -> Prepared:
        return prepare(written(tmp_path, rows), model_dir(family), rows=of, cache_dir=tmp_path / "cache", **options)

    return make


def same(one: Any, two: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("family", ["chatml", "llama3", "qwen3", "gemma", "mistral"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_however_a_pair_is_spelled_it_is_the_two_conversations_that_sft_would_train(
    spelling: str, family: str, ready: Callable[..., Prepared]
) -> None:
    pair = ready([SPELLINGS[spelling]], "pairs", family=family).row(0)
    alone = ready([{"prompt": Q, "completion": answer} for answer in (A, B)], family=family)
    assert isinstance(pair, Pair)
    for side, (ids, trained) in zip(pair, (alone.row(0), alone.row(1)), strict=True):
        end = int(np.flatnonzero(trained)[-1]) + 1  # what follows the last answer teaches nothing
        assert same(side, (ids[:end], trained[:end]))


@pytest.mark.parametrize("shape", JUDGED)
def test_however_feedback_is_spelled_it_is_one_conversation_and_its_label(
    shape: str, ready: Callable[..., Prepared]
) -> None:
    found = ready([JUDGED[shape](True), JUDGED[shape](False)], "feedback")
    ids, trained = ready([{"prompt": Q, "completion": A}]).row(0)
    end = int(np.flatnonzero(trained)[-1]) + 1
    for index, good in enumerate((True, False)):
        judged = found.row(index)
        assert isinstance(judged, Judged)
        assert judged.good is good
        assert same(judged.row, (ids[:end], trained[:end]))
    assert found.labels.tolist() == [True, False]


@pytest.mark.parametrize("shape", JUDGED)
def test_sft_never_trains_an_answer_that_is_labelled_bad(shape: str, ready: Callable[..., Prepared]) -> None:
    summary = ready([JUDGED[shape](True), JUDGED[shape](False)]).summary
    assert (summary.kept, summary.unusable, summary.problem_counts["label_false"]) == (1, 0, 1)


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": ASKED + GOOD, "label": False}, *[{"messages": ASKED + BAD, "label": None}] * 3],
        [{"messages": ASKED + GOOD, "label": "bad"}, *[{"messages": ASKED + BAD, "label": "neutral"}] * 3],
        [{"messages": [*ASKED, {**GOOD[0], "label": False}]}],
        [{"messages": [*ASKED, {**GOOD[0], "is_good": "no"}]}],
        [{"text": "and so on", "label": False}],
    ],
    ids=["few judged", "among other words", "in the turn", "in the turn, in a word", "a text"],
)
def test_an_answer_that_something_calls_bad_is_left_out_or_warned_of(
    rows: list[Any], ready: Callable[..., Prepared], tmp_path: Path
) -> None:
    counts = ready([*rows, {"prompt": Q, "completion": A}]).summary.problem_counts
    assert counts.get("label_false", 0) + counts.get("bad_as_good", 0) == 1
    assert ("label_false" in counts) is (rows[0].get("label") is False and "messages" in rows[0])
    assert validate(tmp_path / "rows.jsonl").problem_counts.get("bad_as_good") == counts.get("bad_as_good")


NO_PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    "the same": ({"prompt": Q, "chosen": A, "rejected": A}, "same_sides"),
    "the same to the model": ({"prompt": Q, "chosen": A, "rejected": f"{A}  "}, "same_sides"),
    "rejected empty": ({"prompt": Q, "chosen": A, "rejected": " "}, "empty_content"),
    "rejected null": ({"prompt": Q, "chosen": A, "rejected": None}, "empty_content"),
    "rejected the prompt alone": ({"chosen": ASKED + GOOD, "rejected": ASKED}, "no_assistant"),
    "rejected no answer": ({"prompt": Q, "chosen": ASKED + GOOD, "rejected": []}, "no_assistant"),
    "rejected unreadable": ({"prompt": Q, "chosen": A, "rejected": [5]}, "invalid_type"),
}
NO_PAIRS_OF_OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "an answer": ({"prompt": Q, "completion": A}, "no_pair"),
    "a chat": ({"messages": ASKED + GOOD}, "no_pair"),
    "a text": ({"text": "and so on"}, "no_pair"),
    "feedback": ({"prompt": Q, "completion": A, "label": True}, "no_pair"),
}


@pytest.mark.parametrize("kind", [*NO_PAIRS, *NO_PAIRS_OF_OTHERS])
def test_what_is_no_pair_is_counted_by_its_code_and_never_trained(
    kind: str, ready: Callable[..., Prepared], tmp_path: Path
) -> None:
    row, code = {**NO_PAIRS, **NO_PAIRS_OF_OTHERS}[kind]
    good = [{"prompt": f"{i}?", "chosen": A, "rejected": B} for i in range(3)]
    found = ready([*good, row], "pairs", family="gemma")
    assert (len(found), found.summary.dropped, found.summary.unusable) == (3, 1, 1)
    assert [(each.line, each.code) for each in found.summary.problems if each.severity == "error"] == [(4, code)]
    checked = validate(tmp_path / "rows.jsonl", rows="pairs")
    if kind != "the same to the model":  # which only its template makes so
        assert (checked.valid, checked.invalid) == (3, 1)
        assert [(each.line, each.code) for each in checked.problems if each.code == code] == [(4, code)]


@pytest.mark.parametrize("kind", NO_PAIRS)
def test_sft_trains_the_chosen_side_whatever_the_other_is(
    kind: str, ready: Callable[..., Prepared], tmp_path: Path
) -> None:
    row, code = NO_PAIRS[kind]
    found = ready([row])
    assert same(found.row(0), ready([{"prompt": Q, "completion": A}]).row(0))
    ready([row])
    checked = validate(tmp_path / "rows.jsonl")
    assert (checked.valid, checked.invalid) == (1, 0)
    if kind != "the same to the model":
        assert ("warning", code) in [(each.severity, each.code) for each in checked.problems]


@pytest.mark.parametrize("of", ["pairs", "feedback"])
def test_rows_of_another_kind_are_refused_with_the_method_that_fits(of: Rows, ready: Callable[..., Prepared]) -> None:
    rows = {"pairs": JUDGED["texts"](True), "feedback": SPELLINGS["texts"]}[of]
    with pytest.raises(DatasetError) as refused:
        ready([rows], of)
    assert (refused.value.code, refused.value.exit_code) == ("DATASET_NOTHING_TO_TRAIN", 1)
    assert "line 1: no " in refused.value.message
    assert ("--method kto" if of == "pairs" else "--method dpo or orpo or simpo") in refused.value.hint
    with pytest.raises(DatasetError) as refused:
        ready([{"messages": ASKED + GOOD}], of)
    assert "--method sft" in refused.value.hint


def test_the_prompts_answers_and_the_common_beginning_of_the_sides_are_not_trained(
    ready: Callable[..., Prepared],
) -> None:
    more = said(("user", "And then?"))
    pair = ready([{"chosen": [*ASKED, *GOOD, *more, *GOOD], "rejected": [*ASKED, *GOOD, *more, *BAD]}], "pairs").row(0)
    for (ids, trained), answer in zip(pair, (A, B), strict=True):
        one = ready([{"messages": [*ASKED, {**GOOD[0], "train": False}, *more, *said(("assistant", answer))]}]).row(0)
        assert same((ids, trained), (one[0][: len(ids)], one[1][: len(ids)]))
    several = ready([{"prompt": Q, "chosen": [*GOOD, *more, *GOOD], "rejected": B}], "pairs").row(0)
    assert np.count_nonzero(several.chosen[1]) == 2 * np.count_nonzero(pair.chosen[1])


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Be brief.", "chosen": ASKED + GOOD, "rejected": ASKED + BAD},
        {"system": "Be brief.", "chosen": ASKED + GOOD, "rejected": B},
        {"chosen": [*said(("system", "Be brief.")), *ASKED, *GOOD], "rejected": B},
        {"system": "Be brief.", "prompt": Q, "chosen": A, "rejected": B},
        {
            "system": "Be kind.",
            **{k: [*said(("system", "Be brief.")), *ASKED, *s] for k, s in (("chosen", GOOD), ("rejected", BAD))},
        },
    ],
)
def test_a_system_text_stands_before_both_sides_once(row: dict[str, Any]) -> None:
    example = convert(row, "preference")
    turns = [[(turn.role, turn.content) for turn in side] for side in example.sides("pairs")]
    begin = [("system", "Be brief."), ("user", Q)]
    assert turns == [[*begin, ("assistant", A)], [*begin, ("assistant", B)]]


words = st.text("abc é.\n", max_size=60)
# Blank lines that an answer begins with belong to the prompt where that ends with thinking that is none.
answers = words.filter(lambda text: "\n" not in text[: len(text) - len(text.lstrip())])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(words, answers, answers, st.booleans()), min_size=1, max_size=6),
    family=st.sampled_from(["chatml", "llama3", "gemma", "qwen3"]),
    limit=st.sampled_from([12, 20, 30, 45, 2048]),
    of=st.sampled_from(["pairs", "feedback"]),
)
def test_a_limit_cuts_the_same_of_both_prompts_and_nothing_of_an_answer(
    *, rows: list[Any], family: str, limit: int, of: Rows, model_dir: ModelDir, tmp_path: Path
) -> None:
    made = [
        {"prompt": asked, "chosen": one, "rejected": two}
        if of == "pairs"
        else {"prompt": asked, "completion": one, "label": good}
        for asked, one, two, good in rows
    ]
    path = written(tmp_path, made)
    try:
        whole = prepare(path, model_dir(family), rows=of, max_length=2**20)
        found = prepare(path, model_dir(family), rows=of, max_length=limit)
    except DatasetError:
        return
    summary = found.summary
    assert summary.kept + summary.dropped + summary.answer_lost == summary.rows
    place = {line: index for index, line in enumerate(whole.lines.tolist())}
    for index, line in enumerate(found.lines.tolist()):
        sides, wholes = found.sequences(index), whole.sequences(place[line])
        begins = [int(trained.argmax()) for _, trained in sides]
        assert len({ids[:begin].tobytes() for (ids, _), begin in zip(sides, begins, strict=True)}) == 1
        for (ids, trained), (all_ids, all_trained), begin in zip(sides, wholes, begins, strict=True):
            first = int(all_trained.argmax())
            assert 0 < begin <= first
            assert len(ids) <= limit
            assert same((ids[begin:], trained[begin:]), (all_ids[first:], all_trained[first:]))
    with open_source(path) as source:
        file = file_format(source)
    counted = count_lengths(
        path,
        file,
        ChatTokenizer.load(model_dir(family)),
        rows=of,
        progress=lambda *_: None,
        cancelled=lambda: False,
        so_far=lambda _: None,
    )
    assert counted.lengths.at(limit) == summary.limits[0]
    assert counted.lengths.tokens_at(limit) == (summary.tokens, summary.trained_tokens)
    assert int(counted.lengths.samples_at(limit).sum()) == len(found)


def test_a_length_of_its_own_is_that_of_a_side(ready: Callable[..., Prepared]) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "so " * 30, "rejected": "no " * 20} for i in range(8)]
    found = ready(rows, "pairs", max_length="auto", most=4096)
    assert found.summary.cut == found.summary.answer_lost == 0
    longest = max(len(ids) for i in range(8) for ids, _ in found.sequences(i))
    assert found.summary.longest == longest <= found.summary.max_length < longest + 64
    assert found.lengths.tolist() == [sum(len(ids) for ids, _ in found.sequences(i)) for i in range(8)]
    assert ready(rows, "pairs", max_length=found.summary.max_length).fingerprint == found.fingerprint


def test_the_first_pair_is_shown_with_both_sides(ready: Callable[..., Prepared]) -> None:
    summary = ready([SPELLINGS["texts"]], "pairs").summary
    for spans, answer in ((summary.first_row, A), (summary.first_rejected, B)):
        assert "".join(span.text for span in spans if not span.trained).count(Q) == 1
        assert [span.text for span in spans if span.trained] == [f"{answer}<|im_end|>"]


def test_the_cache_gives_back_what_was_prepared_and_keeps_kinds_apart(ready: Callable[..., Prepared]) -> None:
    rows = [{**SPELLINGS["texts"], "prompt": f"{i}?"} for i in range(3)]
    made, again, chosen = ready(rows, "pairs"), ready(rows, "pairs"), ready(rows)
    assert again.summary.cached
    assert (len(made), made.width, made.lines.tolist()) == (3, 2, [1, 2, 3])
    assert all(same(one, two) for i in range(3) for one, two in zip(made.row(i), again.row(i), strict=True))
    only = "of each pair the chosen answer alone is trained: --method dpo learns from both"
    assert only in chosen.summary.notes
    assert only not in made.summary.notes
    assert chosen.contents.tolist() == made.contents.tolist()  # equal rows are held out, whatever learns from them
    assert len({made.fingerprint, chosen.fingerprint}) == 2


def test_a_label_is_a_part_of_what_is_trained(ready: Callable[..., Prepared]) -> None:
    rows = [{"prompt": f"{i}?", "completion": A, "label": i > 0} for i in range(3)]
    made, other = ready(rows, "feedback"), ready([{**row, "label": not row["label"]} for row in rows], "feedback")
    assert np.array_equal(made.ids, other.ids)
    assert made.fingerprint != other.fingerprint
    assert "2 answers are labelled good, 1 bad" in made.summary.notes


@pytest.mark.parametrize("good", [True, False])
def test_feedback_of_one_kind_alone_is_said_with_what_to_do(
    good: bool, ready: Callable[..., Prepared], tmp_path: Path
) -> None:
    rows = [{"prompt": f"{i}?", "completion": A, "label": good} for i in range(3)]
    summary = ready(rows, "feedback").summary
    (said_of,) = [each for each in summary.problems if each.code == "one_label"]
    assert (said_of.line, said_of.severity, summary.unusable) == (0, "warning", 0)
    assert ("--method sft" if good else "add good ones") in said_of.message
    (checked,) = validate(tmp_path / "rows.jsonl", rows="feedback").problems
    assert checked.message == said_of.message
