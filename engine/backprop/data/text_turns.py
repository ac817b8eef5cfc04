"""Conversations inside a text: ChatML and its like taken apart, transcripts split or named."""

from __future__ import annotations

import re

from backprop.data.example import RowError, Turn
from backprop.data.messages import read_turns
from backprop.data.spellings import ROLE_OF

_MARKS = (
    ("<|im_start|>", r"\n|<\|im_sep\|>", "<|im_end|>"),
    ("<|start_header_id|>", r"<\|end_header_id\|>\n*", "<|eot_id|>"),
    ("<start_of_turn>", r"\n", "<end_of_turn>"),
)
"""What begins a turn, what ends the name of its speaker, and what ends the turn."""
_AROUND = re.compile(r"(?:\s|</?s>|<(?:bos|eos)>|<\|(?:endoftext|begin_of_text|end_of_text|endofprompt)\|>)*")
"""What may stand around turns: white space, and the begin and end tokens of the common models."""
_SPEAKER = re.compile(r"(?:\A\s*|\n\s*\n)(Human|User|Assistant|System):[ \t]*")
_RENDERED = re.compile(r"\[INST\]|<\|user\|>|(?:\A|\n)### (?:Instruction|Human|User):|(?:\A|\n)(?:Human|User):")
_ANSWERED = re.compile(r"\[/INST\]|<\|assistant\|>|\n### (?:Response|Assistant|Output):|\nAssistant:")
TRANSCRIPT_HINTS = ("\n###", "Assistant:")
"""A text with none of these, and no control token, has no transcript inside."""


def holds_turns(text: str) -> bool:
    """Whether a text is written in marks of turns: ChatML's anywhere in it, or others' at its start."""
    if "<|" not in text and "<start_of_turn>" not in text:
        return False
    around = _AROUND.match(text)
    start = around.end() if around else 0
    return _MARKS[0][0] in text or any(text.startswith(begin, start) for begin, _, _ in _MARKS)


def read_marked(text: str, name: str, warnings: list[RowError]) -> list[Turn]:
    """The conversation that a text in ChatML, or in the marks of Llama 3 or Gemma, holds.

    Raises:
        RowError: turns that do not close, or text between them.
    """
    begin, after, end = next((marks for marks in _MARKS if marks[0] in text), _MARKS[0])
    if text.count(begin) != text.count(end) or not text.count(begin):
        counts = f"{text.count(begin)} {begin} and {text.count(end)} {end}"
        raise RowError("unbalanced_tags", name, f"ChatML turns do not close: {counts}")
    start, stop = re.escape(begin), re.escape(end)
    turn = re.compile(f"{start}([^\\n<]*)(?:{after})?((?:(?!{start}|{stop}).)*){stop}", re.DOTALL)
    messages = []
    done = 0
    for match in turn.finditer(text):
        if not _AROUND.fullmatch(text, done, match.start()):
            break
        messages.append({"role": match[1].strip(), "content": match[2]})
        done = match.end()
    if not _AROUND.fullmatch(text, done):
        left = text[done:].strip()
        code = "unbalanced_tags" if begin in left or end in left else "text_outside_turns"
        raise RowError(code, name, f"not inside a ChatML turn: {left[:40]!r}")
    return read_turns(messages, name, warnings)


def split_transcript(text: str) -> list[Turn] | None:
    """The turns of a text that is a whole conversation: ``Human: …``, an empty line, ``Assistant: …``.

    An empty last answer, which only asks for one, is no turn. ``None`` for any other text.
    """
    if "\n" not in text or ":" not in text[:40]:
        return None
    _, *parts = _SPEAKER.split(text)
    speakers, said = parts[::2], [part.strip() for part in parts[1::2]]
    if len(speakers) < 2 or not _SPEAKER.match(text) or speakers[0] == "Assistant":
        return None
    turns = [Turn(ROLE_OF[who.lower()], words) for who, words in zip(speakers, said, strict=True)]
    if all(turn.role != "assistant" for turn in turns):
        return None
    return turns[:-1] if turns[-1].role == "assistant" and turns[-1].blank() else turns


def transcript_inside(text: str) -> str:
    """What begins the first question of a text that holds questions and answers; empty for any other text."""
    asked = _RENDERED.search(text)
    return asked[0].strip() if asked is not None and _ANSWERED.search(text, asked.end()) else ""
