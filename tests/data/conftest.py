"""Model directories that hold a tokenizer and a chat template, and no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATES = Path(__file__).parents[1] / "fixtures" / "templates"
WORDS = ["The quick brown fox jumps over the lazy dog.", "What is the capital of France? Paris is the capital."]
TOKENS = [
    *["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|begin_of_text|>", "<|end_of_text|>"],
    *["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]"],
    *["[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
    *["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|User|>", "<|Assistant|>", "<|end_of_sentence|>"],
]
ENDS = {
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "qwen2.5": (None, "<|im_end|>"),
    "qwen3": (None, "<|im_end|>"),
    "mistral": ("<s>", "</s>"),
    "phi-4": (None, "<|endoftext|>"),
    "gemma": ("<bos>", "<eos>"),
    "smollm2": ("<|im_start|>", "<|im_end|>"),
    "chatml": (None, "<|endoftext|>"),
    "r1": ("<s>", "<|end_of_sentence|>"),
}
"""Begin and end token of each family. The end token is not what ends a turn in all of them, as in the real ones."""


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE of a few hundred tokens, with the special tokens of all families."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def model_dir(byte_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a model of a family, with that family's template and end tokens."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            byte_tokenizer.save(str(folder / "tokenizer.json"))
            bos, eos = ENDS[family]
            config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            (folder / "chat_template.jinja").write_text((TEMPLATES / f"{family}.jinja").read_text())
            made[family] = folder
        return made[family]

    return make
