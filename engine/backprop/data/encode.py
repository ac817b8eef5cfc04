"""Rows → text → ids and the tokens that are trained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from tokenizers import Encoding

from backprop.core.events import LEFT_OUT, TokenSpan
from backprop.core.methods import Rows
from backprop.data.chat_template import thought
from backprop.data.convert import convert
from backprop.data.dedup import content_number
from backprop.data.example import CONTROL_TOKEN, Example, Fields, Format, RowError, Turn
from backprop.data.examples import read_row
from backprop.data.formats import FileFormat, read_as, unknown_format
from backprop.data.loss_mask import Span, answer_spans, left_out
from backprop.data.parse import misread
from backprop.data.reader import Row
from backprop.data.token_cache import Flags, Ids
from backprop.data.tokenizer import ChatTokenizer
from backprop.data.traces import trace_finding

BATCH_ROWS = 500
BATCH_CHARACTERS = 2_000_000


class Rendered(Struct):
    """A row as text, with the characters that are trained."""

    text: str
    spans: list[Span]
    """The answers, in order. None for raw text."""
    raw: bool = False
    everything: bool = False
    """All of it is trained, not the answers alone. Raw text always is."""
    opens: int | None = None
    """Characters before an answer that is compared or judged as a whole: a limit cuts these, never a part of it."""
    warnings: list[RowError] = []


class Renderer:
    """Rows → text, for one tokenizer.

    Args:
        rows: what the method learns from.
        everything: all tokens are trained, not the answers alone, whatever rows say of their turns; of conversations
            and texts only.
        traces: reasoning traces are trained as rows have them; those of no use are left out.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, *, rows: Rows = "conversation", everything: bool = False, traces: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.template = tokenizer.template.with_traces() if traces else tokenizer.template
        self.traces = traces
        self.rows: Rows = rows
        self.everything = everything and rows == "conversation"

    def render(self, row: Any, format: Format, names: Fields) -> Rendered:
        """A row as the model will see it; of a pair, the chosen side.

        Raises:
            RowError: the row cannot be trained.
        """
        return self.sides(convert(row, format, names))[0]

    def sides(self, example: Example) -> list[Rendered]:
        """An example as the model will see it: once, or each side of a pair.

        Raises:
            RowError: it cannot be trained.
        """
        found = trace_finding(example, self.rows) if self.traces else None
        if found is not None and found.code in LEFT_OUT:
            raise found
        if example.text is not None and self.rows == "conversation":
            _encodable(example.text)
            warnings = [*example.warnings, *self._odd_texts([example.text])]
            return [Rendered(example.text, [], raw=True, warnings=warnings)]
        sides = [self._conversation(turns, example) for turns in example.sides(self.rows)]
        sides[0].warnings += [found] if found is not None else []
        start = min(side.opens or 0 for side in sides)
        if any(side.text[:start] != sides[0].text[:start] for side in sides):
            raise RowError("prompt_differs", "", "the chat template writes the prompt differently for the two sides")
        return sides

    def _conversation(self, turns: list[Turn], example: Example) -> Rendered:
        messages = self.template.messages(turns)
        text = self.template.conversation(messages, example.tools)
        if self.traces and _loses_reasoning(turns, text):
            turns = [_with_thinking(turn) for turn in turns]
            messages = self.template.messages(turns)
            text = self.template.conversation(messages, example.tools)
        _encodable(text)
        moved = len(turns) - len(messages)
        spans = answer_spans(self.template, messages, example.tools, text)
        spans = [_after_given(span, turns[span.turn + moved], text) for span in spans]
        answers = [span for span in spans if _is_trained(turns[span.turn + moved]) and span.end > span.start]
        if not answers:
            raise RowError("nothing_to_train", "", _why_nothing(turns))
        warnings = [*example.warnings, *left_out(turns, {span.turn + moved: span for span in spans}, text)]
        if example.tools and self.template.conversation(messages) == text:
            words = "the chat template has no place for tools: their descriptions are left out"
            warnings.append(RowError("tools_dropped", "tools", words, "warning"))
        warnings += self._odd_texts([turn.content for turn in turns])
        if moved:
            words = "the chat template has no place for a system text: it is put before the first question"
            warnings.append(RowError("system_moved", "turns[0]", words, "info"))
        if self.rows == "conversation":
            return Rendered(text, answers, everything=self.everything, warnings=warnings)
        prompt = len(example.turns)
        prompt -= prompt > 0 and turns[prompt - 1].given > 0  # the answer goes on with its last turn
        opens = next(span.start for span in spans if span.turn + moved >= prompt)
        return Rendered(text, answers, opens=opens, warnings=warnings)

    def _odd_texts(self, texts: Sequence[str]) -> list[RowError]:
        """Tokens inside the row's own text that this model reads as the end or begin of a turn, and misread letters."""
        known = self.tokenizer.tokenizer.token_to_id
        found = {token for text in texts for token in CONTROL_TOKEN.findall(text) if known(token) is not None}
        words = f"control tokens inside the text are read as such: {', '.join(sorted(found)[:3])}"
        odd = [finding for text in texts for finding in misread(text)]
        return [RowError("special_token", "", words, "warning"), *odd] if found else odd


def _loses_reasoning(turns: Sequence[Turn], text: str) -> bool:
    """Whether what turns keep apart is not in the text, one after the other."""
    at = 0
    for reasoning in (turn.reasoning.strip() for turn in turns if turn.reasoning):
        at = text.find(reasoning, at)
        if at < 0:
            return True
        at += len(reasoning)
    return False


def _with_thinking(turn: Turn) -> Turn:
    """The turn with what it keeps apart as the beginning of its text."""
    if not turn.reasoning:
        return turn
    return msgspec.structs.replace(turn, content=thought(turn.reasoning, turn.content), reasoning=None)


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


class Side(Struct):
    """A row, or one side of a pair, as text and then as tokens."""

    rendered: Rendered
    encoding: Encoding | None = None
    """The tokenizer's own answer, until it is ``encoded``."""
    encoded: Encoded = msgspec.field(default_factory=lambda: Encoded(np.empty(0, np.int32), np.empty(0, np.bool_), []))


class EncodedRow(Struct):
    """A row on its way: read, then as text, then as tokens; ``error`` says why it goes no further."""

    row: Row
    format: Format | None = None
    """The known format that it has."""
    content: int = 0
    """Hash of what it says, the same for equal rows in every process."""
    sides: list[Side] = []
    """One; of a pair the chosen side, then the rejected one. None where there is an error."""
    good: bool | None = None
    """What a label says of the answer."""
    error: RowError | None = None
    warnings: list[RowError] = []


def encoded_rows(
    rows: Iterable[Row], file: FileFormat, renderer: Renderer, wanted: Callable[[], int] | None = None
) -> Iterator[list[EncodedRow]]:
    """Every row of a file in order, some hundreds at a time: the one way from rows to what is trained.

    Rows are rendered here and encoded by the Rust tokenizer in a thread, so that both go on at once.

    Args:
        wanted: how many more usable rows are wanted; asked again after each batch.
    """
    pending: deque[tuple[list[EncodedRow], Future[None]]] = deque()
    batch: list[EncodedRow] = []
    characters = open_ = 0
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode") as pool:
        for row in rows:
            item = _render(row, file, renderer)
            batch.append(item)
            characters += sum(len(side.rendered.text) for side in item.sides)
            open_ += item.error is None
            enough = wanted is not None and open_ >= wanted()
            if len(batch) < BATCH_ROWS and characters < BATCH_CHARACTERS and not enough:
                continue
            pending.append((batch, pool.submit(_encode, batch, renderer.tokenizer)))
            batch, characters = [], 0
            # One batch is encoded while the next is rendered; the last ones wanted are counted before more is read.
            while len(pending) > 1 or (pending and enough):
                open_ -= sum(item.error is None for item in pending[0][0])
                yield _encoded(*pending.popleft(), renderer.tokenizer)
            if wanted is not None and enough and wanted() <= 0:
                return
        if batch:
            pending.append((batch, pool.submit(_encode, batch, renderer.tokenizer)))
        while pending:
            yield _encoded(*pending.popleft(), renderer.tokenizer)


def _render(row: Row, file: FileFormat, renderer: Renderer) -> EncodedRow:
    read = read_row(row, file)
    item = EncodedRow(row, format=read.format if read.known else None, warnings=read.warnings)
    try:
        if isinstance(read.became, RowError):
            raise read.became
        item.sides = [Side(rendered) for rendered in renderer.sides(read.became)]
        item.good = read.became.label
        found = [warning for side in item.sides for warning in side.rendered.warnings]
        item.warnings += {(each.code, each.field, each.message): each for each in found}.values()
        item.content = content_number(row.value, read.format, file.names)
    except RowError as error:
        item.error = error
    return item


def _encode(batch: list[EncodedRow], tokenizer: ChatTokenizer) -> None:
    for raw in (False, True):
        sides = [side for item in batch if item.error is None for side in item.sides if side.rendered.raw == raw]
        encodings = tokenizer.encode([side.rendered.text for side in sides], special=raw) if sides else []
        for side, encoding in zip(sides, encodings, strict=True):
            side.encoding = encoding


def _encoded(batch: list[EncodedRow], done: Future[None], tokenizer: ChatTokenizer) -> list[EncodedRow]:
    done.result()
    for item in batch:
        for side in item.sides if item.error is None else ():
            assert side.encoding is not None
            side.encoded, side.encoding = encode_row(side.rendered, side.encoding, tokenizer), None
        item.error = item.error or _untrainable([side.encoded for side in item.sides])
    return batch


def _untrainable(sides: Sequence[Encoded]) -> RowError | None:
    """What only tokens tell: nothing of a side is trained, or both sides are the same to the model."""
    if not all(side.trained.any() for side in sides):
        return RowError("nothing_to_train", "", "no token of the row would be trained")
    one, *other = (side.ids[: side.answers[-1][1]] for side in sides if side.answers)
    if other and np.array_equal(one, other[0]):
        return RowError("same_sides", "", "the two sides are the same as the model reads them")
    return None


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
    rows: Rows = "conversation",
    train_on_responses: bool = True,
    traces: bool = False,
) -> list[Side]:
    """One row alone, as text, as the tokenizer's own answer, and as it is trained; of a pair both sides.

    Raises:
        RowError: the row cannot be trained.
    """
    names = Fields(mapping)
    known = format or read_as(value, None, names)
    if known is None:
        raise unknown_format(value)
    renderer = Renderer(tokenizer, rows=rows, everything=not train_on_responses, traces=traces)
    sides = []
    for rendered in renderer.sides(convert(value, known, names)):
        encoding = tokenizer.encode([rendered.text], special=rendered.raw)[0]
        sides.append(Side(rendered, encoding, encode_row(rendered, encoding, tokenizer)))
    if (error := _untrainable([side.encoded for side in sides])) is not None and renderer.rows != "conversation":
        raise error
    return sides


def tokens_of(side: Side, tokenizer: ChatTokenizer) -> list[Token]:
    """Every token of one of ``encode_value``'s sides, uncut, with whether it is trained."""
    assert side.encoding is not None
    shown = pieces(side.rendered, side.encoding, side.encoded, tokenizer)
    return [
        Token(text, id, trained, id in tokenizer.special_ids)
        for (text, id), trained in zip(shown, side.encoded.trained.tolist(), strict=True)
    ]
