"""Reasoning traces: with the setting for them the tokens that are trained are those of the row's text, whatever the
chat template does with thinking; rows whose trace is of no use are the same ones for all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.core.errors import DatasetError
from backprop.core.events import LEFT_OUT
from backprop.core.settings import RunConfig
from backprop.data.formats import file_format
from backprop.data.plan import plan
from backprop.data.preprocess import prepare
from backprop.data.reader import open_source
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.truncate import count_lengths
from backprop.data.validate import validate
from one_row import explain_row

ModelDir = Callable[[str], Path]
IDEA = "  first this,\n\nthen that, and so on to the end "
THOUGHT = f"<think>\n{IDEA}\n</think>\n\nSo."
WHO, WHY = {"role": "user", "content": "Who?"}, {"role": "user", "content": "Why?"}
LAST_QUESTION = (
    "{% set ns = namespace(q=-1) %}"
    "{% for m in messages if m.role == 'user' %}{% set ns.q = messages.index(m) %}{% endfor %}"
)
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HEADERS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "keeps": HEADERS.replace("CONTENT", "m.content") + ASK,
    "trims": HEADERS.replace("CONTENT", "m.content | trim") + ASK,
    # R1-Distill: thinking is deleted from every answer, and the prompt opens it.
    "deletes": HEADERS.replace("CONTENT", "m.content.split('</think>')[-1]") + ASK.replace("\n{%", "\n<think>\n{%"),
    # DeepSeek-V3.1: the same, where the prompt closes it at once.
    "closes": HEADERS.replace("{{ CONTENT", "{% if m.role == 'assistant' %}</think>{% endif %}{{ CONTENT").replace(
        "CONTENT", "m.content.split('</think>')[-1]"
    )
    + ASK.replace("\n{%", "\n</think>{%"),
    # Nemotron: an empty thinking stands before an answer that has none.
    "empty": HEADERS.replace(
        "{{ CONTENT",
        "{% if m.role == 'assistant' and '<think>' not in m.content %}<think></think>{% endif %}{{ CONTENT",
    ).replace("CONTENT", "m.content")
    + ASK.replace("\n{%", "\n<think>\n{%"),
    # Qwen3.5: thinking is written for what follows the last question, and the prompt opens it.
    "opens": LAST_QUESTION + "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.q %}<think>\n{{ m.reasoning_content | default('') }}\n</think>"
    "\n\n{% endif %}{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    + ASK.replace("\n{%", "\n<think>\n{%"),
}
FAMILIES = ["qwen3", "r1", "chatml", *TEMPLATES]


@pytest.fixture
def load(model_dir: ModelDir, tmp_path: Path) -> Callable[[str], ChatTokenizer]:
    def tokenizer(name: str) -> ChatTokenizer:
        if name not in TEMPLATES:
            return ChatTokenizer.load(model_dir(name))
        for file in model_dir("chatml").iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name])
        return ChatTokenizer.load(tmp_path)

    return tokenizer


def trained(tokenizer: ChatTokenizer, messages: list[dict[str, Any]]) -> list[str]:
    """The answers of a row as their trained tokens, with what the prompt supplies of them before."""
    answers, text, before = [], "", False
    for token in explain_row({"messages": messages}, tokenizer, traces=True):
        if token.trained and not before:
            opened = re.search(r"<think>\n?$", text)
            answers.append(opened[0] if opened else "")
        if token.trained:
            answers[-1] += token.text
        text, before = text + token.text, token.trained
    return answers


def end_of(name: str) -> str:
    return "<|end_of_sentence|>" if name == "r1" else "<|im_end|>"


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_the_text_of_the_row_whatever_the_template_makes_of_thinking(
    name: str, load: Callable[[str], ChatTokenizer]
) -> None:
    tokenizer = load(name)
    answer = {"role": "assistant", "content": THOUGHT}
    whole = THOUGHT + end_of(name)
    assert trained(tokenizer, [WHO, answer]) == [whole]
    text = "".join(token.text for token in explain_row({"messages": [WHO, answer]}, tokenizer, traces=True))
    assert text.count("</think>") == 1  # no empty one that the template would put before it
    # Thinking of earlier turns, and beside a turn that has none.
    assert trained(tokenizer, [WHO, answer, WHY, answer]) == [whole, whole]
    bare = {"role": "assistant", "content": "Me."}
    assert trained(tokenizer, [WHO, answer, WHY, bare])[0] == whole
    assert trained(tokenizer, [WHO, bare, WHY, answer])[-1] == whole


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("name", FAMILIES)
def test_thinking_beside_the_answer_is_trained_before_it(
    name: str, field: str, load: Callable[[str], ChatTokenizer]
) -> None:
    answer = {"role": "assistant", "content": "So.", field: IDEA}
    for messages in ([WHO, answer], [WHO, answer, WHY, answer]):
        for said in trained(load(name), messages):
            assert " ".join(said.split()) == " ".join((THOUGHT + end_of(name)).split())


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Who?", "output": "So.", "Thinking": IDEA},
        {"prompt": "Who?", "completion": "So.", "Thinking": IDEA},
        {"prompt": "Who?", "completion": "So.", "label": True, "Thinking": IDEA},
        {"prompt": "Who?", "chosen": "So.", "rejected": "No.", "Thinking": IDEA},
        {"messages": [WHO, {"role": "assistant", "content": "So."}], "Thinking": IDEA},
    ],
)
def test_a_column_with_the_thinking_is_trained_where_it_is_named(
    row: dict[str, Any], model_dir: ModelDir, tmp_path: Path
) -> None:
    path, mapping = tmp_path / "rows.jsonl", {"reasoning": "Thinking"}
    path.write_text(f"{json.dumps(row)}\n{json.dumps({**row, 'Thinking': IDEA * 2})}\n")
    summary = prepare(path, model_dir("qwen3"), traces=True, mapping=mapping).summary
    assert THOUGHT in "".join(span.text for span in summary.first_row if span.trained)
    assert summary.duplicated == 0
    checked, unnamed = validate(path, traces=True, mapping=mapping), validate(path)
    assert not {*checked.problem_counts} - {"one_label"}
    assert "duplicate_row" not in validate(path, mapping=mapping).problem_counts
    assert not any("Thinking" in note for note in checked.notes)
    assert any("--map reasoning=Thinking" in note for note in unnamed.notes)
    assert unnamed.problem_counts["duplicate_row"] == 1


def test_no_token_is_added_and_the_text_without_the_setting_is_as_before(load: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = load("qwen3")
    row = {"messages": [WHO, {"role": "assistant", "content": THOUGHT}, WHY, {"role": "assistant", "content": "Me."}]}
    size = tokenizer.tokenizer.get_vocab_size()
    before = [token.text for token in explain_row(row, tokenizer)]
    assert any(IDEA.strip() in "".join(part) for part in [[t.text for t in explain_row(row, tokenizer, traces=True)]])
    assert [token.text for token in explain_row(row, tokenizer)] == before
    assert IDEA.strip() not in "".join(before)
    assert tokenizer.tokenizer.get_vocab_size() == size


def chat(answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [WHO, {"role": "assistant", "content": answer, **more}]}


ROWS = [
    chat(THOUGHT),
    chat("<think></think>Me."),
    chat("Me.", reasoning_content=IDEA),
    chat("Me.", reasoning_content=""),
    chat("<think>" + "so " * 20_000 + "</think>Me."),
    chat("Me."),
    chat("<think>so it goes on and on and on and on"),
    {"messages": []},
    {"prompt": "Who?", "chosen": THOUGHT, "rejected": "No."},
    {"prompt": "Who?", "chosen": "<think> </think>Me.", "rejected": THOUGHT},
    {"prompt": "Who?", "completion": "<think> </think>Me.", "label": False},
    {"text": "one <think> alone"},
]
CODES = {"trace_too_short": [2, 4, 10], "trace_too_long": [5], "trace_missing": [6], "trace_unbalanced": [7]}


def lines_by_code(problems: list[Any]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for problem in problems:
        if problem.code.startswith("trace_"):
            found.setdefault(problem.code, []).append(problem.line)
    return found


def test_rows_with_a_trace_of_no_use_are_the_same_ones_for_all(model_dir: ModelDir, tmp_path: Path) -> None:
    path, model = tmp_path / "rows.jsonl", model_dir("qwen3")
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    checked = validate(path, traces=True)
    prepared = prepare(path, model, max_length="auto", most=8192, traces=True).summary
    assert lines_by_code(checked.problems) == lines_by_code(prepared.problems) == CODES
    assert (checked.invalid, prepared.unusable) == (1, 1)
    assert (prepared.rows, prepared.kept, prepared.dropped) == (12, 5, 7)
    left_out = sum(prepared.problem_counts.get(code, 0) for code in LEFT_OUT)
    assert left_out == 6  # with the answer that is labelled bad

    with open_source(path) as source:
        file = file_format(source)
    counted = count_lengths(
        *(path, file, ChatTokenizer.load(model)),
        traces=True,
        progress=lambda *_: None,
        cancelled=lambda: False,
        so_far=lambda _: None,
    )
    config = RunConfig(data=str(path), reasoning_trace=True, held_out="none")
    planned = plan(config, counted, model, batch_size=lambda _: 1, most=8192)
    assert planned is not None
    assert (planned.rows, planned.unusable, planned.left_out) == (5, 1, left_out)
    assert planned.chosen.max_seq_length == prepared.max_length == 8192
    assert planned.reasons["max_seq_length"] == "8,192 for reasoning traces"
    some = plan(RunConfig(data=str(path), reasoning_trace=True, samples=2), counted, model, lambda _: 1, 4096)
    assert some is not None
    assert (some.left_out, some.chosen.max_seq_length) == (1, 4096)
    assert some.reasons["max_seq_length"] == "the most that model and memory take, of 8,192 for reasoning traces"


def test_where_no_trace_is_of_use_the_hint_is_about_the_traces(model_dir: ModelDir, tmp_path: Path) -> None:
    path, model = tmp_path / "rows.jsonl", model_dir("qwen3")
    rows = [chat("<think> </think>Yes."), chat("<think>so it goes on and on and on and on")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DatasetError) as caught:
        prepare(path, model, max_length="auto", most=8192, traces=True)
    assert caught.value.code == "DATASET_NOTHING_TO_TRAIN"
    assert caught.value.hint.endswith("leave it out to train the answers alone")
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    with pytest.raises(DatasetError) as caught:
        prepare(path, model, max_length="auto", most=8192)
    assert caught.value.hint == "`backprop validate` lists every problem"


def test_the_sides_of_a_pair_keep_their_thinking(model_dir: ModelDir, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Who?", "chosen": THOUGHT, "rejected": f"<think>{IDEA}</think>No."}))
    summary = prepare(path, model_dir("qwen3"), rows="pairs", traces=True).summary
    assert f"<think>\n{IDEA}\n</think>\n\nSo." in "".join(span.text for span in summary.first_row if span.trained)
    assert f"<think>{IDEA}</think>No." in "".join(span.text for span in summary.first_rejected if span.trained)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("chatml", "are trained whole;"),
        ("qwen3", "are trained in the last answer of a row and left out before it;"),
        ("deletes", "are trained in the last answer of a row and left out before it;"),
        ("", "are trained as far as the model's chat template keeps them;"),
    ],
)
def test_without_the_setting_one_finding_says_what_is_trained_of_traces(
    name: str, words: str, load: Callable[[str], ChatTokenizer], model_dir: ModelDir, tmp_path: Path
) -> None:
    (data := tmp_path / "data").mkdir()
    path = data / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:3], *[chat("Me.")] * 3]))
    if name:
        load(name)
        folder = tmp_path if name in TEMPLATES else model_dir(name)
        problems = prepare(path, folder, cache_dir=tmp_path / "cache").summary.problems
    else:
        problems = validate(path).problems
    said = [problem for problem in problems if problem.code == "reasoning_trace"]
    assert len(said) == 1
    assert said[0].message.startswith("reasoning traces (50 % of rows) are ")
    assert words in said[0].message
    assert "--reasoning-trace" in said[0].message
    assert not lines_by_code(problems)


def test_rows_without_traces_say_nothing_of_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(chat("I think so.")) + "\n")
    assert validate(path).problem_counts == {}
