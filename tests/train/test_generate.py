from __future__ import annotations

from pathlib import Path

import pytest
from backprop.data.tokenizer import ChatTokenizer
from backprop.train.generate import generate
from backprop.train.model import Loaded


def test_the_pieces_are_the_answer(loaded_tiny: Loaded) -> None:
    pieces: list[str] = []

    answer = generate(loaded_tiny.model, loaded_tiny.chat, "Who waits?", 24, pieces.append)

    assert len(pieces) > 1
    assert "".join(pieces).strip() == answer


def test_an_answer_is_the_same_every_time(loaded_tiny: Loaded) -> None:
    answers = {generate(loaded_tiny.model, loaded_tiny.chat, "Who waits?", 12) for _ in range(2)}

    assert len(answers) == 1


def test_generation_ends_when_asked(loaded_tiny: Loaded) -> None:
    asked = []
    long = generate(loaded_tiny.model, loaded_tiny.chat, "Who waits?", 40)

    short = generate(
        loaded_tiny.model, loaded_tiny.chat, "Who waits?", 40, stop_when=lambda: asked.append(1) or len(asked) >= 3
    )

    assert len(asked) == 3
    assert long.startswith(short)
    assert len(short) < len(long)


def test_dropout_is_back_after_an_answer_that_broke_off(loaded_tiny: Loaded) -> None:
    loaded_tiny.model.train()

    def fail(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        generate(loaded_tiny.model, loaded_tiny.chat, "Who waits?", 8, fail)

    assert loaded_tiny.model.training


def test_half_a_character_is_never_said(tiny_model: Path) -> None:
    import torch
    from backprop.train.generate import _Pieces

    chat = ChatTokenizer.load(tiny_model)
    said: list[str] = []
    pieces = _Pieces(chat, said.append)
    pieces.put(torch.tensor([[1, 2, 3]]))  # the prompt

    ids = chat.encode(["a – b"])[0].ids
    for i in ids:
        pieces.put(torch.tensor([i]))
    pieces.end()

    assert "".join(said) == "a – b"
    assert all("�" not in piece for piece in said)
