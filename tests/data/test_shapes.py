"""Rows of other makes: whatever their names and shapes, the answers are trained, once, and nothing else is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.data.clean import clean_file
from backprop.data.convert import convert
from backprop.data.dedup import content_key
from backprop.data.example import Example, Fields, RowError
from backprop.data.formats import detect_fields, detect_file, read_as
from backprop.data.preprocess import prepare
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.validate import validate
from hypothesis import given, settings
from hypothesis import strategies as st
from one_row import explain_row

ModelDir = Callable[[str], Path]
QUESTION, ANSWER, BAD = "Which way?", "To windward.", "No idea."
ASKED = {"role": "user", "content": QUESTION}
SAID = {"role": "assistant", "content": ANSWER}
CHAT = [ASKED, SAID]


def read(row: Any, mapping: dict[str, str] | None = None) -> Example:
    """The row as a file of it is read."""
    file = detect_file([row], mapping)
    names = Fields(file.mapping)
    format = read_as(row, file.format, names)
    assert format is not None, row
    return convert(row, format, names)


def trained(example: Example) -> list[tuple[str, str]]:
    """The conversation; the roles of turns that are trained in capitals."""
    return [
        (turn.role.upper() if turn.role == "assistant" and turn.train is not False else turn.role, turn.content)
        for turn in example.supervised()
    ]


PLAIN = [("user", QUESTION), ("ASSISTANT", ANSWER)]
SHAPES: dict[str, Any] = {
    "role and value": {"messages": [{"role": "user", "value": QUESTION}, {"role": "assistant", "value": ANSWER}]},
    "from and content": {"conversations": [{"from": "human", "content": QUESTION}, {"from": "gpt", "content": ANSWER}]},
    "author and text": {"thread": [{"author": "human", "text": QUESTION}, {"author": "ai", "text": ANSWER}]},
    "capitals": {"Messages": [{"Role": "User", "Content": QUESTION}, {"Role": "Assistant", "Content": ANSWER}]},
    "capital columns": {"Question": QUESTION, "Answer": ANSWER},
    "any column": {"id": 1, "what_was_said": CHAT},
    "JSON text": {"conversations": json.dumps(CHAT)},
    "Python text": {"messages": str([ASKED, SAID | {"weight": None, "id": 1}])},
    "columns of a list": {"messages": {"role": ["user", "assistant"], "content": [QUESTION, ANSWER]}},
    "bare list": CHAT,
    "pairs": {"conversation": [{"input": QUESTION, "output": ANSWER}]},
    "text parts without type": {"messages": [{"role": "user", "content": [{"text": QUESTION}]}, SAID]},
    "text parts with value": {"messages": [ASKED, {"role": "gpt", "content": [{"type": "text", "value": ANSWER}]}]},
    "Gemini": {
        "contents": [{"role": "user", "parts": [{"text": QUESTION}]}, {"role": "model", "parts": [{"text": ANSWER}]}]
    },
    "columns of Parquet that other rows fill": {
        "messages": [
            {
                "from": None,
                "role": "user",
                "content": [{"type": None, "toolUse": None, "text": QUESTION}],
                "train": None,
            },
            {"from": None, "role": "assistant", "content": [{"type": "text", "text": ANSWER}], "tool_calls": None},
        ],
        "label": None,
        "rejected": None,
        "images": [],
    },
    "prompt of turns": {"prompt": [ASKED], "response": ANSWER},
    "prompt in JSON": {"prompt": json.dumps([ASKED]), "completion": json.dumps([SAID])},
    "whole conversation as completion": {"prompt": QUESTION, "completion": CHAT},
    "several answers": {"id": "1", "question": QUESTION, "answers": {"text": [ANSWER, "-"], "answer_start": [0]}},
    "Phi-4's ChatML": {
        "text": f"<|im_start|>user<|im_sep|>{QUESTION}<|im_end|><|im_start|>assistant<|im_sep|>{ANSWER}<|im_end|>"
    },
    "ended ChatML": {
        "text": f"<s><|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|></s>"
    },
    "Llama 3": {
        "text": f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{QUESTION}<|eot_id|>"
        f"<|start_header_id|>assistant<|end_header_id|>\n\n{ANSWER}<|eot_id|>"
    },
    "Gemma": f"<bos><start_of_turn>user\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n{ANSWER}<end_of_turn>\n",
    "liked chat": {"messages": CHAT, "label": True},
    "liked instruction": {"instruction": QUESTION, "output": ANSWER, "kto_tag": "true"},
    "liked by a float": {"prompt": QUESTION, "completion": ANSWER, "label": 1.0},
    "said by a bot": {"messages": [ASKED, {"role": "bot", "content": ANSWER}]},
    "liked by a word": {"question": QUESTION, "answer": ANSWER, "is_correct": "Yes"},
    "better and worse": {"question": QUESTION, "chosen_response": ANSWER, "rejected_response": BAD},
    "sides of turns": {"chosen_messages": CHAT, "rejected_messages": [ASKED, {"role": "assistant", "content": BAD}]},
    "sides in JSON": {
        "prompt": QUESTION,
        "chosen": json.dumps(CHAT),
        "rejected": json.dumps([ASKED, {"role": "assistant", "content": BAD}]),
    },
    "rejected beside a chat": {"messages": CHAT, "rejected_response": BAD},
    "OpenAI's pairs": {
        "input": {"messages": [ASKED]},
        "preferred_output": [SAID],
        "non_preferred_output": [{"role": "assistant", "content": BAD}],
    },
    "transcripts": {
        "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {ANSWER}",
        "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {BAD}",
    },
    "a level deeper": {"data": {"messages": CHAT}},
    "a question a level deeper": {"id": 1, "data": {"question": QUESTION, "answer": ANSWER}},
    "a request of a batch": {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-4o", "messages": CHAT},
    },
    "prompt as transcript": {"prompt": f"\n\nHuman: {QUESTION}\n\nAssistant:", "completion": ANSWER},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_answer_is_trained_whatever_the_shape_of_the_row(shape: str, tmp_path: Path) -> None:
    row = SHAPES[shape]
    assert trained(read(row)) == PLAIN
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n" * 2)
    assert (validate(path).valid, validate(path).invalid) == (2, 0)


@pytest.mark.parametrize(
    ("good", "bad"), [("thumbs_up", "thumbs down"), ("👍", "👎"), (1, -1), ("1", "-1"), (1.0, -1.0)]
)
def test_a_pair_of_judgements_makes_rows_feedback_however_it_is_written(good: Any, bad: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": CHAT, "feedback": good}, {"messages": CHAT, "feedback": bad}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert validate(path).formats == {"kto": 2}


CALL = {"type": "function", "function": {"name": "clock", "arguments": {"tz": "UTC"}}}


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ({"type": "tool_use", "id": "1", "name": "clock", "input": {"tz": "UTC"}},
         {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "noon"}]}),
        ({"toolUse": {"toolUseId": "1", "name": "clock", "input": {"tz": "UTC"}}},
         {"toolResult": {"toolUseId": "1", "content": [{"text": "noon"}]}}),
        ({"functionCall": {"id": "1", "name": "clock", "args": {"tz": "UTC"}}},
         {"functionResponse": {"id": "1", "name": "clock", "response": "noon"}}),
    ],
)  # fmt: skip
def test_calls_and_results_inside_content_are_calls_and_turns_of_tools(asked: Any, answered: Any) -> None:
    turns = [ASKED, {"role": "assistant", "content": [asked]}, {"role": "user", "content": [answered]}, SAID]
    made = read({"messages": turns}).turns
    assert [turn.role for turn in made] == ["user", "assistant", "tool", "assistant"]
    assert made[1].tool_calls == [CALL | {"id": "1"}]
    assert (made[2].content, made[2].tool_call_id) == ("noon", "1")


@pytest.mark.parametrize("given", ["", None, "{}", {}, "null", " "])
def test_a_call_without_arguments_has_an_empty_object(given: Any) -> None:
    call = {"name": "clock"} | ({} if given == " " else {"arguments": given})
    turns = [ASKED, {"role": "assistant", "content": None, "tool_calls": [{"function": call}]}, SAID]
    example = read({"messages": turns})
    assert example.turns[1].tool_calls == [{"type": "function", "function": {"name": "clock", "arguments": {}}}]
    assert "call_arguments" not in [warning.code for warning in example.warnings]


def test_arguments_in_pythons_notation_are_read_and_torn_ones_named() -> None:
    for text, arguments, codes in (("{'tz': 'UTC'}", {"tz": "UTC"}, 0), ('{"tz": "U', '{"tz": "U', 1)):
        turns = [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": text}}]}, SAID]
        example = read({"messages": turns})
        assert (example.turns[1].tool_calls or [{}])[0]["function"]["arguments"] == arguments
        assert [warning.code for warning in example.warnings].count("call_arguments") == codes


SCHEMA = {"type": "object", "properties": {}}
TOOL = {"type": "function", "function": {"name": "clock", "description": "time", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        [{"name": "clock", "description": "time", "parameters": SCHEMA}],
        [{"name": "clock", "description": "time", "input_schema": SCHEMA}],
        [{"name": "clock", "description": "time", "inputSchema": SCHEMA}],
        [{"type": "function", "name": "clock", "description": "time", "parameters": SCHEMA}],
        [{"function_declarations": [{"name": "clock", "description": "time", "parameters": SCHEMA}]}],
        [{"toolSpec": {"name": "clock", "description": "time", "inputSchema": {"json": SCHEMA}}}],
        [json.dumps(TOOL)],
        json.dumps([TOOL]),
    ],
)
def test_tools_of_every_interface_are_functions_of_openais(tools: Any) -> None:
    example = read({"messages": CHAT, "tools": tools})
    assert example.tools == [TOOL]
    assert list(example.tools[0]["function"]) == ["name", "description", "parameters"]


def test_a_tool_without_a_name_is_an_error() -> None:
    with pytest.raises(RowError, match="has no name"):
        read({"messages": CHAT, "tools": [{"type": "web_search"}]})


BEGUN = {"role": "assistant", "content": "To "}
AGAIN = [*CHAT, {"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Home."}]
SECOND_ONLY = [("user", QUESTION), ("assistant", ANSWER), ("user", "And then?"), ("ASSISTANT", "Home.")]


@pytest.mark.parametrize(
    "row",
    [
        *({"messages": [AGAIN[0], AGAIN[1] | {key: 0}, *AGAIN[2:]]} for key in ("train", "loss", "weight", "training")),
        {"messages": [AGAIN[0], AGAIN[1] | {"masked": True}, *AGAIN[2:]]},
        {"messages": AGAIN, "loss_mask": [0, 0, 0, 1]},
        {"messages": AGAIN, "train_mask": [False, True]},
        {"conversations": AGAIN, "loss_mask": "[0, 1]"},
    ],
)
def test_a_mask_that_a_row_brings_decides(row: Any) -> None:
    assert trained(read(row)) == SECOND_ONLY


@pytest.mark.parametrize(
    ("row", "code", "field"),
    [
        ({"messages": [ASKED, SAID | {"train_detail": [{"begin": 0}]}]}, "unknown_mask", "messages[1].train_detail"),
        ({"messages": CHAT, "assistant_mask": [0, 1]}, "unknown_mask", "assistant_mask"),
        ({"messages": CHAT, "weights": [0, 1]}, "unknown_mask", "weights"),
        ({"messages": [ASKED, SAID | {"is_target": False}]}, "unknown_mask", "messages[1].is_target"),
        ({"messages": [ASKED, SAID | {"ignore": 1}]}, "unknown_mask", "messages[1].ignore"),
        ({"prompt": QUESTION, "completion": ANSWER, "completion_mask": [1, 1]}, "unknown_mask", "completion_mask"),
        ({"messages": AGAIN, "loss_mask": [1, 0, 1]}, "invalid_value", "loss_mask"),
        ({"messages": CHAT, "images": ["a.png"]}, "unsupported_content", "images"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_stops_the_row_in_checks_too(row: Any, code: str, field: str, tmp_path: Path) -> None:
    with pytest.raises(RowError) as error:
        read(row)
    assert (error.value.code, error.value.field) == (code, field)
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(each) + "\n" for each in [*[{"messages": CHAT, "id": i} for i in range(5)], row])
    )
    assert validate(path).invalid == 1


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"messages": [ASKED | {"train": True}, SAID]}, "ignored_field"),
        ({"messages": [ASKED | {"ignore": True}, SAID]}, "ignored_field"),
        ({"messages": [ASKED, SAID | {"is_target": True}]}, "ignored_field"),
        ({"messages": [ASKED, SAID | {"content": 5}]}, "written_value"),
        ({"instruction": QUESTION, "output": "nan"}, "missing_mark"),
        ({"instruction": "<image>\nWhat is it?", "output": "A gull."}, "unsupported_content"),
        ({"text": "<image> A gull on a mast."}, "unsupported_content"),
        ({"messages": [{"role": "system", "content": "Be brief."}, *CHAT], "system": "Be a pirate."}, "ignored_field"),
        ({"text": "### Instruction:\nWho?\n\n### Response:\nMe."}, "transcript"),
        ({"text": "User: Who?\nAssistant: Me."}, "transcript"),
        ({"text": "A chat. USER: Who? ASSISTANT: Me.</s>"}, "transcript"),
        ({"text": "Q: Who?\nA: Me.\n\nQ: Why?\nA: So."}, "transcript"),
        ({"text": "Instruct: Who?\nOutput: Me."}, "transcript"),
        ({"messages": [ASKED, SAID | {"content": "Me.\n\nHuman: Why?\n\nAssistant: So."}]}, "transcript"),
        ({"instruction": "Who?", "output": "Me.\n### Instruction:\nWhy?\n### Response:\nSo."}, "transcript"),
        ({"prompt": "Who?", "completion": "Me. USER: Why? ASSISTANT: So."}, "transcript"),
    ],
)
def test_what_is_odd_is_said_by_checking_and_by_preparing(
    row: Any, code: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert validate(path).problem_counts.get(code) == 1
    assert prepare(path, model_dir("chatml")).summary.problem_counts.get(code) == 1


@pytest.mark.parametrize("mark", ["None", "nan", "N/A", "n/a", "<noinput>", "<NoInput>", " null\n", "NULL"])
@pytest.mark.parametrize("part", ["input", "system"])
def test_a_missing_value_beside_the_question_is_read_as_empty_and_said_once(
    part: str, mark: str, model_dir: ModelDir, tmp_path: Path
) -> None:
    rows = [{"instruction": f"Which way, {i}?", part: mark, "output": ANSWER} for i in range(3)]
    assert trained(read(rows[0])) == [("user", "Which way, 0?"), ("ASSISTANT", ANSWER)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = validate(path)
    assert (checked.valid, checked.problem_counts) == (3, {"missing_input": 3})
    assert prepare(path, model_dir("chatml")).summary.problem_counts == {"missing_input": 3}


@pytest.mark.parametrize(
    ("answered", "text"),
    [
        ({"temp": 20, "sky": "clear"}, '{"temp": 20, "sky": "clear"}'),
        ([{"port": "Brest"}, 2], '[{"port": "Brest"}, 2]'),
        ({"text": "clear", "lang": "en"}, '{"text": "clear", "lang": "en"}'),
        ({"type": "sunny", "temp": 20}, '{"type": "sunny", "temp": 20}'),
        (["a", "é"], '["a", "é"]'),
        ([{"type": "text", "text": "clear"}], "clear"),
        ([{"text": "cl"}, {"text": "ear"}], "clear"),
    ],
)
def test_what_a_tool_answers_is_text_whatever_it_is(answered: Any, text: str) -> None:
    example = read({"messages": [ASKED, SAID, {"role": "tool", "content": answered}, SAID]})
    assert [(turn.role, turn.content) for turn in example.turns][2] == ("tool", text)
    assert [warning.code for warning in example.warnings] == (["written_value"] if text != "clear" else [])


def test_a_picture_that_a_tool_answers_is_still_no_text() -> None:
    with pytest.raises(RowError, match="only text is trained"):
        read({"messages": [ASKED, {"role": "tool", "content": [{"type": "image_url", "image_url": {}}]}, SAID]})


def test_an_unknown_role_is_named_with_those_that_are_known() -> None:
    tale = {"role": "narrator", "content": "Dusk."}
    for turns, code in (([tale, tale], "invalid_role"), ([ASKED, tale], "no_assistant")):
        with pytest.raises(RowError) as error:
            read({"messages": turns})
        assert error.value.code == code
        assert "role 'narrator'; known are system, user, assistant and tool" in error.value.message
    said = [warning.message for warning in read({"messages": [*CHAT, tale]}).warnings]
    assert said == ["role 'narrator' is not known (system, user, assistant and tool are): it is kept as it is"]


SHAPES_OF_ONE = {"alpaca": {"instruction": QUESTION, "output": ANSWER}, "openai": {"messages": CHAT}}


@pytest.mark.parametrize("shape", SHAPES_OF_ONE)
@pytest.mark.parametrize(
    "column",
    [
        ("reward", 1, -1, "--map label=reward"),
        ("score", 1.0, 0.0, "--map label=score"),
        ("answer_quality", "good", "bad", "--map label=answer_quality"),
        ("reward", 2.5, -3.5, "a label, true or false"),
        ("sample_weight", 0.5, 0, "a label, true or false"),
        ("scores_high", True, False, "--map label=scores_high"),
        ("loss_weights", 1, 0, "--map label=loss_weights"),
    ],
)
def test_an_answer_that_an_unread_column_calls_bad_is_said_to_be_trained(
    shape: str, column: tuple[str, Any, Any, str], model_dir: ModelDir, tmp_path: Path
) -> None:
    name, good, bad, way = column
    rows = [SHAPES_OF_ONE[shape] | {name: good} for _ in range(3)]
    rows.append(SHAPES_OF_ONE[shape] | {name: bad})
    notes = detect_file(rows).notes()
    assert [note for note in notes if note.startswith(f"{name} has no effect") and way in note] == notes[1:]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for findings in (validate(path).problems, prepare(path, model_dir("chatml")).summary.problems):
        found = [(each.line, each.severity, each.field) for each in findings if each.code == "bad_as_good"]
        assert found == [(4, "warning", name)]
    if way.startswith("--map"):
        summary = prepare(path, model_dir("chatml"), mapping={"label": name}).summary
        assert (summary.kept, summary.problem_counts["label_false"]) == (3, 1)


@pytest.mark.parametrize(
    "column", [{"score": 7}, {"label": 3, "votes": 12}, {"id": 1}, {"split_id": False}, {"quality": "high"}]
)
def test_a_column_that_is_no_verdict_is_only_named(column: dict[str, Any]) -> None:
    assert detect_file([SHAPES_OF_ONE["openai"] | column]).without_effect == {}


def test_a_flag_for_training_that_nothing_reads_is_said_to_have_no_effect() -> None:
    file = detect_file([{"messages": CHAT, "train_on_last_only": True}])
    assert "train_on_last_only has no effect on what is trained" in file.notes()[-1]
    assert "--map loss_mask=FIELD" in file.notes()[-1]


@pytest.mark.parametrize("flag", ["false", "0.0", "no", 0, False])
@pytest.mark.parametrize("shape", ["messages", "instruction", "prompt"])
def test_an_answer_that_is_called_bad_is_left_out_and_stops_nothing(
    shape: str, flag: Any, model_dir: ModelDir, tmp_path: Path
) -> None:
    rows: dict[str, dict[str, Any]] = {
        "messages": {"messages": CHAT},
        "instruction": {"instruction": QUESTION, "output": ANSWER},
        "prompt": {"prompt": QUESTION, "response": ANSWER},
    }
    path = tmp_path / "rows.jsonl"
    judged = [rows[shape] | {"label": label} for label in (True, flag)]
    path.write_text("".join(json.dumps(row) + "\n" for row in judged))
    summary = prepare(path, model_dir("chatml")).summary
    assert (summary.format, summary.kept, summary.dropped, summary.unusable) == ("kto", 1, 1, 0)
    assert summary.problem_counts == {"label_false": 1}


def test_a_class_is_no_judgement(tmp_path: Path) -> None:
    rows = [{"instruction": f"Sort {i}", "output": "x", "label": i % 5} for i in range(20)]
    file = detect_file(rows)
    assert (file.format, file.counts) == ("alpaca", {"alpaca": 20})
    assert file.found == {"label": "-"}
    assert detect_file(rows, {"label": "label"}).counts["kto"] == 8


@pytest.mark.parametrize(
    ("prompt", "lead"),
    [
        ("Which way? ", [ASKED]),
        (QUESTION, AGAIN[:3]),
        ([AGAIN[0]], AGAIN[:3]),
        (AGAIN[:3], AGAIN[2:3]),
        (QUESTION, [{"role": "system", "content": "Be brief."}, ASKED]),
    ],
)
def test_a_prompt_beside_whole_conversations_is_asked_once(prompt: Any, lead: list[Any]) -> None:
    sides = {
        name: [*lead, {"role": "assistant", "content": text}] for name, text in (("chosen", ANSWER), ("rejected", BAD))
    }
    conversation = trained(read({"prompt": prompt, **sides}))
    assert [words.strip() for _, words in conversation].count(QUESTION) == 1
    assert conversation[-1] == ("ASSISTANT", ANSWER)
    assert len(conversation) == max(len(lead), 1 if isinstance(prompt, str) else len(prompt)) + 1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED, BEGUN], "completion": [{"role": "assistant", "content": "sea."}]},
        {"messages": [ASKED, BEGUN | {"prefix": True}, {"role": "assistant", "content": "sea."}]},
    ],
)
def test_the_begin_of_an_answer_that_is_given_is_context(row: Any, model_dir: ModelDir) -> None:
    tokens = explain_row(row, ChatTokenizer.load(model_dir("chatml")))
    assert "".join(token.text for token in tokens if token.trained) == "sea.<|im_end|>"
    assert "".join(token.text for token in tokens).count("<|im_start|>assistant") == 1


@pytest.mark.parametrize("role", ["tool_response", "tool_result", "function_result", "ipython", "Tool"])
def test_results_of_tools_are_turns_of_tools(role: str) -> None:
    assert read({"messages": [ASKED, {"role": role, "content": "noon"}, SAID]}).turns[1].role == "tool"


def test_what_was_found_is_shown_with_what_is_not_used_and_a_mapping_adds_to_it() -> None:
    row = {"system_prompt": "Be a pirate.", "question": QUESTION, "response": ANSWER, "id": 7, "source": ""}
    file = detect_file([row, row | {"source": "book"}])
    assert file.notes() == [
        "fields are read as system=system_prompt, instruction=question, output=response; --map says otherwise",
        "columns that are not used: id (every row), source (50 % of rows)",
    ]
    assert trained(read(row)) == [("system", "Be a pirate."), *PLAIN]
    given = detect_file([row | {"persona": "A gull."}], {"system": "persona"})
    assert given.mapping == {"system": "persona", "instruction": "question", "output": "response"}
    assert "system_prompt" in given.unused
    assert detect_file([{"conversations": SHAPES["from and content"]["conversations"]}]).notes() == [
        "fields are read as messages=conversations, role=from; --map says otherwise"
    ]
    said = [{"who": "user", "what": QUESTION}, {"who": "assistant", "what": ANSWER}]
    assert trained(read({"talk": said}, {"messages": "talk", "role": "who", "content": "what"})) == PLAIN


def test_a_second_conversation_is_named_as_unused() -> None:
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "messages": CHAT}
    assert detect_file([row]).unused == {"messages": 1}


def test_a_row_inside_another_object_is_read_whole_and_the_note_says_where(model_dir: ModelDir, tmp_path: Path) -> None:
    bodies = [{"model": "m", "messages": [{"role": "user", "content": f"{i}?"}, SAID], "tools": [TOOL]} for i in "ab"]
    rows = [{"custom_id": str(i), "url": "/v1", "body": body} for i, body in enumerate([*bodies, bodies[0]])]
    file = detect_file(rows)
    assert file.notes()[0] == "fields are read as row=body; --map says otherwise"
    assert {*file.unused} == {"custom_id", "url", "model"}
    assert read(rows[0]).tools == [TOOL]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert validate(path).problem_counts == {"duplicate_row": 1}
    assert prepare(path, model_dir("chatml")).summary.duplicated == 1
    path.write_text(path.read_text() + '"a stray text"\n[1]\n')
    assert [problem.line for problem in validate(path, mapping={"row": "body"}).problems][-2:] == [4, 5]


@pytest.mark.parametrize(
    "row",
    [
        {"question": QUESTION, "response": {"text": ANSWER}},
        {"conversation": {"messages": CHAT}, "system": "Be brief."},
        {"one": {"messages": CHAT}, "two": {"messages": CHAT}},
        {"messages": CHAT, "meta": {"text": "from a book"}},
    ],
)
def test_what_stands_beside_an_object_that_is_read_keeps_the_row_as_it_is(row: Any) -> None:
    assert "row" not in detect_file([row]).mapping


def test_zero_is_an_answer_of_its_own_and_an_empty_one_is_not_written(tmp_path: Path, model_dir: ModelDir) -> None:
    rows = [
        {"instruction": "1-1?", "output": ""},
        {"instruction": "1-1?", "output": 0},
        {"instruction": "So?", "output": " "},
    ]
    assert len({content_key(row, "alpaca") for row in rows}) == 3
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = clean_file(path)
    assert (result.kept, result.removed) == (1, {"nothing_to_train": 2})
    summary = prepare(result.output, model_dir("chatml")).summary
    assert (summary.kept, summary.unusable) == (1, 0)


WORDS = st.text(alphabet="abc \n?\u00e9", min_size=1, max_size=12).filter(lambda text: text.strip())
WHO = [("role", "user", "assistant"), ("from", "human", "gpt"), ("speaker", "Human", "AI"), ("author", "user", "model")]
WHAT = ["content", "value", "text", "utterance"]
NAMES = ["messages", "conversations", "Conversation", "dialog", "thread", "what_was_said"]
WRAPS: list[Callable[[list[Any]], Any]] = [
    lambda turns: turns,
    json.dumps,
    lambda turns: {key: [turn[key] for turn in turns] for key in turns[0]},
]
SPELLED = list(itertools.product(WHO, WHAT, NAMES, range(len(WRAPS)), [False, True]))


@settings(max_examples=200, deadline=None)
@given(
    spelled=st.sampled_from(SPELLED),
    said=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4),
    extra=st.dictionaries(
        st.sampled_from(["id", "source", "n"]), st.one_of(st.integers(), st.text(max_size=3)), max_size=2
    ),
)
def test_a_conversation_under_any_spelling_trains_the_text_of_its_answers(
    spelled: Any, said: list[tuple[str, str]], extra: dict[str, Any]
) -> None:
    (who, user, assistant), what, name, wrap, parts = spelled
    turns = []
    for asked, answered in said:
        for speaker, text in ((user, asked), (assistant, answered)):
            turns.append({who: speaker, what: [{"text": text}] if parts else text})
    row = {**extra, name: WRAPS[wrap](turns)}
    assert trained(read(row)) == [
        pair for asked, answered in said for pair in (("user", asked), ("ASSISTANT", answered))
    ]


@settings(max_examples=200, deadline=None)
@given(
    asked=st.sampled_from(["instruction", "Question", "query", "problem", "prompt", "INPUT", "context", "user"]),
    answered=st.sampled_from(["output", "Answer", "response", "completion", "solution", "reply", "assistant"]),
    judged=st.sampled_from(
        [{}, {"label": True}, {"kto_tag": "True"}, {"is-good": 1}, {"rejected": BAD}, {"dispreferred": BAD}]
    ),
    said=st.tuples(WORDS, WORDS),
)
def test_question_and_answer_under_any_spelling_train_the_answer(
    asked: str, answered: str, judged: dict[str, Any], said: tuple[str, str]
) -> None:
    row = {asked: said[0], answered: said[1], **judged}
    assert trained(read(row)) == [("user", said[0]), ("ASSISTANT", said[1])]
    assert detect_file([row]).unused == {}
    assert detect_fields(row, Fields(detect_file([row]).mapping)) is not None
