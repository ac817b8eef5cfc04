"""The tokenizer inside a GGUF: tokens, their types, how text is split, and which tokenizers are refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from backprop.core.errors import GGUFError
from backprop.export.gguf.file import write_gguf
from backprop.export.gguf.vocab import Vocabulary, read_vocabulary
from backprop.export.verify import verify
from backprop.export.weights import StoredWeights
from gguf import GGUFReader, GGUFWriter, TokenType
from tiny_families import write_family
from tiny_language_model import VOCABULARY
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

# As published with Llama 3.1, Qwen 3, Qwen 3.5, Mistral Nemo and Phi-4-mini.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
QWEN_35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ],
    }


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}


def changed(original: Path, folder: Path, settings: dict[str, Any] | None = None, **definition: Any) -> Path:
    """The tokenizer in ``original`` with another definition, and ``settings`` in its ``tokenizer_config.json``."""
    shutil.copytree(original, folder)
    content = json.loads((original / "tokenizer.json").read_text())
    inner = definition.pop("model", {})
    content |= definition
    content["model"] |= inner
    (folder / "tokenizer.json").write_text(json.dumps(content))
    named = json.loads((original / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **(settings or {})}))
    return folder


def size_of(model: Path) -> int:
    return Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab_size()


@pytest.mark.parametrize(
    ("pre_tokenizer", "whole_words", "name"),
    [
        (split(LLAMA_3), True, "llama-bpe"),
        (split(LLAMA_3), False, "smaug-bpe"),
        (split(QWEN), False, "qwen2"),
        (split(QWEN_35), False, "qwen35"),
        (split(TEKKEN), True, "tekken"),
        (split(GPT_4O), False, "gpt-4o"),
        (DIGITS, False, "smollm"),
        (BYTE_LEVEL, False, "gpt-2"),
    ],
)
def test_the_way_text_is_split_is_found_by_its_definition(
    tiny_model: Path, tmp_path: Path, pre_tokenizer: dict[str, Any], whole_words: bool, name: str
) -> None:
    folder = changed(tiny_model, tmp_path / "m", pre_tokenizer=pre_tokenizer, model={"ignore_merges": whole_words})

    assert read_vocabulary(folder, VOCABULARY).pre == name


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({"pre_tokenizer": split(QWEN.replace(r"\p{N}|", r"\p{N}{1,2}|"))}, r"it splits text by .*\{1,2\}"),
        ({"pre_tokenizer": split(QWEN), "model": {"ignore_merges": True}}, "it splits text by"),
        ({"pre_tokenizer": {**BYTE_LEVEL, "use_regex": False}}, "it splits text by"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "it splits text by .*Whitespace"),
        ({"pre_tokenizer": None}, "it splits text by null"),
        ({"normalizer": {"type": "Lowercase"}}, "it changes text by .*Lowercase"),
    ],
)
def test_a_way_that_llama_cpp_does_not_know_is_refused_by_name(
    tiny_model: Path, tmp_path: Path, definition: dict[str, Any], said: str
) -> None:
    folder = changed(tiny_model, tmp_path / "m", **definition)

    with pytest.raises(GGUFError, match=said) as caught:
        read_vocabulary(folder, VOCABULARY)

    assert str(folder / "tokenizer.json") in caught.value.message
    assert "merged" in caught.value.hint


def test_a_unigram_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
    shutil.copytree(tiny_model, tmp_path / "m")
    content = json.loads((tiny_model / "tokenizer.json").read_text())
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps({**content, "model": unigram, "added_tokens": []}))

    with pytest.raises(GGUFError, match="its model is Unigram, not BPE"):
        read_vocabulary(tmp_path / "m", VOCABULARY)


def test_tokens_types_and_merges_are_the_tokenizers(tiny_model: Path) -> None:
    found = read_vocabulary(tiny_model, VOCABULARY)

    content = json.loads((tiny_model / "tokenizer.json").read_text())["model"]
    assert found.model == "gpt2"
    assert found.tokens[: len(content["vocab"])] == sorted(content["vocab"], key=content["vocab"].get)
    assert found.types[:4] == [TokenType.CONTROL] * 3 + [TokenType.NORMAL]
    assert found.merges == [" ".join(pair) for pair in content["merges"]]
    assert found.scores is None
    assert found.special == {"eos": 2, "pad": 0}
    assert found.adds == {"bos": False, "eos": False, "space": False}


def test_rows_without_a_token_are_unused_and_rows_too_few_are_refused(tiny_model: Path) -> None:
    count = size_of(tiny_model)
    found = read_vocabulary(tiny_model, count + 5)

    assert found.tokens[count:] == [f"[PAD{count + number}]" for number in range(5)]
    assert set(found.types[count:]) == {TokenType.UNUSED}
    assert TokenType.UNUSED not in found.types[:count]
    with pytest.raises(GGUFError, match=f"tokens up to {count - 1}, the model only {count - 1} rows"):
        read_vocabulary(tiny_model, count - 1)


def test_a_special_token_that_the_model_has_no_row_for_is_left_out_where_nothing_uses_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    count = size_of(tiny_model)
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<image_soft_token>", special=True)])  # as in Gemma 3's, of 262,144 rows
    folder = changed(tiny_model, tmp_path / "m", **json.loads(tokenizer.to_str()))

    found = read_vocabulary(folder, count)

    assert found.left_out == ("<image_soft_token>",)
    assert found.tokens == read_vocabulary(tiny_model, count).tokens
    tokenizer.add_tokens(["a word"])
    with pytest.raises(GGUFError, match="tokens up to"):
        read_vocabulary(changed(tiny_model, tmp_path / "n", **json.loads(tokenizer.to_str())), count)


def test_added_tokens_are_steering_or_text(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.add_tokens(["<|tool|>", "<think>", AddedToken("<mark>", special=True)])
    folder = changed(tiny_model, tmp_path / "m", **json.loads(tokenizer.to_str()))

    found = read_vocabulary(folder, VOCABULARY + 3)

    types = dict(zip(found.tokens, found.types, strict=True))
    assert types["<|tool|>"] == TokenType.CONTROL  # it looks so, though its model does not say it
    assert types["<think>"] == TokenType.USER_DEFINED
    assert types["<mark>"] == TokenType.CONTROL


def test_tokens_that_only_the_configuration_declares_have_the_ids_of_training(tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path / "m", {"pad_token": "<|padding|>", "extra_special_tokens": ["<more>"]})

    count = size_of(tiny_model)
    found = read_vocabulary(folder, count + 2)

    assert found.tokens[count:] == ["<|padding|>", "<more>"]
    assert found.special["pad"] == count


def test_a_begin_token_that_the_tokenizer_adds_is_added_by_llama_cpp(tiny_model: Path, tmp_path: Path) -> None:
    begin = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.post_processor = begin
    folder = changed(tiny_model, tmp_path / "m", {"bos_token": "<|im_start|>"}, **json.loads(tokenizer.to_str()))

    found = read_vocabulary(folder, VOCABULARY)

    assert found.special["bos"] == 1
    assert found.adds == {"bos": True, "eos": True, "space": False}


def test_the_end_that_the_template_writes_ends_answers(tiny_model: Path, tmp_path: Path) -> None:
    """The tokenizer's own end token is another one: llama.cpp would not stop."""
    folder = changed(tiny_model, tmp_path / "m", {"eos_token": "<pad>", "pad_token": None})

    assert read_vocabulary(folder, VOCABULARY).special == {"eos": 0, "eot": 2, "pad": 0}


def pieces(folder: Path, model: Path, *, first_only: bool = False, legacy: bool = False) -> Path:
    """A tokenizer as Llama 2's: pieces of SentencePiece with bytes for what is unknown."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        scheme = "first" if first_only else "always"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["a bread and a garden and a river", "a garden in winter"] * 3, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 3]
    folder = changed(model, folder, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def tokenise(found: Vocabulary, text: str) -> list[str]:
    """llama.cpp's way with pieces, written down again: the best scored pair is joined, the first of equals."""
    assert found.scores is not None
    score = dict(zip(found.tokens, found.scores, strict=True))
    parts = list((" " if found.adds["space"] else "") + text)
    parts = ["▁" if part == " " else part for part in parts]
    while True:
        pairs = [(score[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in score]
        if not pairs:
            return parts
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_pieces_have_the_scores_by_which_llama_cpp_joins_them_in_the_same_order(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = pieces(tmp_path / "m", tiny_model)

    found = read_vocabulary(folder, 300)

    assert (found.model, found.pre, found.merges) == ("llama", "default", None)
    assert found.types[:4] == [TokenType.CONTROL] * 3 + [TokenType.BYTE]
    assert found.tokens[3 + 0x0A] == "<0x0A>"
    assert found.special == {"bos": 1, "eos": 2, "unk": 0, "pad": 0}
    writer = GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    found.write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert GGUFReader(tmp_path / "vocabulary.gguf").fields["tokenizer.ggml.scores"].contents() == found.scores
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("a garden and bread", "winter in a river", "and  and", "band a ri dengar", "nnaaan"):
        assert tokenise(found, text) == tokenizer.encode(text).tokens


@pytest.mark.parametrize(
    ("kind", "with_template", "space"),
    [
        ({}, True, True),
        ({"legacy": True}, True, True),
        ({"first_only": True}, True, False),
        ({"first_only": True}, False, True),
    ],
)
def test_a_space_before_a_text_is_set_where_training_had_one(
    tiny_model: Path, tmp_path: Path, kind: dict[str, bool], with_template: bool, space: bool
) -> None:
    folder = pieces(tmp_path / "m", tiny_model, **kind)

    assert read_vocabulary(folder, 300, with_template=with_template).adds["space"] is space


def test_a_tokenizer_that_puts_a_space_before_the_first_text_alone_passes_the_proof(
    tiny_model: Path, tmp_path: Path
) -> None:
    tokenizer = pieces(tmp_path / "tokenizer", tiny_model, first_only=True)
    model = write_family("mistral", tmp_path / "model", tokenizer, 300)
    template = "{{ bos_token }}{% for m in messages %} {{ m.content }}{{ eos_token }}{% endfor %}"
    weights = StoredWeights([model / "model.safetensors"])
    write_gguf(model, weights, tmp_path / "m.gguf", "f32", template=template, provenance={})

    check = verify(tmp_path / "m.gguf", model, weights, template)

    assert [each for each in check.compared if not each.passed] == []


def test_spaces_in_added_tokens_are_spaces(tiny_model: Path, tmp_path: Path) -> None:
    folder = pieces(tmp_path / "m", tiny_model)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 300, "content": "▁▁", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(content))

    found = read_vocabulary(folder, 301)

    assert (found.tokens[300], found.types[300]) == ("  ", TokenType.USER_DEFINED)


def test_pieces_of_text_that_was_changed_before_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = pieces(tmp_path / "m", tiny_model)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "normalizer": {"type": "NFKC"}}))

    with pytest.raises(GGUFError, match=r"it changes text by .*NFKC"):
        read_vocabulary(folder, 300)


def test_control_tokens_that_swallow_whitespace_make_the_model_known_as_phi_3(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|assistant|>", rstrip=True)])
    folder = changed(tiny_model, tmp_path / "m", **json.loads(tokenizer.to_str()))

    assert read_vocabulary(folder, VOCABULARY + 1).strips == ["<|assistant|>"]
