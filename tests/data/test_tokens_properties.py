"""Whatever a row holds: it is used or it has a finding, and nothing else ever happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from backprop.core.errors import DatasetError
from backprop.data.convert import convert
from backprop.data.encode import Renderer, encode_row
from backprop.data.example import PLAIN, Format, RowError
from backprop.data.formats import detect_fields, find_mapping
from backprop.data.loss_mask import answer_spans
from backprop.data.preprocess import prepare
from backprop.data.tokenizer import ChatTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from one_row import explain_row

ModelDir = Callable[[str], Path]
SHARED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(SHARED, max_examples=25)

leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=12)
keys = st.sampled_from(
    [
        *["messages", "conversations", "instruction", "input", "output", "prompt", "completion", "text", "chosen"],
        *["rejected", "label", "tools", "system", "history", "question", "answer", "role", "content", "from", "value"],
        *["tool_calls", "function", "name", "arguments", "type", "weight", "train", "reasoning_content"],
    ]
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt", "bot", ""])
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys | st.text(max_size=3), inner, max_size=5)
        | st.fixed_dictionaries({"role": roles, "content": inner})
        | st.fixed_dictionaries({"from": roles, "value": inner})
    ),
    max_leaves=12,
)
rows = st.dictionaries(keys, values, max_size=5) | values
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
chats = st.lists(words, min_size=2, max_size=6).map(
    lambda texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
)
families = st.sampled_from(["llama3", "qwen2.5", "qwen3", "mistral", "phi-4", "gemma", "smollm2", "chatml", "r1"])


def outcome(work: Callable[[], Any]) -> Any:
    """What it gives, or the words of its row error."""
    try:
        return work()
    except RowError as error:
        return f"{error.code}: {error.message}"


@SHARED
@given(rows)
def test_reading_a_row_raises_row_errors_only(row: Any) -> None:
    known = detect_fields(row)
    find_mapping(row)
    for format in [known] if known else get_args(Format):
        assert outcome(lambda format=format: convert(row, format).supervised()) is not None


@SHARED
@given(row=rows, family=families)
def test_explaining_a_row_raises_row_errors_only(model_dir: ModelDir, row: Any, family: str) -> None:
    tokens = outcome(lambda: explain_row(row, ChatTokenizer.load(model_dir(family))))
    assert isinstance(tokens, str) or any(token.trained for token in tokens[1:])


@SHARED
@given(chat=chats, family=families)
def test_pieces_of_a_row_give_its_text_and_answers_their_words(model_dir: ModelDir, chat: Any, family: str) -> None:
    tokenizer = ChatTokenizer.load(model_dir(family))
    try:
        tokens = explain_row({"messages": chat}, tokenizer)
    except RowError:
        return
    text = tokenizer.template.render(tokenizer.template.messages(convert({"messages": chat}, "openai").turns))
    assert "".join(token.text for token in tokens) == text
    trained = "".join(token.text for token in tokens if token.trained)
    for message in chat:
        if message["role"] == "assistant" and "think>" not in message["content"]:
            assert message["content"].strip() in trained


@SHARED
@given(batch=st.lists(chats, min_size=1, max_size=6), family=families)
def test_comparing_gives_the_spans_that_prefixes_give(model_dir: ModelDir, batch: list[Any], family: str) -> None:
    tokenizer = ChatTokenizer.load(model_dir(family))
    renderer = Renderer(tokenizer)
    for chat in batch:
        turns = convert({"messages": chat}, "openai").turns
        try:
            rendered = renderer.render({"messages": chat}, "openai", PLAIN)
        except RowError:
            continue
        messages = tokenizer.template.messages(turns)
        spans = answer_spans(tokenizer.template, messages, None, rendered.text)
        assert rendered.spans == [span for span in spans if not turns[span.turn].blank()]


@FEW
@given(batch=st.lists(rows, max_size=12), length=st.sampled_from([16, 24, 40, 2048]))
def test_no_row_disappears_from_the_counts(model_dir: ModelDir, tmp_path: Path, batch: list[Any], length: int) -> None:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(row, ensure_ascii=True) for row in batch]
    path.write_text("".join(line + "\n" for line in lines))
    try:
        summary = prepare(path, model_dir("chatml"), max_length=length).summary
    except DatasetError:
        return
    assert summary.rows == len(lines)
    assert summary.kept + summary.answer_lost + summary.dropped == summary.rows
    lost = {problem.line for problem in summary.problems if problem.severity == "error"}
    assert len(lost) == summary.answer_lost + summary.dropped


@FEW
@given(texts=st.lists(words.filter(str.strip), min_size=1, max_size=8))
def test_every_raw_text_ends_with_exactly_one_end_token(model_dir: ModelDir, texts: list[str]) -> None:
    tokenizer = ChatTokenizer.load(model_dir("chatml"))
    renderer = Renderer(tokenizer)
    for text in texts:
        rendered = renderer.render({"text": text}, "text", PLAIN)
        encoded = encode_row(rendered, tokenizer.encode([text], special=True)[0], tokenizer)
        assert encoded.ids[-1] == tokenizer.eos_id
        assert (encoded.ids == tokenizer.eos_id).sum() == 1 + text.count("<|endoftext|>")
