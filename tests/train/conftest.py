"""Rows for the tiny language model, a run on them, and the model as a run loads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from backprop.core.events import Event
from backprop.core.settings import RunConfig
from backprop.train import model as models
from tiny_language_model import VOCABULARY

SENTENCES = [
    "A heron stood in the shallow water and waited for the tide to turn.",
    "Bread rises when yeast turns sugar into small bubbles of gas.",
    "The bridge was painted green again after every second winter.",
    "Seven lanterns hung above the door of the harbour office.",
    "To mend a net you need patience, twine and a wooden needle.",
    "Clouds over the ridge mean rain before the evening bell.",
]


def write_chats(path: Path, count: int) -> Path:
    """``count`` short conversations as OpenAI messages, all different."""
    with path.open("w") as file:
        for i in range(count):
            question, answer = SENTENCES[i % len(SENTENCES)], SENTENCES[(i * 5 + 1) % len(SENTENCES)]
            turns = [
                {"role": "user", "content": f"{i}: {question}"},
                {"role": "assistant", "content": f"{answer[: 20 + 7 * (i % 6)]} {i}."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


class RaggedRows:
    """A tokenised dataset in memory: random rows of the given lengths, the second half of each trained."""

    key = "made-for-a-test"

    def __init__(self, lengths: list[int], seed: int = 0, vocabulary: int = VOCABULARY) -> None:
        chooser = np.random.default_rng(seed)
        self._rows = []
        for length in lengths:
            trained = np.zeros(length, dtype=np.bool_)
            trained[length // 2 :] = True
            self._rows.append((chooser.integers(3, vocabulary, length, dtype=np.int32), trained))
        self.lengths = np.array(lengths)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._rows[index]


class Played:
    """Commands that come at known moments: ``at[n]`` are given when they are asked for the n-th time (from 1)."""

    def __init__(self, at: dict[int, list[object]] | None = None, held: list[object] | None = None) -> None:
        self.at = at or {}
        self.held = held or []
        self.asked = 0
        self.stepping = False

    def take(self) -> list[object]:
        self.asked += 1
        return self.at.pop(self.asked, [])

    def wait(self, timeout: float | None = None) -> object:
        assert self.held, "the run would wait forever"
        return self.held.pop(0)


@pytest.fixture
def tiny_config(tiny_model: Path, tmp_path: Path) -> RunConfig:
    """A run of a few steps on forty short conversations."""
    return RunConfig(
        data=str(write_chats(tmp_path / "chats.jsonl", 40)),
        model=str(tiny_model),
        backend="cpu",
        steps=4,
        batch_size=2,
        gradient_accumulation=2,
        learning_rate=1e-2,
        lora_r=4,
        lora_dropout=0.05,
        max_seq_length=256,
        held_out="none",
        output_dir=str(tmp_path / "out"),
    )


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def loaded_tiny(tiny_model: Path, tiny_config: RunConfig) -> models.Loaded:
    """The tiny model with adapters (dropout off, B not zero) in float32."""
    config = models.resolved(tiny_config)
    loaded = models.load(config, tiny_model, lambda event: None)
    generator = torch.Generator().manual_seed(5)
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05, generator=generator)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return loaded


@pytest.fixture(scope="session")
def ragged() -> type[RaggedRows]:
    return RaggedRows


@pytest.fixture(scope="session")
def played() -> type[Played]:
    return Played
