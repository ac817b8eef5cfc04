"""Encoding by words gives the tokens and the masks of encoding whole texts."""

from __future__ import annotations

from typing import Any

import pytest
from backprop.data.encode import Rendered, encode_row
from backprop.data.loss_mask import Span
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.words import _PATTERNS, WordEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
STEPS: dict[str, Any] = {
    "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    **{
        f"split {i}": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])
        for i, pattern in enumerate(sorted(_PATTERNS))
    },
}
PIECES = [
    *[
        "a",
        "The",
        "quick",
        " ",
        "  ",
        "\n",
        "\t",
        " \n",
        "'s",
        "'",
        "’",
        "12",
        "7",
        ".",
        ",\n",
        "(",
        "é",
        "e\u0301",
        "漢字",
    ],
    *["<|im_start|>", "<|im_end|>", "<|im_", "[INST]", "😀", "\u0301", "\u00a0", "\u2028", "-", "!?", "fox jumps"],
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


def made(byte_tokenizer: Tokenizer, step: str, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer.from_str(byte_tokenizer.to_str())
    tokenizer.pre_tokenizer = STEPS[step]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_words_give_the_tokens_and_the_mask_of_the_whole_text(
    byte_tokenizer: Tokenizer, step: str, normalizer: Any
) -> None:
    tokenizer = made(byte_tokenizer, step, normalizer)
    encoder = WordEncoder.of(tokenizer)
    assert encoder is not None
    chat = ChatTokenizer.__new__(ChatTokenizer)

    @settings(max_examples=300, deadline=None)
    @given(text=texts, places=st.tuples(st.integers(0, 200), st.integers(0, 200)))
    def check(text: str, places: tuple[int, int]) -> None:
        start, end = sorted(place % (len(text) + 1) for place in places)
        rendered = Rendered(text, [Span(0, start, end)] if start < end else [])
        plain = encode_row(rendered, tokenizer.encode(text, add_special_tokens=False), chat)
        fast = encode_row(rendered, encoder.encode(text), chat)
        assert fast.ids.tolist() == plain.ids.tolist()
        assert fast.answers == plain.answers
        assert fast.trained.tolist() == plain.trained.tolist()

    check()


def test_tokenizers_that_may_join_words_are_left_alone(byte_tokenizer: Tokenizer) -> None:
    assert WordEncoder.of(Tokenizer(models.BPE())) is None
    assert WordEncoder.of(Tokenizer(models.Unigram())) is None
    spaced = made(byte_tokenizer, "bytes")
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert WordEncoder.of(spaced) is None
    lowered = made(byte_tokenizer, "bytes", normalizers.Lowercase())
    assert WordEncoder.of(lowered) is None
    unknown = made(byte_tokenizer, "bytes")
    unknown.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated"), BYTES])
    assert WordEncoder.of(unknown) is None
    stripping = made(byte_tokenizer, "bytes")
    stripping.add_tokens([AddedToken("<|strips|>", rstrip=True, normalized=False)])
    assert WordEncoder.of(stripping) is None
    two_words = made(byte_tokenizer, "bytes")
    two_words.add_tokens([AddedToken("two words", normalized=False)])
    assert WordEncoder.of(two_words) is None


def test_words_beyond_what_is_remembered_are_still_encoded(
    byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backprop.data.words._KEPT", 3)
    tokenizer = made(byte_tokenizer, "bytes")
    encoder = WordEncoder.of(tokenizer)
    assert encoder is not None
    text = "one two three four five six seven " * 3 + "x" * 500
    assert encoder.encode(text).ids.tolist() == tokenizer.encode(text).ids
    assert len(encoder.later) <= 3
