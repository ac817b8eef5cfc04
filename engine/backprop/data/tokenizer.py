"""A model's tokenizer and chat template, read from its directory without loading the model or any heavy library.

Ids are those of ``transformers``' ``AutoTokenizer``: the same ``tokenizer.json`` through the same Rust library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Encoding, Tokenizer

from backprop.core.errors import ModelLoadError
from backprop.data.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a model that brings no template but knows ChatML's two tokens."""

PLAIN = (
    "{{ bos_token }}{% for message in messages %}### {{ message.role | capitalize }}:\n{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""For a model that brings no template and knows no turns: plain headings, each answer ended by its own end token."""

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens with a meaning of their own, in the order in which transformers adds those that are missing."""
_OTHER_TEMPLATES = ("chat_template.json", "processor_config.json")
"""Where models that see or hear keep their template."""


class ChatTokenizer:
    """Text → ids, turns → text.

    Attributes:
        template: the chat template in use.
        brings_template: whether it is the model's, kept where other programs look for it.
        notes: choices made while loading, in words for a person.
        bos_id, eos_id: ids of the tokenizer's own begin and end tokens, ``None`` where it has none.
        end_ids: every id that ends generation.
        new_end: the one of them that the template ends answers with though no file of the model says so.
        fingerprint: hash of all files that decide about ids and text.
    """

    def __init__(
        self, tokenizer: Tokenizer, folder: Path, config: dict[str, Any], fingerprint: str, now: datetime
    ) -> None:
        tokens = _special_tokens(config)
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.bos_id = _id(tokenizer, tokens.get("bos_token"))
        self.eos_id = _id(tokenizer, tokens.get("eos_token"))
        ends = _read_json(folder / "generation_config.json").get("eos_token_id")
        known = [self.eos_id, *(ends if isinstance(ends, list) else [ends])]
        self.end_ids = {id for id in known if isinstance(id, int)}
        (source, tool_source), self.notes = _template(folder, config, tokenizer)
        self.brings_template = not self.notes
        ends_with = [token for id in sorted(self.end_ids) if (token := tokenizer.id_to_token(id))]
        self.template = ChatTemplate(source, tokens, tool_source, ends=ends_with, now=now)
        self.special_ids = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.new_end = self._end_of_answers(ends_with)
        self.end_ids |= {self.new_end} if self.new_end is not None else set()

    @classmethod
    def load(cls, model_dir: str | Path, now: datetime | None = None) -> ChatTokenizer:
        """Read the tokenizer in ``model_dir``.

        Args:
            now: the time that a template with a date in it writes; the present by default.

        Raises:
            ModelLoadError: a file is missing or broken, named with its path.
        """
        folder = Path(model_dir)
        fingerprint = _fingerprint(folder)
        return cls(*_read(folder, fingerprint), fingerprint, now or datetime.now())

    def _end_of_answers(self, ends: list[str]) -> int | None:
        last = self.template.last_end
        if not last or any(end in last for end in ends):
            return None
        id: int = self.encode([last])[0].ids[-1]
        return id if id in self.special_ids else None

    def encode(self, texts: list[str], *, special: bool = False) -> list[Encoding]:
        """Encode texts at once. ``special`` adds what the tokenizer puts around a plain text (its begin token)."""
        return self.tokenizer.encode_batch(texts, add_special_tokens=special)

    def token(self, id: int) -> str:
        """A token as the vocabulary writes it."""
        return self.tokenizer.id_to_token(id) or f"<{id}>"


@lru_cache(maxsize=1)
def _read(folder: Path, fingerprint: str) -> tuple[Tokenizer, Path, dict[str, Any]]:
    """A run asks twice, for its rows and for its model, and reading takes as long as loading a small model."""
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
    if "added_tokens_decoder" not in config:
        config |= _read_json(folder / "special_tokens_map.json")
    tokenizer.add_tokens(list(_declared(tokenizer, config, _read_json(folder / "added_tokens.json"))))
    return tokenizer, folder, config


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


def _declared(tokenizer: Tokenizer, config: dict[str, Any], added: dict[str, Any]) -> Iterator[AddedToken]:
    """Tokens that other files than ``tokenizer.json`` declare, in the order in which transformers numbers them.

    Args:
        config: ``tokenizer_config.json``, with ``special_tokens_map.json`` where transformers reads that.
        added: ``added_tokens.json``, which counts where the configuration has no ``added_tokens_decoder``.
    """
    special = list(_special_tokens(config).items())
    special.sort(key=lambda item: _NAMED.index(item[0]) if item[0] in _NAMED else len(_NAMED))
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    named = {**dict(special), **(extra if isinstance(extra, dict) else {})}
    marked: list[Any] = [config.get(name, token) for name, token in named.items()]
    marked += extra if isinstance(extra, list) else []
    texts = {spec.get("content") if isinstance(spec, dict) else spec for spec in marked}
    by_id = {str(id): {"content": text, "special": text in texts} for text, id in added.items()}
    declared = config.get("added_tokens_decoder", by_id)
    slots = sorted((declared if isinstance(declared, dict) else {}).items(), key=lambda item: _number(item[0]))
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for spec in (*(spec for _, spec in slots), *({**_as_token(each), "special": True} for each in marked)):
        content = spec.get("content") if isinstance(spec, dict) else None
        if isinstance(content, str) and content not in known:
            known.add(content)
            options = {key: bool(spec[key]) for key in ("lstrip", "rstrip", "normalized", "single_word") if key in spec}
            yield AddedToken(content, special=bool(spec.get("special")), **options)


def _as_token(spec: Any) -> dict[str, Any]:
    return spec if isinstance(spec, dict) else {"content": spec}


def _number(key: str) -> int:
    return int(key) if key.isdecimal() else 0


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """``bos_token``, ``eos_token`` … as text."""
    contents = {name: _as_token(value).get("content") for name, value in config.items() if name.endswith("_token")}
    return {name: content for name, content in contents.items() if isinstance(content, str)}


def _template(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> tuple[tuple[str, str | None], list[str]]:
    """The template, the one for tools, and what is to be said about where they come from."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        extra = folder / "additional_chat_templates" / "tool_use.jinja"
        return (file.read_text(encoding="utf-8"), extra.read_text(encoding="utf-8") if extra.is_file() else None), []
    source, tool_source = _choose(config.get("chat_template"))
    if source is not None:
        return (source, tool_source), []
    for name in _OTHER_TEMPLATES:
        source, tool_source = _choose(_read_json(folder / name).get("chat_template"))
        if source is not None:
            return (source, tool_source), [f"the chat template is read from {name}"]
    if tokenizer.token_to_id("<|im_start|>") is not None and tokenizer.token_to_id("<|im_end|>") is not None:
        return (CHATML, None), ["the model has no chat template: ChatML is used, whose tokens it knows"]
    words = (
        "the model has no chat template: turns are written as '### User:' and '### Assistant:', "
        "each answer ended by the model's end token"
    )
    return (PLAIN, None), [words]


def _choose(given: Any) -> tuple[str | None, str | None]:
    """The template and the one for tools, from ``chat_template`` of a tokenizer's configuration (text, or a list of
    named ones)."""
    if isinstance(given, str):
        return given, None
    if isinstance(given, list):
        given = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
    if not isinstance(given, dict):
        return None, None
    return given.get("default"), given.get("tool_use")


def _fingerprint(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in (*FILES, *_OTHER_TEMPLATES, "additional_chat_templates/tool_use.jinja"):
        path = folder / name
        digest.update(f"{name}\0".encode())
        digest.update(path.read_bytes() if path.is_file() else b"\0none")
    return digest.hexdigest()
