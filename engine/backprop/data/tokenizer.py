"""A model's tokenizer and chat template, read from its directory without loading the model or any heavy library.

Ids are those of ``transformers``' ``AutoTokenizer``: the same ``tokenizer.json`` through the same Rust library.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Encoding, Tokenizer

from backprop.core.errors import ModelLoadError
from backprop.data.chat_template import CHATML, PLAIN, ChatTemplate, choose

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


class ChatTokenizer:
    """Text → ids, turns → text.

    Attributes:
        template: the chat template in use.
        notes: choices made while loading, in words for a person.
        bos_id, eos_id: ids of the tokenizer's own begin and end tokens, ``None`` where it has none.
        end_ids: every id that ends generation.
        fingerprint: hash of all files that decide about ids and text.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, fingerprint: str, notes: list[str]) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.fingerprint = fingerprint
        self.notes = notes
        self.bos_id = _id(tokenizer, template.tokens.get("bos_token"))
        self.eos_id = _id(tokenizer, template.tokens.get("eos_token"))
        self.end_ids: set[int] = {self.eos_id} if self.eos_id is not None else set()
        self.special_ids = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    @classmethod
    def load(cls, model_dir: str | Path) -> ChatTokenizer:
        """Read the tokenizer in ``model_dir``.

        Raises:
            ModelLoadError: a file is missing or broken, named with its path.
        """
        folder = Path(model_dir)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelLoadError(
                f"{folder}: no tokenizer.json in this directory" if folder.is_dir() else f"{folder}: no such directory",
                hint="name a directory of a Hugging Face model with a fast tokenizer",
                details={"path": str(file)},
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust library raises nothing more exact
            raise ModelLoadError(
                f"{file}: not a tokenizer that can be read: {error}",
                hint="fetch the model again: the file may be incomplete",
                details={"path": str(file)},
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _read_json(folder / "tokenizer_config.json")
        _add_configured(tokenizer, config)
        tokens = _special_tokens(config, _read_json(folder / "special_tokens_map.json"))
        notes: list[str] = []
        template = _template(folder, config, tokens, tokenizer, notes)
        made = cls(tokenizer, template, _fingerprint(folder), notes)
        ends = _read_json(folder / "generation_config.json").get("eos_token_id")
        made.end_ids |= {id for id in (ends if isinstance(ends, list) else [ends]) if isinstance(id, int)}
        return made

    def encode(self, texts: list[str], *, special: bool = False) -> list[Encoding]:
        """Encode texts at once. ``special`` adds what the tokenizer puts around a plain text (its begin token)."""
        return self.tokenizer.encode_batch(texts, add_special_tokens=special)

    def token(self, id: int) -> str:
        """A token as the vocabulary writes it."""
        return self.tokenizer.id_to_token(id) or f"<{id}>"


_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
"""What architectures call the number of their positions."""


def context_length(model_dir: str | Path) -> int | None:
    """How many positions the model was made for, from its ``config.json``; ``None`` where it does not say."""
    settings = _read_json(Path(model_dir) / "config.json")
    inner = settings.get("text_config")
    for given in (settings, inner if isinstance(inner, dict) else {}):
        for name in _POSITIONS:
            if isinstance(given.get(name), int):
                return int(given[name])
    return None


def _id(tokenizer: Tokenizer, token: str | None) -> int | None:
    return tokenizer.token_to_id(token) if token else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(
            f"{path}: not JSON: {error}", hint="fetch the model again", details={"path": str(path)}
        ) from error
    return value if isinstance(value, dict) else {}


def _add_configured(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Tokens that only ``tokenizer_config.json`` declares."""
    declared = config.get("added_tokens_decoder")
    if not isinstance(declared, dict):
        return
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = []
    for _, spec in sorted(declared.items(), key=lambda item: int(item[0]) if item[0].isdecimal() else 0):
        if isinstance(spec, dict) and isinstance(spec.get("content"), str) and spec["content"] not in known:
            options = {key: bool(spec[key]) for key in ("lstrip", "rstrip", "normalized", "single_word") if key in spec}
            missing.append(AddedToken(spec["content"], special=bool(spec.get("special")), **options))
    if missing:
        tokenizer.add_tokens(missing)


def _special_tokens(config: dict[str, Any], token_map: dict[str, Any]) -> dict[str, str]:
    """``bos_token``, ``eos_token`` … as text; the configuration wins over the map."""
    found: dict[str, str] = {}
    for given in (token_map, config):
        for name, value in given.items():
            if isinstance(value, dict):
                value = value.get("content")
            if name.endswith("_token") and isinstance(value, str):
                found[name] = value
    return found


def _template(
    folder: Path, config: dict[str, Any], tokens: dict[str, str], tokenizer: Tokenizer, notes: list[str]
) -> ChatTemplate:
    source, tool_source = choose(config.get("chat_template"))
    file = folder / "chat_template.jinja"
    if file.is_file():
        source, tool_source = file.read_text(encoding="utf-8"), None
        extra = folder / "additional_chat_templates" / "tool_use.jinja"
        if extra.is_file():
            tool_source = extra.read_text(encoding="utf-8")
    if source is None:
        if tokenizer.token_to_id("<|im_start|>") is not None and tokenizer.token_to_id("<|im_end|>") is not None:
            source = CHATML
            notes.append("the model has no chat template: ChatML is used, whose tokens it knows")
        else:
            source = PLAIN
            notes.append(
                "the model has no chat template: turns are written as '### User:' and '### Assistant:', "
                "each answer ended by the model's end token"
            )
    return ChatTemplate(source, tokens, tool_source)


def _fingerprint(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in (*FILES, "additional_chat_templates/tool_use.jinja"):
        path = folder / name
        digest.update(f"{name}\0".encode())
        digest.update(path.read_bytes() if path.is_file() else b"\0none")
    return digest.hexdigest()
