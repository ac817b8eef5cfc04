"""What a row of any format becomes: turns of a conversation, with what the row says about training on them; and the
names of the fields it is read from.

A mapping is ``{part: field}``, as ``--map instruction=question`` says it. One is looked for where the names of most
rows are no known format's, returned so that it can be shown, and overridden by what the person gives.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct, field

from backprop.core.errors import InvalidSettingError
from backprop.core.events import Problem
from backprop.core.methods import Rows

Format: TypeAlias = Literal["sharegpt", "alpaca", "openai", "chatml", "prompt_completion", "text", "preference", "kto"]
Severity: TypeAlias = Literal["error", "warning", "info"]
CONTROL_TOKEN = re.compile(
    r"<\|[A-Za-z0-9_ .▁-]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
"""Tokens that chat templates of the common model families put between turns."""
NO_ANSWER = "no answer in it that training would learn from"
ROLES = frozenset({"system", "user", "assistant", "tool"})
"""The roles that templates know. A row's other role is kept as it is, with a warning."""
_EXCERPT = 80

PROBLEM_CODES: dict[str, str] = {
    "broken_json": "the row is not JSON: cut off, a comma too many, single quotes, nested too deep …",
    "broken_csv": "the record is not CSV: quotes that do not close, a stray line break",
    "broken_parquet": "the pages that hold the row are damaged",
    "column_count": "a CSV record has more or fewer cells than the header names",
    "csv_quotes": "quotes behind a blank or a backslash, which are read as quotes",
    "repeated_key": "an object has a key twice: the last one counts",
    "nan_value": "NaN, which is read as null: there is no value",
    "not_utf8": "bytes that are no UTF-8",
    "nul_byte": "a NUL character, which no text has",
    "lone_surrogate": "half of a surrogate pair, which stands for no character",
    "bom": "the file begins with a byte order mark; it is skipped",
    "too_deep": "nested more deeply than can be read",
    "unknown_format": "the row's fields are those of no known format",
    "mixed_format": "the row has another format than most rows of the file",
    "missing_field": "a field that the format needs is not there",
    "invalid_type": "a list where text is needed, and the like",
    "invalid_value": "a value outside what the field can be",
    "invalid_role": "a role that is not system, user, assistant or tool",
    "role_order": "two turns in a row by the same side, a late system turn, or an answer to nothing",
    "no_turns": "the conversation is empty",
    "no_assistant": "no turn of the assistant: nothing to learn from",
    "empty_content": "a turn, a text or a side of a pair is empty",
    "unbalanced_tags": "ChatML tags that do not close",
    "text_outside_turns": "text between ChatML turns, which belongs to nobody",
    "unsupported_content": "an image, a sound or another part that is no text",
    "ignored_field": "a field of a message, or a system text beside another, that is not used",
    "unknown_mask": "a field that looks like a loss mask of a kind that is not known",
    "written_value": "a number, a truth value or data of a tool where a text is expected: it is written as text",
    "call_arguments": "the arguments of a call are no JSON object",
    "transcript": "a text with a whole conversation inside",
    "weight_rounded": "a loss weight between 0 and 1: turns are trained fully or not at all",
    "mojibake": "text that was once read in a wrong encoding: Ã© for é",
    "missing_mark": "an answer is only a mark of a missing value, such as nan or N/A",
    "missing_input": "an input or a system text is only a mark of a missing value: it is read as empty",
    "special_token": "a chat template's control token inside a text",
    "bad_as_good": "a reward or label that nothing reads calls the answer bad: it is trained as a good one",
    "same_sides": "the two sides of a preference pair are the same",
    "no_prompt": "a preference pair without prompt",
    "no_pair": "the row has no rejected side, and the method learns from pairs",
    "no_label": "no label judges the answer, and the method learns from judged ones",
    "prompt_differs": "the chat template writes the prompt of a pair differently for its two sides",
    "one_label": "all labels of a feedback file are the same: there is nothing to tell apart",
    "duplicate_row": "the same content as an earlier row",
    "near_duplicate": "almost the same words as an earlier row",
    "held_out_overlap": "the row is also in the held-out file: its loss there would say nothing",
    "cut": "longer than the chosen length: the beginning is cut",
    "answer_lost": "longer than the chosen length so that the answer does not fit",
    "nothing_to_train": "no token of the row would be trained",
    "label_false": "the answer is labelled bad: supervised training leaves it out",
    "double_bos": "two begin tokens in a row: the text brings one and the template writes one",
    "mask_unclear": "which tokens belong to the answer cannot be told from what the template writes",
    "template_refused": "the chat template of the model refuses the conversation",
    "text_changed": "the chat template writes a turn with another text than it has",
    "text_dropped": "the chat template leaves out the text of a turn",
    "reasoning_dropped": "the chat template leaves out the thinking of a turn",
    "reasoning_trace": "answers have reasoning traces, and the setting that trains them whole is off",
    "trace_missing": "no reasoning trace, where they are to be trained: the row is trained as it stands",
    "trace_too_short": "the reasoning trace is empty or next to nothing: the row is left out",
    "trace_too_long": "the reasoning trace is longer than is trained: the row is left out",
    "trace_unbalanced": "a <think> without its end, or the other way: the row is left out",
    "system_dropped": "the chat template leaves out the system turn",
    "system_moved": "the chat template takes no system turn: its text was put before the first question",
    "tools_dropped": "the chat template leaves out the tools",
    "tool_calls_dropped": "the chat template leaves out calls of tools",
    "file_changed": "the row is no longer there: the file was changed while it was open",
}
"""Every code that a finding about a row can have, with its meaning: an interface, never renamed. ``core.errors`` has
the codes of errors that stop a command."""


class RowError(Exception):
    """One finding about one row: collected by readers into their counts, never shown as an exception.

    Args:
        code: one of ``PROBLEM_CODES``.
        field: where in the row, as ``messages[2].content``; empty when it is the row as a whole.
        message: what is wrong, in words, without the line number (the reader knows it).
        severity: ``error`` when the row cannot be used; those that are raised are, but for answers labelled bad.
    """

    def __init__(self, code: str, field: str, message: str, severity: Severity = "error") -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message
        self.severity: Severity = severity


def one_label(good: bool, field: str = "label") -> RowError:
    """The warning about feedback whose answers are all judged alike."""
    words = f"every label is {str(good).lower()}: kto needs answers of both kinds; "
    words += "add bad ones, or learn from good ones alone with --method sft" if good else "add good ones"
    return RowError("one_label", field, words, "warning")


class Findings:
    """Findings about rows, as they come: all are counted, the first of each code are kept with their rows.

    Args:
        most: findings of one code to keep.
    """

    def __init__(self, most: int) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self._most = most

    def add(self, line: int, raw: bytes, error: RowError) -> None:
        """Take one about the row in ``line``, whose bytes are ``raw``."""
        self.counts[error.code] += 1
        if self.counts[error.code] <= self._most:
            self.problems.append(
                Problem(
                    line=line,
                    code=error.code,
                    message=error.message,
                    field=error.field,
                    severity=error.severity,
                    excerpt=_excerpt(raw),
                )
            )


def _excerpt(raw: bytes) -> str:
    """A row's start, on one line."""
    text = raw[: _EXCERPT * 4].decode("utf-8", "replace")
    text = " ".join(text.split())
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: _EXCERPT + 1])
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"


class Turn(Struct):
    """One message of a conversation."""

    role: str
    content: str
    reasoning: str | None = None
    """Thinking that the row keeps apart from the answer."""
    tool_calls: list[dict[str, Any]] | None = None
    """``{"type": "function", "function": {"name", "arguments"}}`` each, arguments parsed where they are JSON."""
    name: str | None = None
    tool_call_id: str | None = None
    train: bool | None = None
    """The row's own word on whether this turn is in the loss; ``None`` where it says nothing."""
    given: int = 0
    """Characters at the start of ``content`` that are given to the model, not answered by it."""

    def blank(self) -> bool:
        """True when there is nothing in it to learn."""
        return not (self.tool_calls or self.content.strip() or (self.reasoning and self.reasoning.strip()))


def as_context(turns: list[Turn]) -> list[Turn]:
    """The turns as a prompt: answers in it are not trained unless the row says so."""
    return [
        msgspec.structs.replace(turn, train=False) if turn.role == "assistant" and turn.train is None else turn
        for turn in turns
    ]


def followed(prompt: list[Turn], answer: list[Turn]) -> list[Turn]:
    """The conversation of both. An answer that the prompt has begun is one turn with it, and its begin is given."""
    if not (prompt and answer and prompt[-1].role == answer[0].role == "assistant"):
        return [*prompt, *answer]
    begun, first = prompt[-1], answer[0]
    if begun.tool_calls or first.tool_calls or first.reasoning:
        return [*prompt, *answer]
    content, given = begun.content + first.content, len(begun.content) + first.given
    whole = msgspec.structs.replace(begun, content=content, given=given, train=first.train)
    return [*prompt[:-1], whole, *answer[1:]]


class Example(Struct, kw_only=True):
    """A row, whatever its format.

    ``turns`` is the conversation; for preference rows it is the prompt, with ``chosen`` and ``rejected`` as its two
    continuations; for feedback rows it is the prompt and ``completion`` its continuation, judged by ``label``.
    Raw text has no turns but ``text``.
    """

    format: Format
    turns: list[Turn] = field(default_factory=list)
    text: str | None = None
    chosen: list[Turn] = field(default_factory=list)
    rejected: list[Turn] = field(default_factory=list)
    completion: list[Turn] = field(default_factory=list)
    label: bool | None = None
    unpaired: RowError | None = None
    """Why the two sides of a preference row are no pair: one is empty or cannot be read, or they are the same."""
    tools: list[dict[str, Any]] | None = None
    warnings: list[RowError] = field(default_factory=list)
    """What was understood but is not trained as it stands, or looks wrong: empty content, odd order of roles …"""

    def fault(self, rows: Rows = "conversation") -> RowError | None:
        """Why a method that learns from such rows learns nothing from this one; ``None`` where it does."""
        if rows == "pairs" and self.format != "preference":
            return RowError("no_pair", "", "no rejected side: the method learns from pairs")
        if rows == "feedback" and self.format != "kto":
            return RowError("no_label", "", "no label: the method learns from answers labelled good or bad")
        if rows == "pairs" and self.unpaired is not None:
            return self.unpaired
        if self.text is not None:
            return None
        sides = {"preference": [self.chosen], "kto": [self.completion]}.get(self.format, [self.turns])
        taught = all(
            any(turn.role == "assistant" and turn.train is not False and not turn.blank() for turn in side)
            for side in (*sides, *([self.rejected] if rows == "pairs" else []))
        )
        return None if taught else RowError("nothing_to_train", "", NO_ANSWER)

    def sides(self, rows: Rows = "conversation") -> list[list[Turn]]:
        """The conversations that a method learns from: one, or those of a pair, the chosen side first.

        Of pairs and of feedback no answer in the prompt is trained, whatever the row says.

        Raises:
            RowError: it learns nothing from the row (``fault``), or leaves it out (``supervised``).
        """
        if rows == "conversation":
            return [self.supervised()]
        if (fault := self.fault(rows)) is not None:
            raise fault
        prompt = [
            msgspec.structs.replace(turn, train=False) if turn.role == "assistant" else turn for turn in self.turns
        ]
        answers = (self.chosen, self.rejected) if rows == "pairs" else (self.completion,)
        return [followed(prompt, answer) for answer in answers]

    def supervised(self) -> list[Turn]:
        """The conversation that supervised fine-tuning learns from.

        Preference rows give prompt and chosen answer, feedback rows prompt and completion.

        Raises:
            RowError: ``label_false`` for an answer that the row calls bad.
        """
        if self.format == "preference":
            return followed(as_context(self.turns), self.chosen)
        if self.format == "kto":
            if not self.label:
                words = "the answer is labelled bad: supervised training leaves it out"
                raise RowError("label_false", "label", words, "info")
            return followed(as_context(self.turns), self.completion)
        return self.turns


ABSENT = "\0absent"
"""Name of a field that no row has."""
TURN_PARTS = ("role", "content")
"""Parts of a turn: their fields are those of the turns, not of the row."""


class Fields:
    """Part → field name under a mapping. A field taken by one part no longer plays its own.

    ``row`` is the field with an object that holds all other parts, ``reasoning`` one with the thinking before the
    answer; none, unless they are named.
    """

    row: str
    messages: str
    conversations: str
    instruction: str
    input: str
    output: str
    system: str
    history: str
    prompt: str
    completion: str
    label: str
    chosen: str
    rejected: str
    text: str
    tools: str
    functions: str
    loss_mask: str
    reasoning: str
    role: str
    content: str

    def __init__(self, mapping: Mapping[str, str] | None = None) -> None:
        mapping = mapping or {}
        taken = {name for part, name in mapping.items() if part not in ("row", *TURN_PARTS)}
        for part in PARTS:
            own = part if part in TURN_PARTS or part not in {*taken, "row", "reasoning"} else ABSENT
            setattr(self, part, mapping.get(part, own))

    def held(self, row: Any) -> Any:
        """What holds the parts: the row, or the object inside it that the mapping names."""
        inside = row.get(self.row) if isinstance(row, dict) else None
        return inside if isinstance(inside, dict) else row


PARTS = tuple(Fields.__annotations__)
"""Every part that a mapping can name."""
PLAIN = Fields()
"""The formats' own names."""


def describe_mapping(mapping: Mapping[str, str]) -> str:
    """As a person gives it: ``instruction=question, output=answer``."""
    return ", ".join(f"{part}={name}" for part, name in mapping.items())


def require_parts(mapping: Iterable[str]) -> None:
    """Refuse a mapping of parts that no format has.

    Raises:
        InvalidSettingError: the first of them is named.
    """
    if wrong := [part for part in mapping if part not in PARTS]:
        raise InvalidSettingError(
            f"mapping (--map): {wrong[0]!r} is no part of a row",
            hint=f"the parts are {', '.join(PARTS)}",
            details={"field": "mapping"},
        )
