"""What a row is, and what it says: detection, conversion, mappings, findings."""

from __future__ import annotations

from typing import Any

import pytest
from backprop.data.convert import convert
from backprop.data.example import Fields, RowError, Turn
from backprop.data.formats import FormatCounts, detect_fields, detect_file, find_mapping, read_as

CHATML = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"conversations": [{"from": "human", "value": "a"}]}, "sharegpt"),
        ({"conversations": []}, None),
        ({"conversations": [{"role": "user", "content": "a"}]}, None),
        ({"messages": [{"role": "user", "content": "a"}]}, "openai"),
        ({"messages": []}, None),
        ({"messages": [{"role": "user"}]}, None),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"instruction": "a"}, None),
        ({"text": CHATML}, "chatml"),
        ({"text": "plain"}, "text"),
        ("plain", "text"),
        (CHATML, "chatml"),
        ("half of a turn <|im_start|>", "text"),
        ({"text": "half of a turn <|im_start|>"}, "chatml"),
        ({"chosen": "a", "rejected": "b"}, "preference"),
        ({"chosen": "a", "rejected": "b", "messages": [{"role": "user", "content": "q"}]}, "preference"),
        ({"chosen": "a"}, None),
        ({"completion": "a", "label": True}, "kto"),
        ({"completion": "a", "label": False}, "kto"),
        ({"completion": "a", "label": 0}, "kto"),
        ({"completion": "a", "label": 1}, "kto"),
        ({"completion": "a", "label": 2}, None),
        ({"completion": "a", "label": 1.0}, "kto"),
        ({"completion": "a", "label": "No"}, "kto"),
        ({"completion": "a", "label": "perhaps"}, None),
        ({"completion": "a", "label": False, "chosen": "a", "rejected": "b"}, "kto"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({}, None),
        ([], None),
        (5, None),
    ],
)
def test_the_format_is_told_from_the_fields(row: Any, expected: str | None) -> None:
    assert detect_fields(row) == expected


def turns(row: Any, **options: Any) -> list[tuple[str, str]]:
    format = detect_fields(row, Fields(options.get("mapping")))
    assert format is not None
    return [(turn.role, turn.content) for turn in convert(row, format, options.get("mapping")).supervised()]


def test_alpaca_is_system_instruction_with_input_and_output() -> None:
    row = {"instruction": "Do", "input": "X", "output": "Y", "system": "S"}
    assert turns(row) == [("system", "S"), ("user", "Do\n\nX"), ("assistant", "Y")]


def test_zero_and_false_are_answers() -> None:
    assert turns({"instruction": "1-1?", "output": 0})[-1] == ("assistant", "0")
    assert turns({"instruction": "so?", "output": False})[-1] == ("assistant", "false")
    assert turns({"prompt": "1-1?", "completion": 0.0})[-1] == ("assistant", "0.0")
    assert turns({"prompt": 0, "chosen": 0, "rejected": False}) == [("user", "0"), ("assistant", "0")]
    row = {"instruction": "a", "input": 0, "output": "b", "system": 0}
    assert turns(row) == [("system", "0"), ("user", "a\n\n0"), ("assistant", "b")]
    for chat in (
        {"conversations": [{"from": "human", "value": 0}, {"from": "gpt", "value": False}]},
        {"messages": [{"role": "user", "content": 0}, {"role": "assistant", "content": False}]},
    ):
        assert turns(chat) == [("user", "0"), ("assistant", "false")]


def test_sharegpt_roles_become_the_templates_roles() -> None:
    row = {"conversations": [{"from": r, "value": r} for r in ("system", "human", "gpt", "observation", "gpt")]}
    assert [role for role, _ in turns(row)] == ["system", "user", "assistant", "tool", "assistant"]


def test_an_unknown_role_is_kept_and_reported() -> None:
    row = {"conversations": [{"from": "narrator", "value": "once"}, {"from": "gpt", "value": "x"}]}
    example = convert(row, "sharegpt")
    assert example.turns[0].role == "narrator"
    assert "invalid_role" in [warning.code for warning in example.warnings]


def test_only_unknown_roles_are_an_error() -> None:
    with pytest.raises(RowError) as error:
        convert({"messages": [{"role": "narrator", "content": "x"}]}, "openai")
    assert error.value.code == "invalid_role"


@pytest.mark.parametrize(
    ("row", "format", "code", "field"),
    [
        ({"instruction": "x"}, "alpaca", "missing_field", "output"),
        ({"conversations": [{"value": "a"}, "x"]}, "sharegpt", "missing_field", "conversations[0].from"),
        ({"messages": [{"content": "a"}]}, "openai", "missing_field", "messages[0].role"),
        ({"conversations": [{"from": "gpt", "value": "a"}, "x"]}, "sharegpt", "invalid_type", "conversations[1]"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]},
            "openai",
            "missing_field",
            "messages[1].content",
        ),
        ({"messages": [{"role": "user", "content": "a"}]}, "openai", "no_assistant", "messages"),
        ({"messages": "hello"}, "openai", "invalid_type", "messages"),
        ({"messages": 7}, "openai", "invalid_type", "messages"),
        ({"instruction": ["a"], "output": "b"}, "alpaca", "invalid_type", "instruction"),
        ({"text": "<|im_start|>user\nhi"}, "chatml", "unbalanced_tags", "text"),
        ({"text": CHATML + " and more"}, "chatml", "text_outside_turns", "text"),
        ({"text": "  "}, "text", "empty_content", "text"),
        ({"prompt": "p", "completion": "c", "label": "perhaps"}, "kto", "invalid_value", "label"),
        ({"prompt": "p", "chosen": "c"}, "preference", "missing_field", "rejected"),
        ({"prompt": "p"}, "prompt_completion", "missing_field", "completion"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "openai",
            "unsupported_content",
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "assistant", "content": "a", "weight": "much"}]}, "openai", "invalid_value", None),
        ({"messages": [{"role": "assistant", "content": "a"}], "tools": "{"}, "openai", "invalid_type", "tools"),
        (7, "alpaca", "invalid_type", ""),
    ],
)
def test_an_unusable_row_says_what_and_where(row: Any, format: Any, code: str, field: str | None) -> None:
    with pytest.raises(RowError) as error:
        convert(row, format)
    assert error.value.code == code
    if field is not None:
        assert error.value.field == field
    assert error.value.message


def test_an_empty_answer_is_reported_and_the_row_still_read() -> None:
    for empty in (" ", None):
        example = convert({"instruction": "x", "output": empty}, "alpaca")
        assert [warning.code for warning in example.warnings] == ["empty_content"]
    example = convert({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": None}]}, "sharegpt")
    assert example.turns[1].content == ""


def test_roles_out_of_order_are_reported() -> None:
    def codes(*roles: str) -> list[str]:
        row = {"messages": [{"role": role, "content": "x"} for role in roles]}
        return [warning.code for warning in convert(row, "openai").warnings]

    assert codes("system", "user", "assistant", "user", "assistant") == []
    assert codes("user", "user", "assistant") == ["role_order"]
    assert codes("assistant", "user", "assistant") == ["role_order"]
    assert codes("user", "system", "assistant") == ["role_order"]
    assert codes("user", "assistant", "tool", "tool", "assistant") == []
    assert codes("user", "tool", "assistant") == codes("tool", "assistant") == ["role_order"]


def test_content_parts_become_text_and_reasoning() -> None:
    parts = [{"type": "reasoning", "text": "because"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (turn,) = convert({"messages": [{"role": "assistant", "content": parts}]}, "openai").turns
    assert (turn.content, turn.reasoning) == ("ab", "because")


def test_calls_are_kept_with_their_arguments_parsed() -> None:
    old = {"role": "assistant", "content": "Wait.", "function_call": {"name": "f", "arguments": '{"a": 1}'}}
    new = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    for message in (old, new):
        (turn,) = convert({"messages": [message]}, "openai").turns
        assert turn.tool_calls == [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert convert({"messages": [old]}, "openai").turns[0].content == "Wait."


def test_a_call_written_as_a_sharegpt_turn_is_a_call() -> None:
    row = {"conversations": [{"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]}
    (turn,) = convert(row, "sharegpt").turns
    assert turn.role == "assistant"
    assert turn.tool_calls is not None


def test_tools_are_read_from_a_list_and_from_text() -> None:
    base = {"messages": [{"role": "assistant", "content": "a"}]}
    tool = {"type": "function", "function": {"name": "f"}}
    for tools in ([tool], '[{"type": "function", "function": {"name": "f"}}]', [{"name": "f"}]):
        assert convert({**base, "tools": tools}, "openai").tools == [tool]
    assert convert({**base, "tools": ""}, "openai").tools is None


def test_weights_of_turns_are_read_and_fractions_reported() -> None:
    for key, value, train in (("train", False, False), ("loss_weight", 0, False), ("weight", 1.0, True)):
        (turn,) = convert({"messages": [{"role": "assistant", "content": "a", key: value}]}, "openai").turns
        assert turn.train is train
    example = convert({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "openai")
    assert "weight_rounded" in [warning.code for warning in example.warnings]


def test_chatml_text_becomes_turns() -> None:
    assert turns({"text": CHATML}) == [("user", "hi"), ("assistant", "yo")]
    assert turns(CHATML + "\n") == [("user", "hi"), ("assistant", "yo")]


def test_a_preference_row_teaches_its_prompt_and_chosen_answer() -> None:
    assert turns({"prompt": "q", "chosen": "a", "rejected": "b"}) == [("user", "q"), ("assistant", "a")]
    assert turns({"prompt": " ", "chosen": "a", "rejected": "b"}) == [("assistant", "a")]
    assert turns({"prompt": "q", "chosen": ["a"], "rejected": ["b"]}) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": [["user", "q"], ["assistant", "a"]], "rejected": [["user", "q"], ["assistant", "b"]]},
        {"chosen": [["user", "q"], ["assistant", "a"]], "rejected": [["user", "q"], ["assistant", "b"]]},
        {"prompt": [["user", "q"]], "chosen": [["assistant", "a"]], "rejected": [["assistant", "b"]]},
    ],
)
def test_a_prompt_repeated_on_both_sides_is_taken_once(row: dict[str, Any]) -> None:
    shaped = {
        key: [{"role": role, "content": text} for role, text in value] if isinstance(value, list) else value
        for key, value in row.items()
    }
    example = convert(shaped, "preference")
    assert example.turns == [Turn("user", "q")]
    assert example.chosen == [Turn("assistant", "a")]
    assert example.rejected == [Turn("assistant", "b")]


def test_a_sharegpt_shaped_pair_has_its_conversation_as_prompt() -> None:
    row = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    example = convert(row, "preference")
    assert (example.turns, example.chosen) == ([Turn("user", "q")], [Turn("assistant", "a")])


def test_equal_sides_and_a_missing_prompt_are_reported() -> None:
    example = convert({"chosen": "a", "rejected": "a"}, "preference")
    assert [(w.code, w.severity) for w in example.warnings] == [("no_prompt", "info"), ("same_sides", "warning")]


def test_an_answer_labelled_bad_is_not_taught() -> None:
    assert turns({"prompt": "q", "completion": "a", "label": 1}) == [("user", "q"), ("assistant", "a")]
    with pytest.raises(RowError) as error:
        turns({"prompt": "q", "completion": "a", "label": False})
    assert error.value.code == "label_false"


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"question": "q", "answer": "a"}, {"instruction": "question", "output": "answer"}),
        ({"context": "q", "response": "a"}, {"instruction": "context", "output": "response"}),
        ({"input": "q", "output": "a"}, {"instruction": "input"}),
        ({"prompt": "q", "response": "a"}, {"completion": "response"}),
        (
            {"instruction": "q", "context": "", "response": "a"},
            {"output": "response", "input": "context"},
        ),
    ],
)
def test_common_field_names_are_found(row: dict[str, Any], mapping: dict[str, str]) -> None:
    assert find_mapping(row) == mapping
    assert turns(row, mapping=mapping) == [("user", "q"), ("assistant", "a")]


def test_chats_under_other_names_are_found() -> None:
    row = {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    mapping = find_mapping(row)
    assert mapping == {"messages": "conversations"}
    assert turns(row, mapping=mapping) == [("user", "q"), ("assistant", "a")]


def test_a_mapping_that_is_given_is_obeyed_and_errors_use_the_files_names() -> None:
    mapping = {"instruction": "ask", "output": "tell"}
    assert turns({"ask": "q", "tell": "a", "instruction": "no"}, mapping=mapping) == [
        ("user", "q"),
        ("assistant", "a"),
    ]
    with pytest.raises(RowError) as error:
        convert({"ask": "q"}, "alpaca", mapping)
    assert error.value.field == "tell"


def test_a_file_is_most_of_its_rows_whatever_their_order() -> None:
    rows: list[Any] = [{"text": "t"}, {"odd": 1}, *[{"instruction": "a", "output": "b"}] * 3]
    for some in (rows, rows[::-1]):
        known = detect_file(some)
        assert known.format == "alpaca"
        assert known.counts == {"alpaca": 3, "text": 1, "unknown": 1}
        assert known.mixed


def test_counts_say_where_the_fewer_rows_are() -> None:
    counted = FormatCounts()
    for line, name in enumerate(["alpaca", "alpaca", "text", *["unknown"] * 7, *["alpaca"] * 9], start=1):
        counted.add(name, line)
    assert counted.describe() == "11 alpaca, 7 unknown (lines 4, 5, 6, 7, 8 …), 1 text (line 3)"


def test_a_mapping_is_found_for_a_file_and_shown() -> None:
    known = detect_file([{"question": "a", "answer": "b"}])
    assert (known.format, known.mapping, known.found) == (
        "alpaca",
        {"instruction": "question", "output": "answer"},
        {"instruction": "question", "output": "answer"},
    )


def test_a_mapping_is_taken_for_most_rows_alone_and_with_the_fields_that_some_lack() -> None:
    alpaca, asked = {"instruction": "a", "output": "b"}, {"question": "a", "answer": "b"}
    for rows in ([asked, alpaca, alpaca], [alpaca, alpaca, asked]):
        assert detect_file(rows).mapping == {}
    for rows in ([alpaca, asked, asked, asked | {"context": "c"}], [asked | {"context": "c"}, asked, asked, alpaca]):
        assert detect_file(rows).mapping == {"instruction": "question", "output": "answer", "input": "context"}


@pytest.mark.parametrize(
    ("row", "file", "expected"),
    [
        ({"prompt": "a", "completion": "b"}, "preference", "prompt_completion"),
        ({"instruction": "a", "output": "b"}, "openai", "alpaca"),
        ({"prompt": "a", "chosen": "b"}, "preference", "preference"),
        ({"prompt": "a", "completion": "b", "label": "perhaps"}, "kto", "kto"),
        ({"prompt": "a", "completion": "b", "label": "perhaps"}, "prompt_completion", "prompt_completion"),
        ({"prompt": "a", "completion": "b"}, "kto", "prompt_completion"),
        ({"odd": 1}, None, None),
    ],
)
def test_a_row_is_read_in_its_own_format_and_else_as_what_its_file_is(row: Any, file: Any, expected: Any) -> None:
    assert read_as(row, file) == expected
