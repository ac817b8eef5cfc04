"""A tokenizer as llama.cpp reads it from a GGUF: byte-level BPE (``gpt2``) or SentencePiece's BPE (``llama``).

All of it comes from the tokenizer that training used, so from ``tokenizer.json``: a ``tokenizer.model`` beside it could
say something else. llama.cpp has no description of how text is split before BPE, only a name for each way that it
knows; that name is found by the definition of the pre-tokenizer, and a way that it does not know is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from msgspec import Struct

from backprop.core.errors import GGUFError
from backprop.core.models import settings_of
from backprop.data.tokenizer import ChatTokenizer

SPACE = "▁"
_ADDED_SCORE = -1000.0
_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PRE_TOKENIZERS: dict[tuple[str, bool], str] = {
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}", True): "llama-bpe",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}", False): "smaug-bpe",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}", False): "qwen2",
    (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ): "qwen35",
    (rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_REST_WITH_SLASH}", True): "tekken",
    (rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}", False): "gpt-4o",
    ("digits, byte level", False): "smollm",
    ("byte level", False): "gpt-2",
}
"""llama.cpp's name by what splits the text and whether whole words are looked up before merging (``ignore_merges``).

The definitions are those at ``llm_tokenizer_bpe`` in ``src/llama-vocab.cpp``, in the spelling of ``tokenizer.json``.
"""


class Vocabulary(Struct):
    """What a GGUF says of the tokenizer; ``tokens``, ``types`` and ``scores`` are by id."""

    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    special: dict[str, int]
    """Ids of the tokens with a meaning: ``bos``, ``eos``, ``eot``, ``unk``, ``sep``, ``pad``, ``cls``, ``mask``."""
    adds: dict[str, bool]
    """Whether ``bos`` and ``eos`` are put around a text, and a space (``space``) before it."""
    scores: list[float] | None = None
    merges: list[str] | None = None
    strips: list[str] | None = None
    """Control tokens that swallow the whitespace behind them."""
    left_out: tuple[str, ...] = ()
    """Special tokens that the model has no rows for, and that nothing in it uses: those of images, in Gemma 3's."""

    def write(self, writer: GGUFWriter) -> None:
        """Write all of it, in the order of llama.cpp's converter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for kind, id in self.special.items():
            getattr(writer, f"add_{kind}_token_id")(id)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        writer.add_add_space_prefix(self.adds["space"])


def read_vocabulary(folder: Path, size: int, *, with_template: bool = True) -> Vocabulary:
    """The tokenizer in ``folder`` for an embedding of ``size`` rows; rows without a token become unused ones.

    Args:
        with_template: whether text comes from a chat template, which begins with a special token.

    Raises:
        GGUFError: it has more tokens than the embedding has rows, or llama.cpp cannot tokenise as it does.
    """
    chat = ChatTokenizer.load(folder)
    definition = json.loads(chat.tokenizer.to_str())
    kind = definition["model"].get("type")
    if kind != "BPE":
        raise _unknown(folder, f"its model is {kind}, not BPE")
    ids = {id: token for token, id in chat.tokenizer.get_vocab(with_added_tokens=True).items()}
    added = chat.tokenizer.get_added_tokens_decoder()
    beyond = {id: token for id, token in ids.items() if id >= size}
    needed = [id for id in beyond if id not in added or not added[id].special or beyond[id] in chat.template.source]
    if needed or {chat.bos_id, chat.eos_id} & set(beyond):
        raise GGUFError(
            f"the tokenizer in {folder} has tokens up to {max(ids)}, the model only {size} rows for them",
            hint="the model was not enlarged for the tokens that were added: train again from a base that has them",
            details={"path": str(folder / "tokenizer.json"), "tokens": max(ids) + 1, "rows": size},
        )
    pieces = bool(definition["model"].get("byte_fallback"))
    vocabulary = _sentence_pieces(folder, definition, with_template) if pieces else _byte_level(folder, definition)
    vocabulary.left_out = tuple(beyond.values())
    merged: dict[str, int] = {}
    if pieces:
        for first, second in _merges(definition):
            merged.setdefault(first + second, len(merged))
    scores = []
    for id in range(size):
        token, type, score = ids.get(id), TokenType.NORMAL, 0.0
        if token is None:
            token, type, score = f"[PAD{id}]", TokenType.UNUSED, -10000.0
        elif id in added:
            score = _ADDED_SCORE
            type = TokenType.CONTROL if added[id].special or _looks_special(token) else TokenType.USER_DEFINED
            if type == TokenType.USER_DEFINED:
                token = token.replace(SPACE, " ")
        elif pieces:
            # The order in which pieces were learned, which SentencePiece writes as -0, -1, -2 ...; letters come after.
            is_byte = len(token) == 6 and token.startswith("<0x")
            type, score = (TokenType.BYTE, 0.0) if is_byte else (type, -float(merged.setdefault(token, len(merged))))
        vocabulary.tokens.append(token)
        vocabulary.types.append(type)
        scores.append(score)
    if len(set(vocabulary.tokens)) != size:
        twice = next(token for token in vocabulary.tokens if vocabulary.tokens.count(token) > 1)
        raise _unknown(folder, f"two of its tokens are {twice!r}")
    vocabulary.scores = scores if pieces else None
    vocabulary.merges = None if pieces else [f"{first} {second}" for first, second in _merges(definition)]
    vocabulary.special = _special(folder, chat, size, with_template)
    vocabulary.strips = [token.content for token in added.values() if token.special and token.rstrip]
    around = chat.tokenizer.encode("a", add_special_tokens=True).ids
    vocabulary.adds |= {"bos": around[0] == chat.bos_id, "eos": len(around) > 1 and around[-1] == chat.eos_id}
    return vocabulary


def _byte_level(folder: Path, definition: Mapping[str, Any]) -> Vocabulary:
    normalizer = definition.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise _unknown(folder, f"it changes text by {_words(normalizer)} before splitting it")
    steps = _steps(definition.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    last = steps[-1] if steps else {}
    way = ""
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        split = steps[0]
        if split["behavior"] == "Isolated" and not split.get("invert"):
            way = split["pattern"].get("Regex", "")
    elif kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
        way = "digits, byte level"
    elif kinds == ["ByteLevel"] and last.get("use_regex", True):
        way = "byte level"
    pre = PRE_TOKENIZERS.get((way, bool(definition["model"].get("ignore_merges"))))
    if pre is None:
        raise _unknown(folder, f"it splits text by {_words(definition.get('pre_tokenizer'))}")
    return Vocabulary("gpt2", pre, [], [], {}, {"space": bool(last.get("add_prefix_space"))})


def _sentence_pieces(folder: Path, definition: Mapping[str, Any], with_template: bool) -> Vocabulary:
    """Where a space goes before a text: llama.cpp has one switch, for the start and behind every special token.

    A tokenizer that puts it before the very first text alone therefore has none here where a template's special token
    comes first, which is all that was trained on.
    """
    space = False
    for step in _steps(definition.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            space = True
        elif step["type"] != "Replace" or step["pattern"] != {"String": " "} or step["content"] != SPACE:
            raise _unknown(folder, f"it changes text by {_words(step)} before splitting it")
    for step in _steps(definition.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step["replacement"] == SPACE and not step.get("split"):
            scheme = step.get("prepend_scheme", "always")
            space = scheme == "always" or (scheme == "first" and not with_template)
        elif step["type"] != "Split" or step["pattern"] != {"String": " "}:
            # Spaces are no longer there to be split at.
            raise _unknown(folder, f"it splits text by {_words(step)}")
    return Vocabulary("llama", "default", [], [], {}, {"space": space})


def _special(folder: Path, chat: ChatTokenizer, size: int, with_template: bool) -> dict[str, int]:
    named, config = settings_of(folder, "tokenizer_config.json"), settings_of(folder)
    inner = config.get("text_config")
    known = {token.content: id for id, token in chat.tokenizer.get_added_tokens_decoder().items()}
    found: dict[str, int] = {}
    for kind in _KINDS:
        token = named.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        given = config.get(f"{kind}_token_id", (inner if isinstance(inner, dict) else {}).get(f"{kind}_token_id"))
        id = known.get(token) if isinstance(token, str) else None
        if id is None and isinstance(given, int):
            id = given
        if id is not None and 0 <= id < size:
            found[kind] = id
    if with_template and chat.new_end is not None:
        found["eot"] = chat.new_end
    return found


def _merges(definition: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs; they were text with a space between until tokenizers 0.20."""
    given = definition["model"]["merges"]
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in given)
    return [(first, second) for first, second in pairs]


def _steps(part: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part[inside]) if part["type"] == "Sequence" else [part]


def _looks_special(token: str) -> bool:
    """Tokens that steer, though their model does not mark them so: as in llama.cpp's converter."""
    return token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        token.startswith(begin) and token.endswith(end)
        for begin, end in (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    )


def _unknown(folder: Path, why: str) -> GGUFError:
    return GGUFError(
        f"llama.cpp cannot tokenise as {folder / 'tokenizer.json'} does: {why}",
        hint="export it with --format merged: a GGUF would read text as other tokens than were trained",
        details={"path": str(folder / "tokenizer.json")},
    )


def _words(part: Any) -> str:
    return json.dumps(part, ensure_ascii=False)
