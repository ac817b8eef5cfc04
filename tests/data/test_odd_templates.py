"""What is trained where a template does not write answers the same way everywhere: it ends the last one differently,
leaves the end to the next turn, supplies or deletes thinking, or drops what a row says. Each template is the habit of
a real family, in its shortest form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backprop.core.errors import ModelLoadError
from backprop.data import chat_template
from backprop.data.encode import Renderer
from backprop.data.example import PLAIN, RowError
from backprop.data.tokenizer import ChatTokenizer
from one_row import explain_row
from tokenizers import AddedToken, Tokenizer

TURN = "<|{{ m.role }}|>{{ m.content }}<|end|>"
ASK = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
HEADERS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LAST_QUESTION = (
    "{% set ns = namespace(q=-1) %}"
    "{% for m in messages if m.role == 'user' %}{% set ns.q = messages.index(m) %}{% endfor %}"
)
TEMPLATES = {
    # Phi-4-mini: the text ends with another token than the turn.
    "text end": f"{{% for m in messages %}}{TURN}{{% endfor %}}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}",
    # gpt-oss: the last answer ends with another token than those before it.
    "last end": "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{% if loop.last and m.role == 'assistant' and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    # Command R7B: the next answer's header is written whether asked for or not.
    "always asks": "{% for m in messages %}<|start|><|{{ m.role }}|>{% if m.tool_calls %}{{ m.tool_calls | tojson }}"
    "{% else %}{% if m.role == 'assistant' %}<|message|>{% endif %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
    "<|start|><|assistant|>",
    # GLM: a turn ends where the next one begins.
    "no end": "{% for m in messages %}{% if m.role == 'tool' %}<|observation|>{% else %}<|{{ m.role }}|>{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}</tool_call>{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    # Qwen3.5: no thinking is an empty one, which the generation prompt opens; a conversation needs a question.
    "opened thinking": LAST_QUESTION + "{% if ns.q < 0 %}{{ raise_exception('no question') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.index0 > ns.q %}"
    "<think>\n{{ m.reasoning_content | default('') }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    # R1-Distill: thinking is deleted from every answer.
    "deletes thinking": "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
    # DeepSeek-V3.1: the same, where the prompt closes the thinking before it begins.
    "closes thinking": "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}</think>{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|></think>{% endif %}",
    # Nemotron: an empty thinking stands right before the answer.
    "empty thinking": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if '<think>' not in m.content %}<think></think>{% endif %}{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "trims": HEADERS.replace("m.content", "m.content | trim")
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # Phi-4-mini takes tools as text of the system turn alone; gpt-oss writes the first call of a turn.
    "first call": "{% for m in messages %}<|{{ m.role }}|>{{ m.tools }}"
    "{% if m.tool_calls %}{{ m.tool_calls[0] | tojson }}"
    f"{{% else %}}{{{{ m.content }}}}{{% endif %}}<|end|>{{% endfor %}}{ASK}",
    # Gemma 4 writes results of calls into the turn that called, before the words of that turn.
    "result inside": "{% for m in messages %}{% if m.role != 'tool' %}<|{{ m.role }}|>{% if m.tool_calls %}<call>"
    "{% for r in messages if r.role == 'tool' %}{{ r.content }}{% endfor %}{% endif %}{{ m.content }}<|end|>"
    "{% endif %}{% endfor %}" + ASK,
}
TOKENS = [
    "<|end|>",
    "<|return|>",
    "<|start|>",
    "<|message|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|tool|>",
]
ENDS = {"no end": ["<|endoftext|>", "<|user|>", "<|observation|>"], "last end": ["<|return|>"]}
WHO, ME = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}
SEVERAL = [WHO, ME, {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
THOUGHT = "<think>\nhm\n</think>\n\n"


def call(*names: str) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in names]
    return {"role": "assistant", "content": "", "tool_calls": calls}


RESULT = {"role": "tool", "content": "12:00"}
TOOLS = [{"type": "function", "function": {"name": "clock", "description": "tells the time", "parameters": {}}}]


@pytest.fixture
def load(byte_tokenizer: Tokenizer, tmp_path: Path) -> Callable[[str], ChatTokenizer]:
    def model(template: str) -> ChatTokenizer:
        tokenizer = Tokenizer.from_str(byte_tokenizer.to_str())
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in TOKENS])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "chat_template.jinja").write_text(TEMPLATES.get(template, template))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
        ends = ENDS.get(template, ["<|end|>", "<|endoftext|>"])
        ids = [tokenizer.token_to_id(token) for token in ends]
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        return ChatTokenizer.load(tmp_path)

    return model


def shown(tokenizer: ChatTokenizer, messages: list[dict[str, Any]], **extra: Any) -> str:
    """The text of a row with its trained tokens in brackets."""
    text, before = "", False
    for token in explain_row({"messages": messages, **extra}, tokenizer):
        text += ("⟦" if token.trained else "⟧") if token.trained != before else ""
        text, before = text + token.text, token.trained
    return text + "⟧" * before


@pytest.mark.parametrize(
    ("template", "messages", "right"),
    [
        ("text end", [WHO, ME], "<|user|>Who?<|end|><|assistant|>⟦Me.<|end|>⟧<|endoftext|>"),
        (
            "text end",
            SEVERAL,
            "<|user|>Who?<|end|><|assistant|>⟦Me.<|end|>⟧<|user|>Why?<|end|><|assistant|>⟦So.<|end|>⟧<|endoftext|>",
        ),
        (
            "last end",
            SEVERAL,
            "<|start|>user<|message|>Who?<|end|><|start|>assistant⟦<|message|>Me.<|end|>⟧"
            "<|start|>user<|message|>Why?<|end|><|start|>assistant⟦<|message|>So.<|return|>⟧",
        ),
        (
            "always asks",
            SEVERAL,
            "<|start|><|user|>Who?<|end|>\n<|start|><|assistant|>⟦<|message|>Me.<|end|>⟧\n"
            "<|start|><|user|>Why?<|end|>\n<|start|><|assistant|>⟦<|message|>So.<|end|>⟧\n<|start|><|assistant|>",
        ),
        (
            "no end",
            SEVERAL,
            "<|user|>Who?<|assistant|>⟦Me.<|user|>⟧Why?<|assistant|>⟦So.<|user|>⟧",
        ),
        (
            "no end",
            [WHO, call("clock"), RESULT, ME],
            "<|user|>Who?<|assistant|>⟦<tool_call>clock</tool_call><|observation|>⟧12:00<|assistant|>⟦Me.<|user|>⟧",
        ),
        ("no end", [WHO, call("clock")], "<|user|>Who?<|assistant|>⟦<tool_call>clock</tool_call><|observation|>⟧"),
        (
            "opened thinking",
            [WHO, ME],
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦Me.<|im_end|>⟧\n",
        ),
        (
            "opened thinking",
            [WHO, call("clock")],
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
            "⟦<tool_call>clock</tool_call><|im_end|>⟧\n",
        ),
        (
            "opened thinking",
            [WHO, {**ME, "reasoning_content": "hm"}],
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n⟦hm\n</think>\n\nMe.<|im_end|>⟧\n",
        ),
        (
            "opened thinking",
            [ME, *SEVERAL[2:]],
            "<|im_start|>assistant\n⟦Me.<|im_end|>⟧\n<|im_start|>user\nWhy?<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n⟦So.<|im_end|>⟧\n",
        ),
        (
            "deletes thinking",
            [WHO, {**ME, "content": THOUGHT + "Me."}],
            "<|user|>Who?<|end|><|assistant|><think>\n⟦hm\n</think>\n\nMe.<|end|>⟧",
        ),
        (
            "deletes thinking",
            [WHO, {**ME, "content": "<think>hm</think>Me."}],
            "<|user|>Who?<|end|><|assistant|><think>⟦hm</think>Me.<|end|>⟧",
        ),
        (
            "deletes thinking",
            [WHO, {**ME, "content": "<think>\n\n</think>\nMe."}],
            "<|user|>Who?<|end|><|assistant|>⟦\nMe.<|end|>⟧",
        ),
        (
            "closes thinking",
            [WHO, {**ME, "content": THOUGHT + "Me."}, *SEVERAL[2:3], {**ME, "content": THOUGHT + "So."}],
            "<|user|>Who?<|end|><|assistant|></think>⟦\n\nMe.<|end|>⟧"
            "<|user|>Why?<|end|><|assistant|><think>⟦\nhm\n</think>\n\nSo.<|end|>⟧",
        ),
        (
            "empty thinking",
            [WHO, {**ME, "content": "<think>\n</think>\nMe."}],
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n</think>\n⟦Me.<|im_end|>⟧\n",
        ),
        (
            "empty thinking",
            [WHO, {**ME, "content": "    x = 1"}],
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think></think>⟦    x = 1<|im_end|>⟧\n",
        ),
        # What asks for no thinking closes it at once; this answer has some, and writes the opening itself.
        (
            f"{{% for m in messages %}}{TURN}{{% endfor %}}"
            "{% if add_generation_prompt %}<|assistant|><think>\n\n</think>\n\n{% endif %}",
            [WHO, {**ME, "content": THOUGHT + "Me."}],
            f"<|user|>Who?<|end|><|assistant|>⟦{THOUGHT}Me.<|end|>⟧",
        ),
        # What asks for an answer leaves out those before it.
        (
            f"{{% for m in messages if m.role == 'user' or not add_generation_prompt %}}{TURN}{{% endfor %}}{ASK}",
            [WHO, ME, SEVERAL[3]],
            "<|user|>Who?<|end|><|assistant|>⟦Me.<|end|>⟧<|assistant|>⟦So.<|end|>⟧",
        ),
    ],
)
def test_the_answer_and_its_own_end_are_trained(
    load: Callable[[str], ChatTokenizer], template: str, messages: list[dict[str, Any]], right: str
) -> None:
    assert shown(load(template), messages) == right


def test_a_call_is_trained_where_the_template_always_asks(load: Callable[[str], ChatTokenizer]) -> None:
    text = shown(load("always asks"), [WHO, call("clock"), RESULT, ME])
    assert text.count("⟦") == 2
    assert text.endswith("<|tool|>12:00<|end|>\n<|start|><|assistant|>⟦<|message|>Me.<|end|>⟧\n<|start|><|assistant|>")
    assert '<|start|><|assistant|>⟦[{"type": "function"' in text


def warnings(tokenizer: ChatTokenizer, row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each.code, each.field) for each in Renderer(tokenizer).render(row, "openai", PLAIN).warnings]


@pytest.mark.parametrize(
    ("template", "row", "right"),
    [
        ("trims", {"messages": [WHO, {**ME, "content": "    x = 1"}]}, [("text_changed", "turns[1]")]),
        ("trims", {"messages": [WHO, {**ME, "content": "Me. \n"}]}, []),
        ("first call", {"messages": [WHO, call("clock", "clock"), RESULT, ME]}, [("tool_calls_dropped", "turns[1]")]),
        ("first call", {"messages": [WHO, call("clock", "sun"), RESULT, ME]}, [("tool_calls_dropped", "turns[1]")]),
        ("first call", {"messages": [WHO, call("clock"), RESULT, ME]}, []),
        ("first call", {"messages": [WHO, ME], "tools": TOOLS}, [("tools_dropped", "tools")]),
        # The words of a turn that is left out stand in the next answer.
        (
            HEADERS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"),
            {"messages": [WHO, call("clock"), RESULT, {**ME, "content": "It is 12:00."}]},
            [("text_dropped", "turns[2]")],
        ),
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}" + ASK,
            {"messages": [WHO, {**ME, "content": THOUGHT + "Me."}, *SEVERAL[2:]]},
            [("reasoning_dropped", "turns[1]")],
        ),
        (
            f"{{% for m in messages if m.role != 'system' %}}{TURN}{{% endfor %}}{ASK}",
            {"messages": [WHO, ME, {"role": "system", "content": "Be brief."}, *SEVERAL[2:]]},
            [("role_order", "messages[2]"), ("system_dropped", "turns[2]")],
        ),
        (
            "opened thinking",
            {"messages": [WHO, {**ME, "reasoning_content": "hm"}, *SEVERAL[2:]]},
            [("reasoning_dropped", "turns[1]")],
        ),
    ],
)
def test_what_is_left_out_is_told_though_its_words_stand_elsewhere(
    load: Callable[[str], ChatTokenizer], template: str, row: dict[str, Any], right: list[tuple[str, str]]
) -> None:
    assert warnings(load(template), row) == right


def test_an_answer_of_which_the_template_leaves_nothing_is_none(load: Callable[[str], ChatTokenizer]) -> None:
    headings = "{% for m in messages %}# {{ m.role }}\n{{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    tokenizer = load(headings + "{% if add_generation_prompt %}# assistant\n{% endif %}")
    row = {"messages": [WHO, {**ME, "content": "<think>hm</think>"}, *SEVERAL[2:]]}
    rendered = Renderer(tokenizer).render(row, "openai", PLAIN)
    assert [rendered.text[span.start : span.end] for span in rendered.spans] == ["So."]


@pytest.mark.parametrize(
    ("template", "messages", "turn"),
    [
        # An answer is there only as long as it is the last one.
        (
            "{% for m in messages %}{% if m.role == 'user' or loop.last %}\n{{ m.role }}: {{ m.content }}{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}\nassistant: {% endif %}",
            SEVERAL,
            2,
        ),
        # Of answers behind each other only the last one is, and here it reads the same.
        (
            "{% for m in messages %}{% if loop.last or m.role != loop.nextitem.role %}"
            f"{TURN}{{% endif %}}{{% endfor %}}{ASK}",
            [WHO, ME, ME],
            3,
        ),
        # An answer that another one follows ends in a way of its own.
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if not loop.last and m.role == 'assistant' and "
            "loop.nextitem.role == m.role %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}" + ASK,
            [WHO, ME, SEVERAL[3]],
            2,
        ),
    ],
)
def test_an_answer_whose_place_or_end_cannot_be_told_is_named_and_never_guessed(
    load: Callable[[str], ChatTokenizer], template: str, messages: list[dict[str, Any]], turn: int
) -> None:
    with pytest.raises(RowError, match=f"changes turn {turn} ") as caught:
        shown(load(template), messages)
    assert caught.value.code == "mask_unclear"


def test_a_result_of_a_call_is_never_trained(load: Callable[[str], ChatTokenizer]) -> None:
    with pytest.raises(RowError, match="turn 2"):
        shown(load("result inside"), [WHO, {**call("clock"), "content": "Let me see."}, RESULT, ME])


@pytest.mark.parametrize(
    "loop",
    ["{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ self.title() }}"],
)
def test_a_template_that_never_ends_is_given_up(
    load: Callable[[str], ChatTokenizer], monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.05)
    endless = "{% block title %}{% for a in 'ab' * 40 %}{% for b in 'ab' * 40 %}{% for c in 'ab' * 4000 %}{% endfor %}"
    block = endless + "{% endfor %}{% endfor %}{% endblock %}" if "self" in loop else ""
    with pytest.raises(ModelLoadError, match="does not come to an end"):
        load(HEADERS + block + loop)


@pytest.mark.parametrize("bomb", ["'a' * 4000000000", "[0] * 4000000000", "9 ** 999999999", "(9 ** 9999) ** 9999"])
def test_a_template_that_repeats_without_measure_is_refused(load: Callable[[str], ChatTokenizer], bomb: str) -> None:
    tokenizer = load(HEADERS + "{{ " + bomb + " }}")
    with pytest.raises(RowError, match="makes more than") as error:
        shown(tokenizer, [WHO, ME])
    assert error.value.code == "template_refused"


def test_sums_of_a_template_are_what_they_are(load: Callable[[str], ChatTokenizer]) -> None:
    sums = "{{ 7 * 9000000 }} {{ 2 ** 40 }} {{ 1.5 * 2 }} {{ 'ab' * 2 }}"
    assert shown(load(sums + HEADERS), [WHO, ME]).startswith("63000000 1099511627776 3.0 abab<|im_start|>")
