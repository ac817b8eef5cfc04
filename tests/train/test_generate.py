from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from backprop.core.events import DatasetPrepared, RunStarted, Sample, encode
from backprop.core.jobs import ChatRequest, Sampling
from backprop.core.settings import RunConfig
from backprop.data.tokenizer import ChatTokenizer
from backprop.train.generate import load, reply
from backprop.train.jobs.chat import open_speaker
from backprop.train.model import Loaded, load_base
from msgspec import to_builtins
from msgspec.structs import replace
from runs_in_process import of, train
from transformers import LogitsProcessorList


def generate(model: Any, chat: ChatTokenizer, prompt: str, most: int, *on_text: Any, **how: Any) -> str:
    """The greedy answer."""
    return reply(model, chat, prompt, Sampling(max_tokens=most), *on_text, **how).text


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


def changed_model(tiny_model: Path, folder: Path, **files: Any) -> Path:
    """A copy of the tiny model with other settings in some of its JSON files; ``None`` as a value takes one out."""
    shutil.copytree(tiny_model, folder)
    for name, changes in files.items():
        path = folder / f"{name}.json"
        settings = {**(json.loads(path.read_text()) if path.is_file() else {}), **changes}
        path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return folder


def test_greedy_is_greedy_whatever_the_models_files_suggest_for_chatting(tiny_model: Path, tmp_path: Path) -> None:
    suggests = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "num_beams": 3, "suppress_tokens": [5, 9, 40]}
    other = changed_model(tiny_model, tmp_path / "other", generation_config={**suggests, "eos_token_id": 2})

    answers = [
        generate(load_base(path, torch.device("cpu"), torch.float32), ChatTokenizer.load(path), "Who waits?", 24)
        for path in (tiny_model, other)
    ]

    assert answers[0] == answers[1] != ""


BASE_CHATML = {"tokenizer_config": {"eos_token": "<pad>"}, "config": {"eos_token_id": 0}}
"""A base model: its end token is another than the one that ends a turn."""


def test_what_ends_answers_in_training_ends_them_in_samples_and_in_the_result(
    tiny_model: Path, tiny_config: RunConfig, tmp_path: Path
) -> None:
    base = changed_model(tiny_model, tmp_path / "base", **BASE_CHATML)
    chat = ChatTokenizer.load(base)
    end = chat.tokenizer.token_to_id("<|im_end|>")
    assert (chat.end_ids, chat.new_end) == ({0, end}, end)
    assert ChatTokenizer.load(tiny_model).new_end is None, "the model's files say it"

    config = replace(tiny_config, model=str(base), steps=1)
    _, directory = train(config, [])

    written = json.loads((directory.adapter / "generation_config.json").read_text())
    assert written["eos_token_id"] == [0, end]
    assert not (base / "generation_config.json").exists()


def test_the_model_stops_where_it_learned_to_stop(tiny_model: Path, tmp_path: Path) -> None:
    base = changed_model(tiny_model, tmp_path / "base", **BASE_CHATML)
    model, chat = load_base(base, torch.device("cpu"), torch.float32), ChatTokenizer.load(base)
    asked: list[int] = []

    def one_end(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The model says the end of an answer as its third token."""
        asked.append(1)
        wanted = chat.tokenizer.token_to_id("<|im_end|>") if len(asked) == 3 else 70
        return torch.where(torch.arange(scores.shape[1]) == wanted, 0.0, -torch.inf).expand_as(scores)

    original = type(model)._get_logits_processor
    type(model)._get_logits_processor = lambda self, **options: LogitsProcessorList([one_end])
    try:
        generate(model, chat, "Who waits?", 24)
    finally:
        type(model)._get_logits_processor = original

    assert len(asked) == 3


def test_a_template_that_the_model_did_not_bring_is_in_the_result(
    tiny_model: Path, tiny_config: RunConfig, tmp_path: Path
) -> None:
    base = changed_model(tiny_model, tmp_path / "base", tokenizer_config={"chat_template": None})

    _, directory = train(replace(tiny_config, model=str(base), steps=1), [])

    result = ChatTokenizer.load(directory.adapter)
    assert result.template.source == ChatTokenizer.load(base).template.source
    assert result.brings_template


def test_a_model_that_learned_plain_texts_is_asked_to_continue_one(tiny_config: RunConfig, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"harbour lantern {i} window"}) + "\n" for i in range(20)))
    config = replace(tiny_config, data=str(data), steps=2, sample_prompts=["harbour lantern"], sample_tokens=8)

    events, directory = train(config, [])

    answers = [each.text for each in of(events, Sample)]
    model, chat = load(directory.path, to_builtins(config), lambda message: None)
    plain, chatted = (generate(model, chat, "harbour lantern", 8, as_text=as_text) for as_text in (True, False))
    assert answers[-1] == plain != chatted
    started = RunStarted(config=to_builtins(config), output_dir=str(directory.path), pid=1)
    stamped = (replace(each, run_id=directory.run_id, seq=seq) for seq, each in enumerate([started, *events], 1))
    directory.journal.write_bytes(b"".join(map(encode, stamped)))
    said: list[Any] = []
    speaker = open_speaker(ChatRequest(source=str(directory.path)), said.append)
    assert generate(speaker.model, speaker.chat, "harbour lantern", 8, as_text=speaker.on_texts) == plain
    assert any("plain texts" in note for note in of(events, DatasetPrepared)[0].notes)
