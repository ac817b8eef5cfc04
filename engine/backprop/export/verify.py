"""The proof of a GGUF file that needs nothing but the file and the model: read again, compared, and said in words.

What a server will do with the file is done here from the file alone: its tensors, its vocabulary, its end tokens, its
chat template. How a finished model answers is ``export.llama``'s to compare.
"""

from __future__ import annotations

import json
import math
import mmap
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, TokenType
from tokenizers import Tokenizer

from backprop.core.errors import GGUFError, ModelLoadError
from backprop.core.jobs import Check, Comparison
from backprop.data.chat_template import ChatTemplate
from backprop.data.example import RowError, Turn
from backprop.data.tokenizer import ChatTokenizer
from backprop.export.gguf.read_back import compare_tensors
from backprop.export.gguf.tokenization import AWKWARD_TEXTS, read_tokenizer, value
from backprop.export.weights import Weights

Messages = Sequence[Mapping[str, Any]]
_SYSTEM = {"role": "system", "content": "You answer in one word, in  plain English.\nNothing else."}
_ASKED = {"role": "user", "content": "What is 17 + 4?\n\n  Say it — in digits: naïve café, 你好 🙂"}
_TALK = (_ASKED, {"role": "assistant", "content": "21"}, {"role": "user", "content": "And  one more?"})
_BY_TOKEN = ("token_embd.weight", "output.weight")
_NUMBERS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
"""What llama.cpp builds the network by, with the word of ``config.json`` for it."""
_UNREADABLE = (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError, MemoryError, ArithmeticError)
"""What reading a broken file can raise: the package that reads it checks next to nothing."""


def verify(
    path: Path, folder: Path, weights: Weights, template: str | None = None, prompts: Sequence[str | Messages] = ()
) -> Check:
    """Compare the GGUF file at ``path`` with the model it was made from.

    Args:
        folder: the model's, for its configuration and tokenizer.
        weights: the weights that were to be written.
        template: the chat template that training rendered with; the model's own where it is not given, and empty where
            the file is to have none.
        prompts: what the template is tried on beside a question, a conversation, and both with a system turn: messages
            of a user, or conversations that end with one.

    Raises:
        ModelLoadError: the model's own files cannot be read.
    """
    chat = ChatTokenizer.load(folder)
    trained = chat.template
    if template and template != trained.source:
        ends = [text for id in sorted(chat.end_ids) if (text := chat.tokenizer.id_to_token(id))]
        trained = ChatTemplate(template, trained.tokens, ends=ends)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    compared: list[Comparison] = []
    try:
        file = _opened(path)
        wrong, words = compare_tensors(file, weights, config, file.forget)
        right = f"every tensor read again is the trained one within its type's rounding: {words}"
        compared.append(_comparison("tensors", wrong, right))
        compared += [_numbers(file, config), _vocabulary(file, chat)]
        server = read_tokenizer(file)
        compared += [_tokenization(server, chat, template != ""), _terminators(file, chat, trained)]
        if template != "":
            compared.append(_prompts(file, server, chat, trained, prompts))
    except GGUFError as error:
        compared.append(Comparison(name="file", passed=False, detail=f"{path.name} is damaged: {error.message}"))
    return Check(passed=all(each.passed for each in compared), compared=compared)


class _Reader(GGUFReader):
    """The package's reader over a plain array: it takes a slice for every token, and slices of a map are slow."""

    @property
    def data(self) -> Any:
        return self._plain

    @data.setter
    def data(self, mapped: Any) -> None:
        self._map, self._plain = mapped._mmap, np.asarray(mapped)

    def forget(self) -> None:
        """Give back the memory of what was read: pages of the map count as the process's until then."""
        self._map.madvise(mmap.MADV_DONTNEED)


def _opened(path: Path) -> _Reader:
    try:
        return _Reader(path)
    except _UNREADABLE as error:
        raise GGUFError(f"{type(error).__name__}: {error}") from error


def _comparison(name: str, wrong: Sequence[str], right: str) -> Comparison:
    """Passed with ``right``, or failed with the first of what is ``wrong``."""
    more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return Comparison(name=name, passed=not wrong, detail="; ".join(wrong[:3]) + more if wrong else right)


def _numbers(file: GGUFReader, config: dict[str, Any]) -> Comparison:
    text = config.get("text_config") or config
    rope = text.get("rope_parameters") or {}
    usual = {"num_key_value_heads": text.get("num_attention_heads"), "rope_theta": 10000.0}
    known = {**usual, **rope, **rope.get("full_attention", {}), **text}
    arch = value(file, "general.architecture")
    wrong, told = [], []
    for key, word in _NUMBERS.items():
        if (wanted := known.get(word)) is None:
            continue
        told.append(word)
        found = value(file, f"{arch}.{key}")
        if not isinstance(found, int | float) or not math.isclose(found, wanted, rel_tol=1e-6):
            wrong.append(f"{arch}.{key} is {found}, and {word} is {wanted}")
    return _comparison("numbers", wrong, f"layers, widths, heads and positions are the model's: {len(told)} settings")


def _vocabulary(file: GGUFReader, chat: ChatTokenizer) -> Comparison:
    tokens: list[str] = value(file, "tokenizer.ggml.tokens", [])
    rows = {tensor.name: int(tensor.shape[1]) for tensor in file.tensors if tensor.name in _BY_TOKEN}
    wrong = [
        f"{name} has {count} rows for {len(tokens)} tokens" for name, count in rows.items() if count != len(tokens)
    ]
    known = [chat.tokenizer.id_to_token(id) for id in range(len(tokens))]
    last = max((id for id, token in enumerate(known) if token is not None), default=-1)
    if chat.tokenizer.get_vocab_size() > last + 1:
        wrong.append(f"the tokenizer knows {chat.tokenizer.get_vocab_size()} tokens, the file {len(tokens)}")
    types, spaces = value(file, "tokenizer.ggml.token_type", []), value(file, "tokenizer.ggml.model") == "llama"
    for id, (token, own) in enumerate(zip(tokens, known, strict=True)):
        if own is not None and spaces and types[id] == TokenType.USER_DEFINED:
            own = own.replace("▁", " ")  # llama.cpp looks for these in the text as it comes
        if own is None and types[id] != TokenType.UNUSED:
            wrong.append(f"token {id} is {token!r} in the file and in no vocabulary of the model")
        elif own is not None and token != own:
            wrong.append(f"token {id} is {token!r} in the file and {own!r} in the model")
    padding = known.count(None)
    said = f", {padding} of them padding" if padding else ""
    return _comparison("vocabulary", wrong, f"{len(tokens)} tokens, as many as the embedding has rows{said}")


def _tokenization(server: Tokenizer, chat: ChatTokenizer, templated: bool) -> Comparison:
    """Awkward texts through both tokenizers, and the model's own end tokens between letters.

    Where a template is used every text stands behind its begin token: some tokenizers put a space before a text that
    begins without one, which llama.cpp would do behind every special token or never.
    """
    begin = chat.token(chat.bos_id) if templated and chat.bos_id is not None else ""
    ends = [chat.token(id) for id in sorted({*chat.end_ids, *([] if chat.bos_id is None else [chat.bos_id])})]
    texts = [begin + text for text in (*AWKWARD_TEXTS, *(f"x{token}y" for token in ends))]
    own = [encoding.ids for encoding in chat.encode(texts)]
    wrong, composed = [], 0
    for text, ids in zip(texts, own, strict=True):
        read = _ids(server, text)
        if read == ids:
            continue
        # llama.cpp has no such step; the file is right and texts of this kind are read differently by every server.
        if _ids(server, unicodedata.normalize("NFC", text)) == ids:
            composed += 1
        else:
            wrong.append(f"{text[:40]!r} is {_some(read)} in the file and {_some(ids)} in the model")
    said = f"; {composed} with letters and marks apart are the same once composed, which servers do not do"
    right = f"{len(texts)} awkward texts become the same tokens{said if composed else ''}"
    return _comparison("tokenization", wrong, right)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _some(ids: Sequence[int]) -> str:
    return f"{', '.join(map(str, ids[:6]))}{' …' if len(ids) > 6 else ''}"


def _terminators(file: GGUFReader, chat: ChatTokenizer, trained: ChatTemplate) -> Comparison:
    ends = {name: value(file, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    found = {id for id in ends.values() if id is not None}
    wrong = [] if ends["eos"] is not None else ["no end token is set (tokenizer.ggml.eos_token_id)"]
    for what, closing in (("an answer", trained.closing), ("the last answer", trained.last_end)):
        needed = [id for id in chat.encode([closing])[0].ids if id in chat.end_ids] if closing else []
        if needed and not set(needed) & found:
            wrong.append(f"{chat.token(needed[0])!r}, which ends {what} in training, is no end token of the file")
    bos = value(file, "tokenizer.ggml.bos_token_id")
    if chat.bos_id is not None and bos != chat.bos_id:
        wrong.append(f"the begin token is {bos} in the file and {chat.bos_id} in the model")
    adds = bool(value(file, "tokenizer.ggml.add_bos_token", False))
    if adds and bos is None:
        wrong.append("a begin token is to be added and none is set")
    shown = ", ".join(f"{name} {chat.token(id)!r}" for name, id in ends.items() if id is not None)
    begins = "no begin token" if bos is None else f"begin token {chat.token(bos)!r} {'added' if adds else 'not added'}"
    return _comparison("end tokens", wrong, f"{shown}; {begins}, as in training")


def _prompts(
    file: GGUFReader, server: Tokenizer, chat: ChatTokenizer, trained: ChatTemplate, prompts: Sequence[str | Messages]
) -> Comparison:
    """What a server renders and reads for a conversation, against what training rendered and read."""
    name = "chat template"
    inside = value(file, "tokenizer.chat_template")
    if not inside:
        return Comparison(name=name, passed=False, detail="there is no chat template in the file")
    bos = value(file, "tokenizer.ggml.bos_token_id")
    tokens = {"bos_token": bos, "eos_token": value(file, "tokenizer.ggml.eos_token_id")}
    texts = {key: server.id_to_token(id) or "" for key, id in tokens.items() if id is not None}
    try:
        served = ChatTemplate(inside, texts)
    except ModelLoadError as error:
        return Comparison(name=name, passed=False, detail=f"the one in the file is broken: {error.message}")
    begin = [bos] if bos is not None and value(file, "tokenizer.ggml.add_bos_token", False) else []
    asked: list[Messages] = [[_ASKED], _TALK]
    asked += [[{"role": "user", "content": each}] if isinstance(each, str) else each for each in prompts]
    wrong, count, refused = [], 0, 0
    for messages in (
        each for plain in asked for each in (plain, [_SYSTEM, *(m for m in plain if m["role"] != "system")])
    ):
        folded = _folded(trained, messages)
        ours, theirs = _rendered(trained, folded), _rendered(served, folded)
        count += 1
        kind = "with" if messages[0]["role"] == "system" else "without"
        if ours is None or theirs is None:
            refused += ours is None
            if ours is not theirs:
                wrong.append(
                    f"{kind} a system turn only {'training' if theirs is None else 'the file'} takes the conversation"
                )
        elif ours != theirs:
            wrong.append(f"{kind} a system turn the file renders {_parting(theirs, ours)}")
        else:
            # Servers take the begin token off the text and set it themselves.
            text = ours.removeprefix(texts["bos_token"]) if begin else ours
            if [*begin, *_ids(server, text)] != chat.encode([ours])[0].ids:
                wrong.append(f"{kind} a system turn a server reads other tokens than training did")
    said = f"; {refused} that the template refuses are refused by both" if refused else ""
    return _comparison(
        name, wrong, f"{count} prompts, with and without a system turn, are those of training, byte for byte{said}"
    )


def _folded(template: ChatTemplate, messages: Messages) -> list[dict[str, Any]]:
    """As training gives them to the template: one that takes no system turn gets it in the first question."""
    return template.messages([Turn(role=each["role"], content=each["content"]) for each in messages])


def _rendered(template: ChatTemplate, messages: Messages) -> str | None:
    try:
        return template.render(messages, prompt=True)
    except RowError:
        return None


def _parting(theirs: str, ours: str) -> str:
    """Where two texts part, a few characters of each."""
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    start = max(at - 10, 0)
    return f"{theirs[start : at + 20]!r} where training rendered {ours[start : at + 20]!r} (character {at})"
