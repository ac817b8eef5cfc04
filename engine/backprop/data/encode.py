"""Rows → text → ids and the tokens that are trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from tokenizers import Encoding

from backprop.core.events import TokenSpan
from backprop.data.chat_template import END_THINK, MARK, THINK
from backprop.data.convert import convert
from backprop.data.example import CONTROL_TOKEN, Example, Fields, Format, RowError, Turn
from backprop.data.formats import read_as, unknown_format
from backprop.data.loss_mask import Span, answer_spans
from backprop.data.parse import misread
from backprop.data.token_cache import Flags, Ids
from backprop.data.tokenizer import ChatTokenizer


class Rendered(Struct):
    """A row as text, with the characters that are trained."""

    text: str
    spans: list[Span]
    """The answers, in order. None for raw text."""
    raw: bool = False
    everything: bool = False
    """All of it is trained, not the answers alone. Raw text always is."""
    warnings: list[RowError] = []


class Renderer:
    """Rows → text, for one tokenizer.

    Args:
        everything: all tokens are trained, not the answers alone, whatever rows say of their turns.
    """

    def __init__(self, tokenizer: ChatTokenizer, *, everything: bool = False) -> None:
        self.tokenizer = tokenizer
        self.template = tokenizer.template
        self.everything = everything

    def render(self, row: Any, format: Format, names: Fields) -> Rendered:
        """A row as the model will see it.

        Raises:
            RowError: the row cannot be trained.
        """
        example = convert(row, format, names)
        if example.text is not None:
            _encodable(example.text)
            warnings = [*example.warnings, *self._odd_texts([example.text])]
            return Rendered(example.text, [], raw=True, warnings=warnings)
        return self._conversation(example)

    def _conversation(self, example: Example) -> Rendered:
        turns = example.supervised()
        messages = self.template.messages(turns)
        text = self.template.conversation(messages, example.tools)
        _encodable(text)
        moved = len(turns) - len(messages)
        spans = answer_spans(self.template, messages, example.tools, text)
        spans = [_after_given(span, turns[span.turn + moved], text) for span in spans]
        answers = [span for span in spans if _is_trained(turns[span.turn + moved]) and span.end > span.start]
        if not answers:
            raise RowError("nothing_to_train", "", _why_nothing(turns))
        warnings = [*example.warnings, *_left_out(turns, {span.turn + moved: span for span in spans}, text)]
        if example.tools and self.template.conversation(messages) == text:
            words = "the chat template has no place for tools: their descriptions are left out"
            warnings.append(RowError("tools_dropped", "tools", words, "warning"))
        warnings += self._odd_texts([turn.content for turn in turns])
        if moved:
            words = "the chat template has no place for a system text: it is put before the first question"
            warnings.append(RowError("system_moved", "turns[0]", words, "info"))
        return Rendered(text, answers, everything=self.everything, warnings=warnings)

    def _odd_texts(self, texts: Sequence[str]) -> list[RowError]:
        """Tokens inside the row's own text that this model reads as the end or begin of a turn, and misread letters."""
        known = self.tokenizer.tokenizer.token_to_id
        found = {token for text in texts for token in CONTROL_TOKEN.findall(text) if known(token) is not None}
        words = f"control tokens inside the text are read as such: {', '.join(sorted(found)[:3])}"
        odd = [finding for text in texts for finding in misread(text)]
        return [RowError("special_token", "", words, "warning"), *odd] if found else odd


def _is_trained(turn: Turn) -> bool:
    return turn.train is not False and not turn.blank()


def _after_given(span: Span, turn: Turn, text: str) -> Span:
    """The span without the begin of the answer that is given to the model."""
    if not turn.given:
        return span
    given = turn.content[: turn.given]
    start = text.find(given, span.start, span.end)
    if start < 0:
        words = f"the chat template changes the begin of turn {span.turn + 1} (assistant), which is given"
        raise RowError("mask_unclear", f"turns[{span.turn}]", words)
    return span._replace(start=start + len(given))


def _why_nothing(turns: Sequence[Turn]) -> str:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        return "no turn of the assistant: nothing to learn from"
    if all(turn.blank() for turn in answers):
        return "the answer is empty: nothing to learn from"
    return "every answer is marked as not to be trained"


def _encodable(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                "lone_surrogate", "", f"half of a surrogate pair ({error.object[error.start]!r}) is no character"
            ) from None


def _left_out(turns: Sequence[Turn], spans: Mapping[int, Span], text: str) -> list[RowError]:
    """What the row says and the rendered text does not say in its place: of an answer between the answer before it and
    its end, of another turn outside of all answers."""
    found = []
    edges = [0, *(edge for span in spans.values() for edge in (span.start, span.end)), len(text)]
    outside = MARK.join([text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)])
    before = 0
    for i, turn in enumerate(turns):
        span = spans.get(i)
        written = outside if span is None else text[before : span.end]
        before = before if span is None else span.end
        content, whole = turn.content.strip(), turn.content.rstrip()
        if content not in written:
            found.append(_lost_content(turn, i, written, last=i == max(spans)))
        elif span is not None and content and whole not in written:
            words = f"the chat template leaves out the white space that turn {i + 1} begins with"
            found.append(RowError("text_changed", f"turns[{i}]", words, "warning"))
        if turn.reasoning and turn.reasoning.strip() not in written:
            words = f"the chat template leaves out the reasoning of turn {i + 1}"
            found.append(RowError("reasoning_dropped", f"turns[{i}]", words, "warning"))
        if turn.tool_calls:
            called = Counter(call["function"]["name"] for call in turn.tool_calls)
            answer = text[span.start : span.end].replace(content or MARK, "") if span is not None else written
            if any(answer.count(name) < times for name, times in called.items()):
                words = f"the chat template leaves out the calls of turn {i + 1}, or some of them"
                found.append(RowError("tool_calls_dropped", f"turns[{i}]", words, "warning"))
    return found


def _lost_content(turn: Turn, i: int, text: str, *, last: bool) -> RowError:
    place = f"turns[{i}]"
    thought, closed, answer = turn.content.partition(END_THINK)
    if closed and THINK in thought and answer.strip() in text:
        if thought.partition(THINK)[2].strip() in text:
            words = f"the chat template spaces the <think> of turn {i + 1} its own way"
            return RowError("text_changed", place, words, "info")
        words = f"the chat template leaves out the <think> of turn {i + 1}" + ("" if last else " (turns follow it)")
        return RowError("reasoning_dropped", place, words, "warning")
    if turn.role == "system":
        return RowError("system_dropped", place, "the chat template leaves out the system text", "warning")
    words = f"the chat template leaves out or changes text of turn {i + 1} ({turn.role})"
    return RowError("text_dropped", place, words, "warning")


class Encoded(Struct):
    """Ids of a row with what is trained; ``answers`` are its answers as ranges of tokens, in order."""

    ids: Ids
    trained: Flags
    answers: list[tuple[int, int]]


def encode_row(rendered: Rendered, encoding: Encoding, tokenizer: ChatTokenizer) -> Encoded:
    """Tokens of a rendered row. A token is trained when it holds a character of a trained span.

    Nothing predicts the first token, so it is never trained. Raw text ends with the tokenizer's end token.
    """
    ids = np.asarray(encoding.ids, dtype=np.int32)
    if rendered.raw:
        ids = _around_text(ids, tokenizer)
        answers = [(0, len(ids))]
    else:
        answers = [token_range(encoding, len(rendered.text), span) for span in rendered.spans]
    trained = np.full(len(ids), rendered.raw or rendered.everything)
    for start, end in answers:
        trained[start:end] = True
    trained[:1] = False
    return Encoded(ids, trained, answers)


def _around_text(ids: Ids, tokenizer: ChatTokenizer) -> Ids:
    """Exactly one begin token where the tokenizer sets one, exactly one end token."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    if bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos and bos != eos:
        ids = ids[1:]
    if eos is not None and not (len(ids) and ids[-1] == eos):
        ids = np.append(ids, np.int32(eos))
    return ids


def token_range(encoding: Encoding, length: int, span: Span) -> tuple[int, int]:
    """First token and one past the last token that hold characters of ``span`` in a text of ``length``."""
    start = span.start
    first = encoding.char_to_token(start)
    while first is None and start + 1 < span.end:
        start += 1
        first = encoding.char_to_token(start)
    if first is None:
        return 0, 0
    end = span.end
    after = encoding.char_to_token(end) if end < length else None
    while after is None and end + 1 < length:
        end += 1
        after = encoding.char_to_token(end)
    if after is None:
        return first, len(encoding.ids)
    held = encoding.token_to_chars(after)
    return first, after + 1 if held is not None and held[0] < span.end else after


def pieces(rendered: Rendered, encoding: Encoding, encoded: Encoded, tokenizer: ChatTokenizer) -> list[tuple[str, int]]:
    """The text of each token, with its id, as a person can read it.

    Where several tokens share a character, the first shows it and the others show nothing.
    """
    shown: list[tuple[str, int]] = []
    added = len(encoded.ids) - len(encoding.ids)
    offsets = encoding.offsets[-added:] if added < 0 else encoding.offsets
    until = 0
    for id, (start, end) in zip(encoded.ids.tolist(), offsets, strict=False):
        # A token without characters is one that the tokenizer set (a begin token): its name is shown.
        text = rendered.text[until:end] if end > until else tokenizer.token(id) if start == end else ""
        shown.append((text, id))
        until = max(until, end)
    for id in encoded.ids.tolist()[len(shown) :]:
        shown.append((tokenizer.token(id), id))
    return shown


def merge_spans(parts: Sequence[tuple[str, int]], trained: Sequence[bool | None]) -> list[TokenSpan]:
    """Neighbouring tokens of one kind as one piece of text, without those that are cut (``None``)."""
    spans: list[TokenSpan] = []
    for (text, _), flag in zip(parts, trained, strict=True):
        if flag is None:
            continue
        if spans and spans[-1].trained == flag:
            spans[-1].text += text
        else:
            spans.append(TokenSpan(text=text, trained=flag))
    return spans


class Token(Struct, frozen=True):
    """One token of a row, for a screen."""

    text: str
    id: int
    trained: bool
    special: bool


def encode_value(
    value: Any,
    tokenizer: ChatTokenizer,
    *,
    format: Format | None = None,
    mapping: Mapping[str, str] | None = None,
    train_on_responses: bool = True,
) -> tuple[Rendered, Encoding, Encoded]:
    """One row alone, as text, as the tokenizer's own answer, and as it is trained.

    Raises:
        RowError: the row cannot be trained.
    """
    names = Fields(mapping)
    known = format or read_as(value, None, names)
    if known is None:
        raise unknown_format(value)
    rendered = Renderer(tokenizer, everything=not train_on_responses).render(value, known, names)
    encoding = tokenizer.encode([rendered.text], special=rendered.raw)[0]
    return rendered, encoding, encode_row(rendered, encoding, tokenizer)


def explain_row(
    value: Any,
    tokenizer: ChatTokenizer,
    *,
    format: Format | None = None,
    mapping: Mapping[str, str] | None = None,
    train_on_responses: bool = True,
) -> list[Token]:
    """Every token of a row, uncut, with whether it is trained.

    Raises:
        RowError: the row cannot be trained.
    """
    rendered, encoding, encoded = encode_value(
        value, tokenizer, format=format, mapping=mapping, train_on_responses=train_on_responses
    )
    return [
        Token(text, id, trained, id in tokenizer.special_ids)
        for (text, id), trained in zip(
            pieces(rendered, encoding, encoded, tokenizer), encoded.trained.tolist(), strict=True
        )
    ]
