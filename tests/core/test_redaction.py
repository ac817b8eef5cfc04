from __future__ import annotations

import json

import pytest
from backprop.core.redaction import MASK, redact


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.DEF-123", "abc.DEF-123"),
        ("key sk-proj-abcdefgh12345678", "sk-proj-abcdefgh12345678"),
        ("hf_AbCdEfGhIjKlMnOp is mine", "hf_AbCdEfGhIjKlMnOp"),
        ("id AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("https://user:pw@host/x", "user:pw"),
        ("password=hunter2", "hunter2"),
        ("token=abcdefgh", "abcdefgh"),
        ("api_key: 'x1'", "x1"),
        ('{"password": "p"}', '"p"'),
        ('password="correct horse battery"', "battery"),
        ("{'api_key': 'two words'}", "words"),
        (json.dumps({"body": json.dumps({"password": "hunter2 it is"})}), "hunter2"),
        (json.dumps({"body": json.dumps({"password": "hunter2 it is"})}), "it is"),
        ('password="not closed', "not"),
        ("WANDB_API_KEY=0123abc", "0123abc"),
        ("HF_TOKEN=zz", "zz"),
        ("Authorization: Basic dXNlcjpwdw", "dXNlcjpwdw"),
        ("sent with basic dXNlcjpwdzE= to it", "dXNlcjpwdzE="),
        ("log in:\n  password: hunter\nand go on", "hunter"),
        ("refused, token: aBcDeFgHiJ is old", "aBcDeFgHiJ"),
        ("the secret: s3cret was wrong", "s3cret"),
    ],
)
def test_secrets_are_masked_whatever_their_length(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert MASK in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        *["max_tokens=5", "tokens: 512", "a token of thanks", "the password is needed", "http://host/path", "skip-bad"],
        "answers end with no special token: the model may not learn to stop",
        "another special token: 3 rows\nThe secret: patience.",
        "the end token: <|im_end|>, eos_token=</s>",
        *[pytest.param(part * 100_000, id=f"many {part}") for part in ("a_", "a.")],
        "Basic training, basic end-to-end checks and the bearer of news",
    ],
)
def test_prose_and_counts_are_untouched(text: str) -> None:
    assert redact(text) == text


def test_a_json_line_stays_json() -> None:
    inside = json.dumps({"token": "a b", "n": "kept"})
    line = json.dumps({"message": "token=", "api_key": "abc def", "list": ["token=zz"], "body": inside})
    read = json.loads(redact(line))
    assert (read["message"], read["api_key"], read["list"]) == ("token=", MASK, [f"token={MASK}"])
    assert json.loads(read["body"]) == {"token": MASK, "n": "kept"}


def test_masking_twice_changes_nothing() -> None:
    once = redact("password=hunter2 Bearer abc")
    assert redact(once) == once
