"""Our tokenizer and template give what transformers gives: same text, same ids."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from backprop.data.example import RowError
from backprop.data.tokenizer import ChatTokenizer

FAMILIES = ["llama3", "qwen2.5", "qwen3", "mistral", "phi-4", "gemma", "smollm2", "chatml", "r1"]
EMBEDDED = Path(os.environ["TESTS_PERSONS_CACHE"]) / "backprop" / "models" / "smollm2-135m"
TOOL = {"type": "function", "function": {"name": "clock", "description": "time <now> & é", "parameters": {}}}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}],
    [
        {"role": "user", "content": "  Two  lines\n\nand 日本 🦊 "},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes "},
        {"role": "user", "content": "tab\there 12345"},
        {"role": "assistant", "content": "<|im_end|> inside"},
    ],
]
WITH_CALL = [
    {"role": "user", "content": "Time?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {"zone": "é<UTC>"}}}],
    },
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "Noon."},
]


def compare(folder: Path, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> None:
    ours = ChatTokenizer.load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt, chat in ((False, messages), (True, messages[:1])):
        text = theirs.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=prompt)
        assert ours.template.render(chat, tools, prompt=prompt) == text
        ids = theirs.apply_chat_template(chat, tools=tools, add_generation_prompt=prompt, return_dict=False)
        assert ours.encode([text])[0].ids == list(ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chat", range(len(CHATS)))
def test_text_and_ids_are_those_of_transformers(model_dir: Callable[[str], Path], family: str, chat: int) -> None:
    compare(model_dir(family), CHATS[chat], None)


@pytest.mark.parametrize("family", ["llama3", "qwen2.5", "qwen3", "mistral"])
def test_tools_and_calls_are_written_as_by_transformers(model_dir: Callable[[str], Path], family: str) -> None:
    compare(model_dir(family), WITH_CALL, [TOOL])


def test_a_template_that_marks_generation_is_written_as_by_transformers(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "marked"
    shutil.copytree(model_dir("chatml"), folder)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}\n  {% if message.role == 'assistant' %}\n<|im_start|>assistant\n"
        "{% generation %}\n{{ message.content }}<|im_end|>{% endgeneration %}\n\n"
        "  {% else %}\n<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n  {% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    compare(folder, CHATS[1], None)


@pytest.mark.skipif(not (EMBEDDED / "tokenizer.json").is_file(), reason=f"the embedded model is not at {EMBEDDED}")
@pytest.mark.parametrize("chat", range(len(CHATS)))
def test_the_embedded_model_is_tokenised_as_by_transformers(chat: int) -> None:
    compare(EMBEDDED, CHATS[chat], None)


@pytest.mark.parametrize(
    ("files", "config"),
    [
        (
            {},
            {"added_tokens_decoder": {"905": {"content": "<extra>"}, "903": {"content": "<second>", "special": True}}},
        ),
        ({"special_tokens_map.json": {"additional_special_tokens": ["<extra>", "<second>"]}}, {}),
        ({"special_tokens_map.json": {"eos_token": "<extra>"}}, {"eos_token": "<second>"}),
        ({"special_tokens_map.json": {"eos_token": {"content": "<extra>", "lstrip": True}}}, {}),
        ({"special_tokens_map.json": {"eos_token": "<extra>"}}, {"added_tokens_decoder": {}}),
        ({}, {"extra_special_tokens": {"image_token": "<extra>", "sound_token": "<second>"}}),
        ({}, {"extra_special_tokens": ["<extra>"], "eos_token": "<second>"}),
        ({}, {"additional_special_tokens": ["<extra>", "<second>"]}),
        ({"added_tokens.json": {"<second>": 901, "<extra>": 900}}, {}),
        ({"added_tokens.json": {"<second>": 901}}, {"pad_token": "<extra>", "bos_token": "<second>"}),
        ({}, {"image_token": "<extra>", "unk_token": "<second>"}),
        ({}, {"eos_token": "quick"}),
    ],
)
def test_tokens_declared_in_any_file_have_the_ids_that_transformers_gives_them(
    model_dir: Callable[[str], Path], tmp_path: Path, files: dict[str, Any], config: dict[str, Any]
) -> None:
    folder = tmp_path / "declares"
    shutil.copytree(model_dir("chatml"), folder)
    old = json.loads((folder / "tokenizer_config.json").read_text())
    for name, content in {**files, "tokenizer_config.json": {**old, **config}}.items():
        (folder / name).write_text(json.dumps(content))
    ours = ChatTokenizer.load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("fox <extra> and <second> <|im_end|>", "<second><extra>", "quick", "a"):
        assert ours.encode([text])[0].ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode([text], special=True)[0].ids == theirs(text)["input_ids"]
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_a_template_kept_where_models_that_see_keep_it_is_read_and_named(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "sees"
    shutil.copytree(model_dir("phi-4"), folder)
    source = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": source}))
    tokenizer = ChatTokenizer.load(folder)
    assert tokenizer.template.source == source
    assert tokenizer.notes == ["the chat template is read from chat_template.json"]


@pytest.mark.parametrize(
    "expression",
    [
        *["messages.append(1)", "[].append(1)", "messages[0].update(a=1)", "namespace(_a=1)", "dict.mro()"],
        *["namespace(a=1).a", "dict(a=1) | tojson", "messages.__class__", "'a'.join(['b', 'c'])", "range(3) | list"],
        *["messages | map(attribute='role') | join", "'%s' % messages[0].content", "messages[0].get('x', 'y')"],
        *[
            "raise_exception('no')",
            "missing",
            "missing.more",
            "1 / 0",
            "range(10 ** 7)",
            "'a' * 3",
            "cycler(1, 2).next()",
        ],
    ],
)
def test_an_expression_does_in_a_template_what_it_does_under_transformers(
    model_dir: Callable[[str], Path], tmp_path: Path, expression: str
) -> None:
    folder = tmp_path / "expression"
    shutil.copytree(model_dir("chatml"), folder)
    (folder / "chat_template.jinja").write_text("<{{ " + expression + " }}>")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    try:
        right = theirs.apply_chat_template(CHATS[0], tokenize=False)
    except Exception:  # a template of theirs can raise anything
        with pytest.raises(RowError, match="refuses"):
            ChatTokenizer.load(folder).template.render(CHATS[0])
    else:
        assert ChatTokenizer.load(folder).template.render(CHATS[0]) == right
