"""How rows of other makes spell what they hold: the one table of names, and turns recognised by their structure."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import msgspec

ROLE_OF = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "ai", "bot", "chatbot", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "tool_response", "tool_result", "tool_results", "tool_output"), "tool"),
    **dict.fromkeys(("function", "function_response", "function_result", "observation", "ipython"), "tool"),
}
"""Role as rows write it → the role that templates know."""
_ASKED = ("instruction", "question", "query", "problem", "prompt", "input", "context", "user", "human")
SPELLINGS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns", "contents"),
    "instruction": _ASKED,
    "prompt": ("prompt", *_ASKED),
    "output": ("output", "solution", "answer", "response", "completion", "answers", "reply", "assistant", "gpt"),
    "input": ("input", "context"),
    "system": ("system", "system_prompt", "system_message", "system_instruction", "sys_prompt"),
    "tools": ("tools", "available_tools", "tool_definitions", "function_definitions"),
    "history": ("history", "chat_history", "conversation_history"),
    "chosen": (
        *("chosen", "chosen_messages", "chosen_response", "response_chosen", "preferred_output", "preferred_response"),
        *("preferred", "winner", "better", "accepted", "good_response"),
    ),
    "rejected": (
        *("rejected", "rejected_messages", "rejected_response", "response_rejected", "non_preferred_output"),
        *("dispreferred_response", "dispreferred", "rejected_answer", "loser", "worse", "bad_response"),
    ),
    "label": (
        *("label", "kto_tag", "is_good", "good", "is_desirable", "desirable", "is_correct", "correct", "is_accepted"),
        *("accepted", "thumbs_up", "liked", "like", "feedback", "verdict", "judgement", "judgment"),
    ),
    "loss_mask": ("loss_mask", "train_mask", "loss_masks", "train_masks", "turn_mask", "turn_weights", "loss_weights"),
    "role": ("role", "from", "speaker", "author", "sender"),
    "content": ("content", "value", "text", "message", "parts", "utterance", "body"),
}
"""Part → its names, the likeliest first. Case, blanks, hyphens and underscores make no difference."""
_GOOD = ("true", "yes", "1", "1.0", "good", "up", "thumbs_up", "👍", "like", "desirable", "accepted", "correct")
_BAD = (
    *("false", "no", "0", "0.0", "-1", "bad", "down", "thumbs_down", "👎"),
    *("dislike", "undesirable", "rejected", "wrong"),
)
_JUDGED = dict.fromkeys(_GOOD, True) | dict.fromkeys(_BAD, False)
MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
"""Columns of what is no text."""
MEDIA_MARK = re.compile(r"<(?:image|video|audio)>")
"""Where it stands in a text."""
_VERDICT = re.compile(r"reward|score|rating|quality|vote|weight|label|helpful|approved")
_NO_MASK = frozenset({"attention_mask", "special_tokens_mask"})


@lru_cache(maxsize=4096)
def like_mask(name: str) -> bool:
    """True for a name that may say what is in the loss."""
    return re.search("mask|loss|train|supervis|weights|targets", name.lower()) is not None and name not in _NO_MASK


def leaves_out(name: str, value: Any) -> bool:
    """True for a flag that may say of its turn that it is not in the loss: ``ignore`` set, ``is_target`` not set."""
    if type(value) not in (bool, int, float) or value not in (0, 1):
        return False
    return bool(value) if re.search("ignore|skip|exclud", name.lower()) else not value and "target" in name.lower()


def like_verdict(name: str) -> bool:
    """True for a name that may say how good the answer is, or how much it counts."""
    return _VERDICT.search(name.lower()) is not None


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


_PLAIN = {part: tuple(map(_plain, names)) for part, names in SPELLINGS.items()}


@lru_cache(maxsize=256)
def _by_plain(names: tuple[str, ...]) -> dict[str, str]:
    return {_plain(name): name for name in reversed(names)}


def spelled(part: str, held: Mapping[str, Any], fits: Callable[[Any], bool] | None = None) -> str | None:
    """The field of ``held`` that is the likeliest spelling of ``part``, with a value that ``fits``."""
    names = _by_plain(tuple(held))
    fields = (names[plain] for plain in _PLAIN[part] if plain in names)
    return next((field for field in fields if fits is None or fits(held[field])), None)


def judgement(value: Any) -> bool | None:
    """Whether a label says good or bad; ``None`` where it says neither."""
    if isinstance(value, str):
        return _JUDGED.get(value.strip().lower().replace(" ", "_"))
    return value > 0 if isinstance(value, bool | int | float) and value in (-1, 0, 1) else None


def parsed(text: str) -> Any:
    """The value where a text is JSON, or a list or object as Python prints it; else the text itself."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        pass
    if text.lstrip()[:1] in ("[", "{") and "'" in text:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    return text


def listed(value: Any) -> Any:
    """Turns as a list, where they are JSON text, inside an object, or columns: ``{"role": […], "content": […]}``."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = listed(made) if isinstance(made := parsed(value), list | dict) else value
    if isinstance(value, dict):
        inner = value.get("messages", value.get("conversations"))
        if isinstance(inner, list):
            return inner
        columns = list(value.values())
        if columns and all(isinstance(column, list) for column in columns) and len({*map(len, columns)}) == 1:
            return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]
    return value


def pair_keys(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """The keys of question and answer, where one item of a conversation holds both."""
    asked, answered = spelled("instruction", item), spelled("output", item)
    return (asked, answered) if asked and answered else None


def turn_keys(value: Any, who: str = "role", what: str = "content") -> tuple[str, str] | None:
    """The keys of who speaks and what is said in a list of turns; empty ones where an item holds question and answer.

    ``None`` for what is no such list. Keys beside ``who`` and ``what`` and ShareGPT's count where a role is known.
    """
    items = listed(value)
    first = items[0] if isinstance(items, list) and items else None
    if not isinstance(first, dict):
        return None
    for keys in ((who, what), ("from", "value")):
        if keys[0] in first and keys[1] in first:
            return keys
    speaker, said = spelled("role", first), spelled("content", first)
    if speaker and said and speaker != said and _speaks(items, speaker):
        return speaker, said
    return ("", "") if not speaker and pair_keys(first) else None


def _speaks(items: list[Any], who: str) -> bool:
    roles = (item.get(who) for item in items if isinstance(item, dict))
    return any(isinstance(role, str) and role.strip().lower() in ROLE_OF for role in roles)


def json_turns(text: str) -> list[Any] | None:
    """The turns that a text holds as JSON, each with a known role; ``None`` for any other text."""
    items = listed(text) if text.lstrip()[:1] in ("[", "{") else None
    keys = turn_keys(items)
    if not keys or not keys[0] or not isinstance(items, list):
        return None
    return items if all(isinstance(item, dict) and _speaks([item], keys[0]) for item in items) else None


def find_names(row: Mapping[str, Any], given: Mapping[str, str], *, whole: bool) -> dict[str, str]:
    """The parts that a row has under other names than the formats' own: part → field.

    Args:
        given: the mapping that is there already; its parts and fields are taken.
        whole: look for question, answer and conversation too, not only for what may stand beside them.
    """
    taken = {*given.values()}
    free = {name: value for name, value in row.items() if isinstance(name, str) and name not in taken}
    found = dict(given)

    def take(part: str) -> None:
        if part not in found and (name := spelled(part, free, _BESIDE.get(part))) is not None:
            found[part] = name
            del free[name]

    for part in _BESIDE:
        take(part)
    if "rejected" not in found and "chosen" not in given:
        found.pop("chosen", None)
    pair = "chosen" in found and "rejected" in found
    judged = "label" in found and "completion" in free
    chat = _chat(free, _PLAIN["messages"]) if "prompt" not in free else {}
    if (pair or judged or "completion" in found) and "prompt" not in found:
        found |= chat
        if not chat:
            take("prompt")
    elif whole and not pair and not {"messages", "conversations", "text"} & {*found}:
        found |= chat or _question_and_answer(free, found)
        if "instruction" in found:
            free.pop(found["instruction"], None)
            take("input")
    return {part: name for part, name in found.items() if part not in given and part != name}


_BESIDE: dict[str, Callable[[Any], bool] | None] = {
    "system": None,
    "tools": None,
    "history": None,
    "loss_mask": lambda value: isinstance(value, list | str),
    "label": lambda value: judgement(value) is not None,
    "chosen": lambda value: isinstance(value, str | list | dict),
    "rejected": lambda value: isinstance(value, str | list | dict),
}
"""What may stand beside question and answer, and what its value must be to be that."""


def _question_and_answer(free: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, str]:
    """Question and answer, or else a conversation in a column of any name."""
    answered = known.get("output", known.get("completion", spelled("output", free)))
    asked = known.get("instruction", known.get("prompt", spelled("instruction", free)))
    if asked is None or answered is None:
        return _chat(free, ())
    if "prompt" in known or asked == "prompt" or answered == "completion" or turn_keys(free.get(asked)):
        return {"prompt": asked, "completion": answered}
    return {"instruction": asked, "output": answered}


def _chat(free: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    """The mapping of a conversation in one of the columns called so; in any column where no name is given."""
    for name in sorted(free, key=lambda name: names.index(_plain(name)) if _plain(name) in names else len(names)):
        keys = turn_keys(free[name]) if not names or _plain(name) in names else None
        if keys is None or (not names and not (keys[0] and _speaks(listed(free[name]), keys[0]))):
            continue
        if keys == ("from", "value"):
            return {"conversations": name}
        return {"messages": name} | ({"role": keys[0], "content": keys[1]} if keys[0] else {})
    return {}
