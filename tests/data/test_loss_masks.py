"""What is trained under the chat templates of real families: answers, with the terminator that really ends them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.data.encode import Token
from backprop.data.example import RowError
from backprop.data.tokenizer import ChatTokenizer
from one_row import explain_row

FAMILIES = ["llama3", "qwen2.5", "qwen3", "mistral", "phi-4", "gemma", "smollm2", "chatml"]
TERMINATORS = {
    "llama3": "<|eot_id|>",
    "qwen2.5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "mistral": "</s>",
    "phi-4": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "smollm2": "<|im_end|>",
    "chatml": "<|im_end|>",
    "r1": "<|end_of_sentence|>",
}
ONE = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
SEVERAL = [*ONE, {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It is so."}]
SYSTEM = {"role": "system", "content": "Speak plainly."}
TOOL = {"type": "function", "function": {"name": "clock", "description": "time", "parameters": {"type": "object"}}}
CALLS = [
    {"role": "user", "content": "Time?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}],
    },
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "Noon."},
]

ModelDir = Callable[[str], Path]


def explain(model_dir: ModelDir, family: str, messages: list[dict[str, Any]], **extra: Any) -> list[Token]:
    return explain_row({"messages": messages, **extra}, ChatTokenizer.load(model_dir(family)))


def answers(tokens: list[Token]) -> list[str]:
    """The text of each run of trained tokens."""
    runs: list[str] = []
    before = False
    for token in tokens:
        if token.trained and not before:
            runs.append("")
        if token.trained:
            runs[-1] += token.text
        before = token.trained
    return runs


def text(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_answer_is_trained_with_its_terminator(model_dir: ModelDir, family: str) -> None:
    (answer,) = answers(explain(model_dir, family, ONE))
    assert answer.lstrip() == "Me." + TERMINATORS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_of_several_turns_is_trained_with_its_terminator(model_dir: ModelDir, family: str) -> None:
    found = [answer.lstrip() for answer in answers(explain(model_dir, family, SEVERAL))]
    assert found == ["Me." + TERMINATORS[family], "It is so." + TERMINATORS[family]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_system_text_is_seen_and_not_trained(model_dir: ModelDir, family: str) -> None:
    tokens = explain(model_dir, family, [SYSTEM, *SEVERAL])
    assert text(tokens).count("Speak plainly.") == 1
    found = [answer.lstrip() for answer in answers(tokens)]
    assert found == ["Me." + TERMINATORS[family], "It is so." + TERMINATORS[family]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_begin_token_appears_once_and_is_not_trained(model_dir: ModelDir, family: str) -> None:
    tokenizer = ChatTokenizer.load(model_dir(family))
    tokens = explain_row({"messages": ONE}, tokenizer)
    bos = tokenizer.template.tokens.get("bos_token")
    if bos is not None and bos != "<|im_start|>":
        assert [i for i, token in enumerate(tokens) if token.text == bos] == [0]
    assert not tokens[0].trained


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_of_a_question_or_header_is_trained(model_dir: ModelDir, family: str) -> None:
    tokens = explain(model_dir, family, SEVERAL)
    untrained = "".join(token.text for token in tokens if not token.trained)
    assert "Who?" in untrained
    assert "Why?" in untrained
    assert not any(word in "".join(answers(tokens)) for word in ("assistant", "model", "INST", "user"))


@pytest.mark.parametrize("family", ["llama3", "qwen2.5", "qwen3", "mistral"])
def test_a_call_is_trained_and_its_result_is_not(model_dir: ModelDir, family: str) -> None:
    tokens = explain(model_dir, family, CALLS, tools=[TOOL])
    call, last = answers(tokens)
    assert "clock" in call
    assert '{"zone": "UTC"}' in call
    assert call.endswith(TERMINATORS[family])
    assert last.lstrip() == "Noon." + TERMINATORS[family]
    untrained = "".join(token.text for token in tokens if not token.trained)
    assert "12:00" in untrained
    assert "description" in untrained


@pytest.mark.parametrize("family", ["smollm2", "chatml"])
def test_a_call_is_written_as_text_where_the_template_has_no_place_for_it(model_dir: ModelDir, family: str) -> None:
    call, _ = answers(explain(model_dir, family, CALLS))
    assert call.startswith('<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>')
    assert call.endswith(TERMINATORS[family])


THINKING = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\nadd them\n</think>\n\n4"},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "content": "<think>\nadd again\n</think>\n\n6"},
]


@pytest.mark.parametrize("family", ["llama3", "qwen2.5", "mistral", "gemma", "smollm2", "chatml", "phi-4"])
def test_thinking_is_trained_as_plain_text(model_dir: ModelDir, family: str) -> None:
    first, second = answers(explain(model_dir, family, THINKING))
    assert first.lstrip() == "<think>\nadd them\n</think>\n\n4" + TERMINATORS[family]
    assert second.lstrip() == "<think>\nadd again\n</think>\n\n6" + TERMINATORS[family]


def test_thinking_of_an_earlier_turn_that_the_template_drops_leaves_a_right_mask(model_dir: ModelDir) -> None:
    first, second = answers(explain(model_dir, "qwen3", THINKING))
    assert first == "4<|im_end|>"
    assert second == "<think>\nadd again\n</think>\n\n6<|im_end|>"


def test_reasoning_kept_apart_is_trained_where_the_template_shows_it(model_dir: ModelDir) -> None:
    messages = [ONE[0], {"role": "assistant", "content": "Me.", "reasoning_content": "Only I."}]
    assert answers(explain(model_dir, "qwen3", messages)) == ["<think>\nOnly I.\n</think>\n\nMe.<|im_end|>"]
    assert answers(explain(model_dir, "chatml", messages)) == ["<think>\nOnly I.\n</think>\n\nMe.<|im_end|>"]


def test_an_empty_think_that_the_template_adds_is_not_trained(model_dir: ModelDir) -> None:
    tokens = explain(model_dir, "qwen3", ONE)
    assert "<think>\n\n</think>" in text(tokens)
    assert answers(tokens) == ["Me.<|im_end|>"]


def test_a_think_that_the_generation_prompt_opens_is_not_trained(model_dir: ModelDir) -> None:
    messages = [ONE[0], {"role": "assistant", "content": "<think>\nmust be me</think>Me."}]
    tokens = explain(model_dir, "r1", messages)
    assert answers(tokens) == ["must be me</think>Me.<|end_of_sentence|>"]
    assert text(tokens).endswith("<|Assistant|><think>\nmust be me</think>Me.<|end_of_sentence|>")


def test_an_answer_without_the_think_of_the_generation_prompt_starts_after_the_header(model_dir: ModelDir) -> None:
    assert answers(explain(model_dir, "r1", SEVERAL)) == [
        "Me.<|end_of_sentence|>",
        "It is so.<|end_of_sentence|>",
    ]


def test_a_template_that_changes_an_earlier_turn_beyond_recognition_is_named_with_the_turn(
    model_dir: ModelDir, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_dir("chatml").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role == 'user' else m.content | upper | reverse | replace('.', '..') }}"
        "<|im_end|>{% endfor %}"
    )
    tokenizer = ChatTokenizer.load(folder)
    assert answers(explain_row({"messages": ONE}, tokenizer)) == ["Me.<|im_end|>"]
    with pytest.raises(RowError) as error:
        explain_row({"messages": SEVERAL}, tokenizer)
    assert error.value.code == "mask_unclear"
    assert "turn 2 (assistant)" in error.value.message


def test_a_conversation_that_the_template_refuses_is_a_row_error_with_its_words(model_dir: ModelDir) -> None:
    with pytest.raises(RowError) as error:
        explain(model_dir, "gemma", [ONE[0], ONE[0], ONE[1]])
    assert error.value.code == "template_refused"
    assert "Roles must alternate" in error.value.message


def test_turns_marked_by_the_row_are_left_out(model_dir: ModelDir) -> None:
    messages = [ONE[0], {**ONE[1], "loss_weight": 0}, *SEVERAL[2:]]
    assert answers(explain(model_dir, "chatml", messages)) == ["It is so.<|im_end|>"]
    messages = [ONE[0], {**ONE[1], "train": False}, SEVERAL[2], {**SEVERAL[3], "train": True}]
    assert answers(explain(model_dir, "chatml", messages)) == ["It is so.<|im_end|>"]


def test_everything_is_trained_but_the_first_token_when_asked(model_dir: ModelDir) -> None:
    tokenizer = ChatTokenizer.load(model_dir("chatml"))
    tokens = explain_row({"messages": ONE}, tokenizer, train_on_responses=False)
    assert [token.trained for token in tokens] == [False] + [True] * (len(tokens) - 1)


def test_characters_of_several_tokens_stay_whole(model_dir: ModelDir) -> None:
    messages = [{"role": "user", "content": "🦊?"}, {"role": "assistant", "content": "é🦊漢"}]
    tokens = explain(model_dir, "llama3", messages)
    assert answers(tokens) == ["é🦊漢<|eot_id|>"]
    assert sum(token.trained for token in tokens) > 5
